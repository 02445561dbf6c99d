-- One row: the newest signed checkpoint.
CREATE TABLE head (id INTEGER PRIMARY KEY CHECK (id = 1), size INTEGER NOT NULL, checkpoint BLOB NOT NULL);
-- The leaves, from 0, and the stored hashes of golang.org/x/mod/sumdb/tlog.
-- Kind and customer are caches of the leaf.
CREATE TABLE entries (idx INTEGER PRIMARY KEY, leaf BLOB NOT NULL, kind TEXT NOT NULL, customer BLOB NOT NULL);
CREATE INDEX entries_customer ON entries (customer, idx);
CREATE INDEX entries_kind ON entries (kind, idx);
-- For finding what is frozen, which the newest of these entries says.
CREATE INDEX entries_frozen ON entries (idx) WHERE kind = 'frozen' OR kind = 'unfrozen';
-- The vendor's chains by the hash that entries have: the DER certificates, concatenated.
CREATE TABLE chains (hash BLOB PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE hashes (idx INTEGER PRIMARY KEY, hash BLOB NOT NULL);
-- What the entries' commitments are about. Erasing a person deletes rows here.
CREATE TABLE openings (entry INTEGER NOT NULL, name TEXT NOT NULL, salt BLOB NOT NULL, data BLOB NOT NULL, PRIMARY KEY (entry, name));
-- Caches of the entries, for finding them. verify compares them with the entries.
CREATE TABLE actors (id BLOB PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE customers (id BLOB PRIMARY KEY, name TEXT NOT NULL UNIQUE, entry INTEGER NOT NULL);
-- Whose key it is, since the first intent with it or since it was reassigned.
CREATE TABLE keys (spki BLOB PRIMARY KEY, customer BLOB NOT NULL, entry INTEGER NOT NULL);
CREATE INDEX keys_customer ON keys (customer);
CREATE TABLE pushes (customer BLOB PRIMARY KEY, topic TEXT NOT NULL, expires INTEGER NOT NULL, spki TEXT NOT NULL, entry INTEGER NOT NULL);
CREATE TABLE requests (
    id BLOB PRIMARY KEY, customer BLOB NOT NULL, state TEXT NOT NULL, entry INTEGER NOT NULL, issued INTEGER NOT NULL, begun INTEGER NOT NULL,
    csr BLOB NOT NULL, spki BLOB NOT NULL, intent INTEGER NOT NULL,
    -- When what others must approve expires (milliseconds since 1970); 0: nobody must, or it is decided.
    until INTEGER NOT NULL DEFAULT 0);
CREATE INDEX requests_csr ON requests (csr);
CREATE INDEX requests_open ON requests (begun) WHERE state = 'intent';
CREATE INDEX requests_until ON requests (until) WHERE until > 0;
CREATE INDEX requests_waiting ON requests (intent) WHERE until > 0;
-- The entries of what others must approve: the question, which is the first, and the decisions.
CREATE TABLE approvals (request BLOB NOT NULL, entry INTEGER NOT NULL, PRIMARY KEY (request, entry));
-- Files and endpoints whose certificates are reported with what is due.
CREATE TABLE watches (target TEXT PRIMARY KEY, entry INTEGER NOT NULL);
-- Cosignatures of witnesses: the signed checkpoint and the signature line. A cache: both are verified when they are read.
CREATE TABLE cosignatures (size INTEGER NOT NULL, witness TEXT NOT NULL, checkpoint BLOB NOT NULL, line BLOB NOT NULL, PRIMARY KEY (size, witness));
-- What the witnesses answered last, for people and for the next request. alarm is 1 if the ledger must not grow.
CREATE TABLE witnesses (id TEXT PRIMARY KEY, size INTEGER NOT NULL, failed INTEGER NOT NULL, failure TEXT NOT NULL, alarm INTEGER NOT NULL);
-- How many intents under a policy an actor had on a day (since 1970, UTC).
CREATE TABLE daily (day INTEGER NOT NULL, actor BLOB NOT NULL, requests INTEGER NOT NULL, PRIMARY KEY (day, actor));
-- Repeated refusals of one day: how many there were besides the one that is an entry.
CREATE TABLE refusals (day INTEGER NOT NULL, actor BLOB NOT NULL, rule TEXT NOT NULL, csr BLOB NOT NULL, repeated INTEGER NOT NULL,
    PRIMARY KEY (day, actor, rule, csr));
-- The programs that append, with the policy that the newest entry about each says, and when it was seen last.
CREATE TABLE replicas (name TEXT PRIMARY KEY, policy BLOB NOT NULL, entry INTEGER NOT NULL, seen INTEGER NOT NULL);
-- When a credential was used last: for people only, no entry says it.
CREATE TABLE uses (credential TEXT PRIMARY KEY, at INTEGER NOT NULL);
-- Messages that wait to be sent, and for two days those that were: the payload of these is gone. No entry says what a row says.
-- A message may be taken when it is due and nobody has a lease on it. failing is when the first of the tries that fail was, ended
-- when the message was sent or given up; 0: never.
CREATE TABLE outbox (
    id BLOB PRIMARY KEY, kind TEXT NOT NULL, about BLOB NOT NULL, customer BLOB NOT NULL, payload BLOB, created INTEGER NOT NULL, due INTEGER NOT NULL,
    lease INTEGER NOT NULL, hastened INTEGER NOT NULL, tries INTEGER NOT NULL, failing INTEGER NOT NULL, delivered TEXT NOT NULL, ended INTEGER NOT NULL);
CREATE INDEX outbox_due ON outbox (due) WHERE ended = 0;
CREATE INDEX outbox_about ON outbox (about) WHERE ended = 0;
CREATE INDEX outbox_customer ON outbox (customer, kind, created);
-- What is accepted once, until its time is over: the hashes of signatures that identified a caller.
CREATE TABLE once (hash BLOB PRIMARY KEY, until INTEGER NOT NULL);
CREATE INDEX once_until ON once (until);
-- One row in a store that a ledger was moved to: the id by which the entry of kind moved names the store, and the ledger. Complete is 0
-- until everything was copied and verified.
CREATE TABLE destination (id INTEGER PRIMARY KEY CHECK (id = 1), store BLOB NOT NULL, origin TEXT NOT NULL, complete INTEGER NOT NULL);
-- Sessions of the console, by the SHA-256 of the cookie's value: whom the browser belongs to, and nothing of what they may. The mac is over
-- all but seen, with a key that the database does not have.
CREATE TABLE sessions (
    id BLOB PRIMARY KEY, caller TEXT NOT NULL, credential TEXT NOT NULL, how TEXT NOT NULL, created INTEGER NOT NULL, signed_in INTEGER NOT NULL, seen INTEGER NOT NULL,
    mac BLOB NOT NULL);
CREATE INDEX sessions_caller ON sessions (caller, created);
-- What a sign-in begins with and redeems once, by the SHA-256 of its secret.
CREATE TABLE logins (hash BLOB PRIMARY KEY, data BLOB NOT NULL, until INTEGER NOT NULL, mac BLOB NOT NULL);
