package awsiam

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
)

// What is decoded is what was sent: encoded again as a client does, it decodes to the same, and no member or header is there twice.
func FuzzDecode(f *testing.F) {
	testkit.Seeds(f, "FuzzDecode", 4)
	f.Fuzz(func(t *testing.T, data string) {
		s, err := Decode(base64.RawURLEncoding.EncodeToString([]byte(data)))
		if err != nil {
			if fault.KindOf(err) != fault.Unauthenticated {
				t.Errorf("%v", err)
			}
			return
		}
		seen := map[string]bool{}
		for _, h := range s.Headers {
			if name := strings.ToLower(h.Name); seen[name] {
				t.Errorf("%q is there twice", h.Name)
			} else {
				seen[name] = true
			}
		}
		again, err := Decode(bearer(t, s))
		if err != nil && len(data) < maxSigned/6 || err == nil && (again.URL != s.URL || len(again.Headers) != len(s.Headers)) {
			t.Errorf("%+v, then %+v, %v", s, again, err)
		}
	})
}

// Whatever the Authorization header and another one are: what is accepted has one form, and everything that is copied is signed.
func FuzzCheck(f *testing.F) {
	testkit.Seeds(f, "FuzzCheck", 4)
	at := time.Date(2026, 6, 1, 12, 0, 30, 0, time.UTC)
	f.Fuzz(func(t *testing.T, url, authorization, name, text string) {
		s := Signed{URL: url, Headers: []Header{
			{"Authorization", authorization}, {"X-Amz-Date", "20260601T120000Z"}, {"X-Amz-Security-Token", "x"}, {ServerHeader, here}, {name, text},
		}}
		r, err := s.check(Rule{Servers: []string{here}}, at)
		if err != nil {
			if fault.KindOf(err) != fault.Unauthenticated || strings.ContainsAny(err.Error(), "\r\n") {
				t.Errorf("%q", err)
			}
			return
		}
		_, rest, _ := strings.Cut(authorization, "SignedHeaders=")
		list, _, _ := strings.Cut(rest, ",")
		signed := strings.Split(list, ";")
		for _, h := range r.headers {
			found := h.Name == "authorization"
			for _, one := range signed {
				found = found || one == h.Name
			}
			if _, known := copied[h.Name]; !found || !known && h.Name != "authorization" && h.Name != "host" || strings.ContainsAny(h.Value, "\r\n") {
				t.Errorf("%q is copied; signed are %q", h, signed)
			}
		}
		if endpoints()[r.endpoint.host] != r.endpoint || "https://"+r.endpoint.host != strings.TrimSuffix(url, "/") || !strings.Contains(authorization, "/"+r.endpoint.region+"/sts/") || len(r.signature) != 64 {
			t.Errorf("%+v", r)
		}
	})
}

// An identity has the account and the partition that were asked for, and its unique id is that of its kind.
func FuzzAnswer(f *testing.F) {
	testkit.Seeds(f, "FuzzAnswer", 4)
	f.Fuzz(func(t *testing.T, data string) {
		answered, err := parseAnswer([]byte(data))
		if err != nil {
			return
		}
		id, err := answered.identity("aws")
		if err != nil {
			if strings.ContainsAny(err.Error(), "\r\n") {
				t.Errorf("%q", err)
			}
			return
		}
		prefix := map[bool]string{true: "AROA", false: "AIDA"}[strings.HasPrefix(id.ARN, "arn:aws:iam::"+id.Account+":role/")]
		if !strings.HasPrefix(id.ARN, "arn:aws:iam::"+id.Account+":") || len(id.Account) != 12 || !strings.HasPrefix(id.UniqueID, prefix) || strings.Contains(id.UniqueID, ":") {
			t.Errorf("%+v", id)
		}
	})
}
