package policy

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"strings"
	"time"

	"hsmsign/fault"
)

// A token is hsmsign_ID_SECRETCHECK: an id of 40 bits, a secret of 256 bits, and the CRC-32 of what is before it, all in
// base32 in lower case. It has no character that a URL would escape, so it can be the password in one. The prefix and the
// checksum are for scanners that look for secrets that leaked.
const (
	tokenPrefix = "hsmsign_"
	idBytes     = 5
	idLength    = 8
	secretBytes = 32
	checkLength = 7
	tokenLength = len(tokenPrefix) + idLength + 1 + 52 + checkLength
	// expiryForm is the form of an expiry in an entry (ISO 8601, basic): it has no colon.
	expiryForm = "20060102T150405Z"
)

// MaxTokenDays is for how many days a token is accepted at most. A day more is tolerated: clocks differ.
const MaxTokenDays = 366

var encoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// token is the entry of a token in a configuration: it does not contain the token.
type token struct {
	id      string
	expires time.Time
	hash    [sha256.Size]byte // of the token
	caller  *Caller
}

// NewToken returns a random token, which is a secret, and its entry for a configuration, ID:EXPIRY:SHA256, which is not.
func NewToken(expires time.Time) (secret, entry string) {
	random := make([]byte, idBytes+secretBytes)
	_, _ = rand.Read(random) // never fails (Go 1.24)
	t := token{id: encoding.EncodeToString(random[:idBytes]), expires: expires.UTC()}
	secret = tokenPrefix + t.id + "_" + encoding.EncodeToString(random[idBytes:])
	secret += checksum(secret)
	t.hash = sha256.Sum256([]byte(secret))
	return secret, t.entry()
}

// checksum returns the CRC-32 (IEEE) of a text in base32.
func checksum(text string) string {
	return encoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE([]byte(text))))
}

// entry returns the token's entry in a configuration.
func (t *token) entry() string {
	return t.id + ":" + t.expires.Format(expiryForm) + ":" + hex.EncodeToString(t.hash[:])
}

// parseEntry reads the entry of a token, which has one form only. The error does not repeat it: somebody may have written the
// token itself.
func parseEntry(entry string) (*token, error) {
	const fix = "copy the entry that hsmsign caller token printed"
	if strings.HasPrefix(entry, tokenPrefix) {
		return nil, fault.Usage.Errorf("tokens: a token instead of its entry").Fix("the token is a secret, and was in this file: make a new one with hsmsign caller token, and write its entry")
	}
	part := strings.Split(entry, ":")
	if len(part) != 3 || len(part[0]) != idLength || strings.Trim(part[0], "abcdefghijklmnopqrstuvwxyz234567") != "" {
		return nil, fault.Usage.Errorf("tokens: not an entry of the form ID:EXPIRY:SHA256").Fix(fix)
	}
	t := &token{id: part[0]}
	var err error
	if t.expires, err = time.Parse(expiryForm, part[1]); err != nil || t.expires.Format(expiryForm) != part[1] {
		return nil, fault.Usage.Errorf("tokens: the expiry of %s is not of the form %s", t.id, expiryForm).Fix(fix)
	}
	hash, err := hex.DecodeString(part[2])
	if err != nil || len(hash) != len(t.hash) || hex.EncodeToString(hash) != part[2] {
		return nil, fault.Usage.Errorf("tokens: the SHA-256 of %s does not have 64 hex digits in lower case", t.id).Fix(fix)
	}
	copy(t.hash[:], hash)
	return t, nil
}

func (p *Policy) addTokens(c *Caller) error {
	for _, entry := range c.from.Tokens {
		t, err := parseEntry(entry)
		if err != nil {
			return err
		}
		if other := p.tokens[t.id]; other != nil {
			return oneCaller("the token "+t.id, other.caller)
		}
		t.caller = c
		p.tokens[t.id] = t
		c.tokens = append(c.tokens, t)
	}
	return nil
}

// name returns the name of the credential.
func (t *token) name() string { return "token " + t.id }

// state returns whether the token is accepted.
func (t *token) state(now time.Time) string {
	switch {
	case !now.Before(t.expires):
		return StateExpired
	case t.expires.After(now.Add((MaxTokenDays + 1) * 24 * time.Hour)):
		return StateTooLong
	}
	return StateValid
}

// Token returns the credential that a token is. The error, of kind unauthenticated, is the same for every text that is not
// accepted. The caller of Token compares the address with Caller.From.
func (p *Policy) Token(secret string, now time.Time) (Credential, error) {
	if len(secret) != tokenLength {
		return Credential{}, notAccepted()
	}
	body, id := secret[:tokenLength-checkLength], secret[len(tokenPrefix):len(tokenPrefix)+idLength]
	found := p.tokens[id]
	if found == nil {
		found = &token{} // as much work as for a token that is known
	}
	hash := sha256.Sum256([]byte(secret))
	same := subtle.ConstantTimeCompare(hash[:], found.hash[:]) == 1
	if !same || found.caller == nil || !wellFormed(secret, body) || found.state(now) != StateValid {
		return Credential{}, notAccepted()
	}
	return Credential{Caller: found.caller, Name: found.name()}, nil
}

// wellFormed returns whether NewToken could have made a token: an entry that somebody made for another text is not enough.
func wellFormed(secret, body string) bool {
	return strings.HasPrefix(secret, tokenPrefix) && body[len(tokenPrefix)+idLength] == '_' && secret[len(body):] == checksum(body)
}

func notAccepted() error {
	return fault.Unauthenticated.Errorf("the token is not accepted").Fix("make a new one with hsmsign caller token, and add its entry to the configuration")
}
