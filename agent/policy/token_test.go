package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
)

var expiry = time.Date(2026, 6, 1, 13, 0, 0, 0, time.UTC)

// anEntry is an entry of no known token, and aSecret a token.
var (
	anEntry    = "abcdefgh:20260601T130000Z:" + strings.Repeat("00", 32)
	aSecret, _ = NewToken(expiry)
)

// withTokens returns the policy of a caller with tokens.
func withTokens(t testing.TB, entries ...string) *Policy {
	t.Helper()
	callers := map[string]CallerConfig{"ada": {Role: "signer", Person: "ada", Tokens: entries}}
	p, err := New(callers, map[string]RoleConfig{"signer": signerRole()}, Environment{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// entryOf returns an entry for a text as if it were a token.
func entryOf(id, text string) string {
	hash := sha256.Sum256([]byte(text))
	return id + ":" + expiry.Format(expiryForm) + ":" + hex.EncodeToString(hash[:])
}

// A token is accepted until it expires; any other text is refused with the same words.
func TestToken(t *testing.T) {
	now := expiry.Add(-time.Hour)
	secret, entry := NewToken(expiry)
	other, _ := NewToken(expiry)
	p := withTokens(t, entry)
	c, err := p.Token(secret, expiry.Add(-time.Second))
	if err != nil || c.Caller.Name != "ada" || c.Name != "token "+entry[:idLength] || !strings.HasPrefix(entry[idLength:], ":20260601T130000Z:") {
		t.Errorf("%+v, %v, entry %s", c, err, entry)
	}
	if strings.Contains(entry, secret[len(tokenPrefix)+idLength+1:]) || !strings.HasPrefix(secret, tokenPrefix+entry[:idLength]+"_") {
		t.Error("the entry and the token")
	}
	if len(secret) != tokenLength || strings.Trim(secret, "abcdefghijklmnopqrstuvwxyz234567_") != "" {
		t.Errorf("the form of %d characters", len(secret))
	}
	secretAt := len(tokenPrefix) + idLength + 1
	guessed := secret[:secretAt] + other[secretAt:tokenLength-checkLength]
	guessed += checksum(guessed)
	refused := map[string]string{
		"empty": "", "a prefix": tokenPrefix, "another's": other, "another prefix": "x" + secret, "cut": secret[:len(secret)-1], "longer": secret + "a",
		"upper case": strings.ToUpper(secret), "the entry": entry, "the id with another secret": secret[:secretAt] + other[secretAt:], "and its checksum": guessed, "long": strings.Repeat("a", 1<<20),
	}
	want := notAccepted().Error()
	for what, text := range refused {
		if c, err := p.Token(text, now); fault.KindOf(err) != fault.Unauthenticated || err.Error() != want || c.Caller != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, at := range map[string]time.Time{"expired": expiry, "too long": expiry.AddDate(0, 0, -MaxTokenDays-2)} {
		if _, err := p.Token(secret, at); fault.KindOf(err) != fault.Unauthenticated || err.Error() != want {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := p.Token(secret, expiry.AddDate(0, 0, -MaxTokenDays)); err != nil {
		t.Errorf("as soon as it was made: %v", err)
	}
}

// A text that hsmsign caller token did not make is not accepted, even if its entry is in the configuration.
func TestTokenOfOwnMaking(t *testing.T) {
	body := tokenPrefix + "abcdefgh_" + strings.Repeat("a", 52)
	whole := body + checksum(body)
	otherPrefix, otherMark := strings.Replace(body, "hsmsign_", "hsmsigm_", 1), strings.Replace(body, "h_a", "h-a", 1)
	for text, accepted := range map[string]bool{
		whole: true, body + strings.Repeat("a", checkLength): false, otherPrefix + checksum(otherPrefix): false, otherMark + checksum(otherMark): false,
	} {
		_, err := withTokens(t, entryOf("abcdefgh", text)).Token(text, expiry.Add(-time.Hour))
		if (err == nil) != accepted {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestEntry(t *testing.T) {
	hash := strings.Repeat("0a", 32)
	for entry, want := range map[string]string{
		"abcdefgh:20260601T130000Z:" + hash: "", "abcdefgh:2027-01-01:" + hash: "the expiry of abcdefgh", "abcdefgh:20260601T130000.5Z:" + hash: "the expiry of abcdefgh",
		"abcdefgh:20261301T130000Z:" + hash: "the expiry of abcdefgh", "abcdefgh:20260601T130000Z:00": "the SHA-256 of abcdefgh", "abcdefgh:20260601T130000Z:" + strings.ToUpper(hash): "the SHA-256 of abcdefgh",
		"abcdefg!:20260601T130000Z:" + hash: "not an entry", "abcdefg:20260601T130000Z:" + hash: "not an entry", "abcdefgh:20260601T130000Z:" + hash + ":": "not an entry",
	} {
		parsed, err := parseEntry(entry)
		if want == "" {
			if err != nil || parsed.entry() != entry {
				t.Errorf("%s: %v", entry, err)
			}
			continue
		}
		if fault.KindOf(err) != fault.Usage || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %s", entry, err, want)
		}
	}
}

// FuzzToken: a token is accepted, and no text that differs from it.
func FuzzToken(f *testing.F) {
	secret, entry := NewToken(expiry)
	p := withTokens(f, entry)
	f.Add(secret)
	for _, i := range []int{0, len(tokenPrefix), len(tokenPrefix) + idLength, len(secret) - 1} {
		changed := []byte(secret)
		changed[i] ^= 1
		f.Add(string(changed))
	}
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := p.Token(text, expiry.Add(-time.Minute)); (err == nil) != (text == secret) || (c.Caller != nil) != (err == nil) {
			t.Errorf("%q: %v", text, err)
		}
	})
}

// Any changed byte of a token is noticed.
func TestChangedToken(t *testing.T) {
	secret, entry := NewToken(expiry)
	p := withTokens(t, entry)
	for i := range secret {
		for bit := range 8 {
			changed := []byte(secret)
			changed[i] ^= 1 << bit
			if _, err := p.Token(string(changed), expiry.Add(-time.Minute)); err == nil {
				t.Errorf("byte %d changed: accepted", i)
			}
		}
	}
}

// FuzzEntry: an entry that is read is written the same again; so there are no two entries of one token.
func FuzzEntry(f *testing.F) {
	_, entry := NewToken(expiry)
	f.Add(entry)
	f.Add(anEntry)
	f.Add("abcdefgh:20260601T130000.0Z:" + strings.Repeat("00", 32))
	f.Fuzz(func(t *testing.T, text string) {
		if e, err := parseEntry(text); err == nil && e.entry() != text {
			t.Errorf("%q is read as %q", text, e.entry())
		}
	})
}

// Tokens differ.
func TestRandom(t *testing.T) {
	a, entryA := NewToken(expiry)
	b, entryB := NewToken(expiry)
	if a == b || entryA[:idLength] == entryB[:idLength] {
		t.Error("two tokens are the same")
	}
}
