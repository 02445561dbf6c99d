#!/usr/bin/env python3
"""Check a ledger of hsmsign without hsmsign: with Python's standard library and openssl.

  sqlite3 ledger.db "SELECT hex(leaf) FROM entries ORDER BY idx" | python3 audit.py ledger VERIFIER_KEY CHECKPOINT_FILE
  psql -Atc "SELECT encode(leaf, 'hex') FROM entries ORDER BY idx" | python3 audit.py ledger VERIFIER_KEY CHECKPOINT_FILE
  python3 audit.py proof VERIFIER_KEY acme.req.tlog-proof acme.csr acme.req

The first two compute the Merkle tree (RFC 6962, section 2.1) of the leaves, compare its root with that of the signed
checkpoint (C2SP tlog-checkpoint, signed-note), and print the entries. The third checks a proof (C2SP tlog-proof), and that
its entry is about the CSR and the request. The exit code is 0, or 1 with what is wrong.
"""
import base64
import datetime
import hashlib
import re
import subprocess
import sys
import tempfile

FIELDS = ("time kind channel digest operation rule request customer actor credential from policy csr spki vendor chain file").split()
TEXTS = FIELDS[1:6]


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def checkpoint(note, verifier):
    """Return size and root of a signed checkpoint after checking the signature of the verifier key."""
    name, key_hash, key = verifier.strip().split("+", 2)
    key = base64.b64decode(key)
    if key[:1] != b"\x01" or sha256(name.encode(), b"\n", key)[:4].hex() != key_hash:
        sys.exit("the verifier key is not an Ed25519 key of a signed note")
    text, signatures = note.rsplit("\n\n", 1)
    text += "\n"
    origin, size, root = text.split("\n")[:3]
    if origin != name:
        sys.exit(f"the origin is {origin!r}, not {name!r}")
    for line in signatures.strip().split("\n"):
        _, signer, value = line.split(" ")
        value = base64.b64decode(value)
        if signer == name and value[:4].hex() == key_hash and signed(text.encode(), value[4:], key[1:]):
            return int(size), base64.b64decode(root)
    sys.exit("the checkpoint is not signed by the verifier key")


def signed(text, signature, key):
    """Return whether openssl accepts an Ed25519 signature. The key is in a SubjectPublicKeyInfo (RFC 8410)."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in (("text", text), ("signature", signature), ("key", bytes.fromhex("302a300506032b6570032100") + key)):
            with open(f"{folder}/{name}", "wb") as f:
                f.write(data)
        command = "openssl pkeyutl -verify -pubin -keyform DER -inkey key -rawin -in text -sigfile signature"
        return subprocess.run(command.split(), cwd=folder, capture_output=True, check=False).returncode == 0


def tree_hash(hashes):
    """Return the Merkle tree hash of leaf hashes."""
    if not hashes:
        return sha256()
    while len(hashes) > 1:  # a node without a sibling moves up, which is the split of RFC 6962
        hashes = [sha256(b"\x01", *hashes[i:i + 2]) if i + 1 < len(hashes) else hashes[i] for i in range(0, len(hashes), 2)]
    return hashes[0]


def entry(leaf):
    """Return the fields of an entry."""
    if leaf[:1] != b"\x01":
        sys.exit("an entry of an unknown version")
    values, rest = [], leaf[1:]
    while rest:
        length = int.from_bytes(rest[:2], "big")
        values.append(rest[2:2 + length])
        rest = rest[2 + length:]
    fields = dict(zip(FIELDS, values))
    fields["time"] = datetime.datetime.fromtimestamp(int.from_bytes(fields["time"], "big") / 1000, datetime.timezone.utc).isoformat()
    return {name: value.decode() if name in TEXTS else value if isinstance(value, str) else value.hex() for name, value in fields.items()}


def audit_ledger(verifier, path):
    leaves = [bytes.fromhex(line) for line in sys.stdin.read().split()]
    with open(path, encoding="utf-8") as f:
        size, root = checkpoint(f.read(), verifier)
    if len(leaves) < size:
        sys.exit(f"{size - len(leaves)} entries of the checkpoint are missing")
    if tree_hash([sha256(b"\x00", leaf) for leaf in leaves[:size]]) != root:
        sys.exit("the entries are not those of the checkpoint")
    for index, leaf in enumerate(leaves[:size]):
        e = entry(leaf)
        print(index, e["time"], e["kind"], e["request"] or "-", e["csr"] or "-")
    print(f"ok: {size} entries, root {root.hex()}")


def audit_proof(verifier, path, csr, request):
    with open(path, encoding="utf-8") as f:
        head, note = f.read().split("\n\n", 1)
    kind, extra, index, *hashes = head.split("\n")
    leaf, number = base64.b64decode(extra.removeprefix("extra ")), int(index.removeprefix("index "))
    size, root = checkpoint(note, verifier)
    if kind != "c2sp.org/tlog-proof@v1" or number >= size:
        sys.exit("not a proof that can be checked")
    node, at, last = sha256(b"\x00", leaf), number, size - 1  # RFC 9162, section 2.1.3.2
    for sibling in map(base64.b64decode, hashes):
        if at % 2 == 1 or at == last:
            node = sha256(b"\x01", sibling, node)
            while at % 2 == 0 and at:
                at, last = at // 2, last // 2
        else:
            node = sha256(b"\x01", node, sibling)
        at, last = at // 2, last // 2
    if node != root or last:
        sys.exit("the entry is not in the ledger of the checkpoint")
    e = entry(leaf)
    with open(csr, "rb") as f:
        data = f.read()
    pem = re.search(rb"-----BEGIN [A-Z ]*REQUEST-----(.*?)-----END", data, re.S)
    if sha256(base64.b64decode(pem[1]) if pem else data).hex() != e["csr"]:
        sys.exit("the entry is about another CSR")
    with open(request, "rb") as f:
        if sha256(f.read()).hex() != e["file"]:
            sys.exit("the entry is about another request")
    print(f"ok: entry {number} of {size}: {e['kind']} {e['time']}")


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "ledger":
        audit_ledger(*sys.argv[2:])
    elif len(sys.argv) == 6 and sys.argv[1] == "proof":
        audit_proof(*sys.argv[2:])
    else:
        sys.exit(__doc__)
