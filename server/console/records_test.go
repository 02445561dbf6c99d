package console

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"hsmsign/api"
	"hsmsign/internal/testkit"
)

func TestOwn(t *testing.T) {
	r := api.Request{State: "pending", Approval: &api.Approval{Requester: api.Requester{Caller: "ci", Person: "ida", Owners: []string{"ada"}}, Given: []api.Approver{{Person: "gus"}}}}
	for _, tt := range []struct {
		me   api.Me
		want string
	}{
		{api.Me{Caller: "fay", Person: "fay"}, ""}, {api.Me{Caller: "robot"}, "as a machine"}, {api.Me{Caller: "ci", Person: "x"}, "yourself"}, {api.Me{Caller: "ida2", Person: "ida"}, "yourself"},
		{api.Me{Caller: "ada", Person: "ada"}, "own the machine"}, {api.Me{Caller: "gus", Person: "gus"}, "have approved"},
	} {
		if got := NewPending(r, tt.me); (got.Own == "") != (tt.want == "") || !strings.Contains(got.Own, tt.want) || !got.Waits {
			t.Errorf("%+v: %q", tt.me, got.Own)
		}
	}
}

func TestCompare(t *testing.T) {
	csr := func(key string, names ...string) (string, string) {
		var subject pkix.Name
		for i, name := range names {
			subject.ExtraNames = append(subject.ExtraNames, pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{2, 5, 4, []int{3, 10, 99}[min(i, 2)]}, Value: name})
		}
		der := testkit.Must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject}, testkit.Key(key)))
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), api.SHA256(der)
	}
	request := func(key string, names ...string) api.Request {
		text, hash := csr(key, names...)
		return api.Request{CSR: text, CSRSHA256: hash, KeySHA256: key}
	}
	before, hash := csr("a", "acme", "ACME", "x", "y")
	previous := &api.PreviousCSR{CSR: before, CSRSHA256: hash, KeySHA256: "a"}
	for want, r := range map[string]api.Request{
		"It is the same CSR": {CSR: before, CSRSHA256: hash, KeySHA256: "a"}, "The subject and the key are the same": request("a", "acme"),
		"The key is the same as before. The subject changed": request("a", "acme", "ACME", "x", "z"), "The subject is the same as before. The key is a new one": request("b", "acme", "ACME", "x", "y"),
		"The subject and the key changed": request("b", "acme"), "No CSR of this customer": request("a", "acme"),
	} {
		if r.Previous = previous; strings.HasPrefix(want, "No CSR") {
			r.Previous = nil
		}
		if strings.HasPrefix(want, "The subject and the key are") {
			r.CSR, r.CSRSHA256 = before, "another"
		}
		got := Compare(r)
		if !strings.HasPrefix(got.Verdict, want) || got.First != (r.Previous == nil) {
			t.Errorf("%q; want %q", got.Verdict, want)
		}
	}
	r := request("b", "acme", "ACME", "x", "z")
	r.Previous = previous
	found := map[string]Difference{}
	for _, d := range Compare(r).Facts {
		found[d.What] = d
	}
	if d := found["Subject 2.5.4.99"]; d.Before != "x + y" || d.Now != "x + z" || found["Subject CN"].Same() != true || found["Key"].Now != "RSA, 2048 bits" || found["Key SHA-256"].Same() {
		t.Errorf("%+v", found)
	}
	// A CSR that cannot be read does not look like an equal one.
	if got := Compare(api.Request{CSR: "x", Subject: "CN=a", Previous: &api.PreviousCSR{Subject: "CN=b"}}); !got.Changed {
		t.Errorf("%+v", got)
	}
}

func TestExpiry(t *testing.T) {
	now := time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
	for hours, want := range map[int]string{
		-49: "expired, expired 2 days ago", -25: "expired, expired 1 day ago", -1: "expired, expired today", 0: "expired, expired today", 1: "expires soon, less than a day left", 25: "expires soon, 1 day left",
		30*24 - 1: "expires soon, 29 days left", 30 * 24: "valid, 30 days left",
	} {
		e := NewExpiry(api.Customer{Push: &api.CustomerPush{NotAfter: api.Time(now.Add(time.Duration(hours) * time.Hour))}}, now)
		if got := e.State + ", " + e.Left(); got != want {
			t.Errorf("in %d hours: %q, want %q", hours, got, want)
		}
	}
	if e := NewExpiry(api.Customer{}, now); e.State != "no push certificate" || e.Left() != "" {
		t.Errorf("%+v", e)
	}
}

func TestTimeline(t *testing.T) {
	now := time.Date(2027, 3, 15, 12, 0, 0, 0, time.UTC)
	var list api.List[api.Customer]
	list.Items = append(list.Items, api.Customer{Name: "none"})
	for n := range 30 {
		list.Items = append(list.Items, api.Customer{Name: fmt.Sprint(strings.Repeat("long ", 10), n), Push: &api.CustomerPush{NotAfter: api.Time(now.AddDate(0, 0, n*50-200))}})
	}
	u := testkit.Must(url.Parse("/console/customers?match=o&after=x"))
	v := NewCustomers(u, list, now)
	picture := v.Timeline
	if len(picture.Bars) != timelineRows || picture.Left != 5 || len(picture.Months) < 6 || !strings.HasPrefix(picture.Text, "Push certificates on this page: 30. Expired: 5. Expiring within 30 days: 0.") {
		t.Errorf("%+v", picture)
	}
	for i, bar := range picture.Bars {
		if bar.X < timelineNames || bar.X+bar.Width > picture.Width || len([]rune(bar.Name)) > timelineName || bar.Y+14 > picture.Bottom || bar.Class != map[bool]string{true: "bad", false: "good"}[i < 5] {
			t.Errorf("bar %d: %+v", i, bar)
		}
	}
	if NewCustomers(u, api.List[api.Customer]{}, now).Timeline != nil {
		t.Error("a picture of nothing")
	}
	if v.Headings[0].Path != "/console/customers?match=o&sort=name" || v.Headings[1].Sorted != "ascending" || v.Headings[0].Sorted != "" || v.Pager.First != "/console/customers?match=o" {
		t.Errorf("%+v %+v", v.Headings, v.Pager)
	}
}

func TestShows(t *testing.T) {
	e := Entry{LedgerEntry: api.LedgerEntry{Index: 7, Kind: "issued", CSRSHA256: "ab"}, Proof: api.EntryProof{Index: 7, Origin: "a\u202eb", Entries: 9, Hashes: 4}}
	if got := strings.Join(e.Shows(), " "); !strings.Contains(got, "a[U+202E]b") || !strings.Contains(got, "No witness") || e.Meaning() == "" || len(e.Hashes()) != 1 {
		t.Errorf("%q", got)
	}
	e.Proof.Cosignatures = []api.LedgerCosignature{{Witness: "w1", Operator: "o"}, {Witness: "w2", Operator: "o"}}
	if got := strings.Join(e.Shows(), " "); !strings.Contains(got, "Witnesses of 1 operator have") || strings.Contains(got, "No witness") {
		t.Errorf("%q", got)
	}
}
