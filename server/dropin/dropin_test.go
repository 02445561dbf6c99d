package dropin

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/lifecycle/mdmcert"
	"hsmsign/server/notify"
)

func TestDecodeFleet(t *testing.T) {
	for body, want := range map[string]string{
		`{"unsignedCsrData":"Y3Ny"}`:                  "csr",
		`{"csr":"Y3Ny"}`:                              "csr",
		`{"unsignedCsrData":"Y3Ny","csr":"b3RoZXI="}`: "csr",
		`{"unsignedCsrData":"Y3Ny","new":[1]}`:        "csr",
	} {
		if got, err := DecodeFleet([]byte(body)); string(got) != want || err != nil {
			t.Errorf("%s: %q, %v", body, got, err)
		}
	}
	for _, body := range []string{``, `[]`, `{}`, `null`, `{"unsignedCsrData":5}`, `{"unsignedCsrData":"Y3N="}`, `{"unsignedCsrData":"-----BEGIN"}`, `{"unsignedCsrData":"Y3Ny"} {}`} {
		if got, err := DecodeFleet([]byte(body)); fault.KindOf(err) != fault.Usage || got != nil || fault.Hint(err) == "" {
			t.Errorf("%s: %q, %v", body, got, err)
		}
	}
}

func TestCheckFleetQuery(t *testing.T) {
	for query, want := range map[string]string{
		"deliveryMethod=json": "", "alt=json": "", "alt=json&deliveryMethod=json": "",
		"": "sends no mail", "deliveryMethod=email": "another parameter", "deliveryMethod=json&deliveryMethod=email": "another parameter", "deliverymethod=json": "another parameter", "customer=acme&alt=json": "another parameter",
	} {
		values := testkit.Value(url.ParseQuery(query))(t)
		if err := CheckFleetQuery(values); (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || fault.KindOf(err) != fault.Usage) {
			t.Errorf("%q: %v", query, err)
		}
	}
}

func TestDecodeZentral(t *testing.T) {
	const signed = `{"headers": {"A": "1", "A": "2"}}`
	got, err := DecodeZentral([]byte(`{"b64_csr": "Y3Ny", "fqdn": "x", "iam_request": ` + signed + `}`))
	if err != nil || string(got.CSR) != "csr" || string(got.Signed) != signed {
		t.Errorf("%s, %v", got.Signed, err)
	}
	for _, body := range []string{`{"b64_csr":"Y3Ny"}`, `{"b64_csr":"Y3Ny","iam_request":null}`} {
		if got, err := DecodeZentral([]byte(body)); err != nil || got.Signed != nil {
			t.Errorf("%s: %s, %v", body, got.Signed, err)
		}
	}
	big := `{"b64_csr":"Y3Ny","iam_request":{"a":"` + strings.Repeat("x", maxSigned) + `"}}`
	for body, kind := range map[string]fault.Kind{``: fault.Usage, `{}`: fault.Usage, `{"b64_csr":"Y3Ny","iam_request":"x"}`: fault.Usage, `{"b64_csr":"Y3Ny","iam_request":[]}`: fault.Usage, `{"b64_csr":"!","iam_request":{}}`: fault.Usage, big: fault.TooLarge} {
		if got, err := DecodeZentral([]byte(body)); fault.KindOf(err) != kind || got.CSR != nil || len(err.Error()) > 200 {
			t.Errorf("%.50s: %v", body, err)
		}
	}
}

// The answers have no newline, as their clients expect.
func TestEncode(t *testing.T) {
	if got := string(EncodeFleet([]byte("cGxpc3Q=\n"))); got != `{"csr":"`+base64.StdEncoding.EncodeToString([]byte("cGxpc3Q="))+`"}` {
		t.Error(got)
	}
	if got := string(EncodeZentral([]byte("cGxpc3Q=\n"))); got != `{"signed_csr":"cGxpc3Q="}` {
		t.Error(got)
	}
	if got := Line("first\nsecond", "do\tthis "+strings.Repeat("x", 1000)); len(got) != maxLine || !strings.HasPrefix(got, "first second; do this xxx") {
		t.Error(got)
	}
}

func TestCheckAddress(t *testing.T) {
	for _, tt := range []struct{ registered, claimed, want string }{
		{"mdm@acme.example", "mdm@acme.example", ""}, {"mdm@acme.example", "MDM@Acme.example", ""},
		{"mdm@acme.example", "evil@evil.example", "is not the one that is registered"}, {"mdm@acme.example", "", "is not the one that is registered"},
		{"", "", "no email address is registered"}, {"call Ada", "call Ada", "no email address is registered"},
		{"Ada <mdm@acme.example>", "mdm@acme.example", "no email address is registered"}, {"a@b.example, c@d.example", "a@b.example", "no email address is registered"},
		{"<mdm@acme.example>", "<mdm@acme.example>", "no email address is registered"},
		{"a@b.example\r\nBcc: c@d.example", "a@b.example", "no email address is registered"},
	} {
		to, err := CheckAddress(tt.registered, tt.claimed)
		if tt.want == "" && (err != nil || to != tt.registered) || tt.want != "" && (fault.KindOf(err) != fault.Refused || to != "" || !strings.Contains(err.Error(), tt.want) || tt.registered != "" && strings.Contains(err.Error(), tt.registered)) {
			t.Errorf("%q for %q: %q, %v", tt.claimed, tt.registered, to, err)
		}
	}
}

// books is a ledger with one request and one customer.
type books struct {
	request          ledger.RequestRecord
	customer         ledger.CustomerRecord
	none, gone, hold error
	permit           record.Permit
}

// approved makes the request one that others had to approve.
func (b *books) approved(until time.Time, state string) {
	b.request.State, b.request.File, b.request.Approval = state, nil, &ledger.Approval{Asked: record.Asked{Until: until}}
}

func (b *books) Request(context.Context, record.ID) (*ledger.RequestRecord, error) {
	return &b.request, b.none
}

func (b *books) Customer(context.Context, record.ID) (*ledger.CustomerRecord, error) {
	return &b.customer, b.gone
}

func (b *books) Release(_ context.Context, permit record.Permit) error {
	b.permit = permit
	return b.hold
}

// What a message becomes depends on what the ledger says at that moment, and on nothing in the message.
func TestMail(t *testing.T) {
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	recipient := testkit.Value(mdmcert.NewRecipient(t.Context(), testkit.NewSigner(testkit.Key("recipient")), now))(t)
	down := fault.Unavailable.New("the database does not answer")
	for name, tt := range map[string]struct {
		change func(b *books, m *ledger.Message)
		want   error // nil: a mail
	}{
		"issued":                 {func(*books, *ledger.Message) {}, nil},
		"issued again":           {func(b *books, _ *ledger.Message) { b.request.State = "superseded" }, nil},
		"pending":                {func(b *books, _ *ledger.Message) { b.request.State, b.request.File = "pending", nil }, notify.ErrNotYet},
		"being signed":           {func(b *books, _ *ledger.Message) { b.request.State, b.request.File = "intent", nil }, notify.ErrNotYet},
		"failed":                 {func(b *books, _ *ledger.Message) { b.request.State, b.request.File = "failed", nil }, notify.ErrNotYet},
		"failed long ago":        {func(b *books, m *ledger.Message) { b.request.File, m.Created = nil, now.Add(-maxWait-time.Second) }, notify.ErrNever},
		"rejected":               {func(b *books, _ *ledger.Message) { b.request.State, b.request.File = "rejected", nil }, notify.ErrNever},
		"expired":                {func(b *books, _ *ledger.Message) { b.request.State, b.request.File = "expired", nil }, notify.ErrNever},
		"refused":                {func(b *books, _ *ledger.Message) { b.request.State, b.request.File = "refused", nil }, notify.ErrNever},
		"approved":               {func(b *books, _ *ledger.Message) { b.approved(now.Add(time.Hour), "approved") }, notify.ErrNotYet},
		"approved, then refused": {func(b *books, _ *ledger.Message) { b.approved(now.Add(time.Hour), "refused") }, notify.ErrNotYet},
		"approved too late":      {func(b *books, _ *ledger.Message) { b.approved(now, "failed") }, notify.ErrNever},
		"unknown":                {func(b *books, _ *ledger.Message) { b.none = fault.NotFound.New("none") }, notify.ErrNever},
		"another customer":       {func(_ *books, m *ledger.Message) { m.Customer = record.ID{9} }, notify.ErrNever},
		"erased":                 {func(b *books, _ *ledger.Message) { b.gone = fault.NotFound.New("none") }, notify.ErrNever},
		"frozen":                 {func(b *books, _ *ledger.Message) { b.hold = fault.Forbidden.New("frozen") }, notify.ErrNotYet},
		"frozen for long": {func(b *books, m *ledger.Message) {
			b.hold, m.Created = fault.Forbidden.New("frozen"), now.Add(-maxWait-time.Second)
		}, notify.ErrNever},
		"no address":      {func(b *books, _ *ledger.Message) { b.customer.Contact = "call Ada" }, notify.ErrNever},
		"a bad recipient": {func(_ *books, m *ledger.Message) { m.Payload = []byte("x") }, notify.ErrNever},
		"request down":    {func(b *books, _ *ledger.Message) { b.none = down }, down},
		"release down":    {func(b *books, _ *ledger.Message) { b.hold = down }, down},
		"customer down":   {func(b *books, _ *ledger.Message) { b.gone = down }, down},
	} {
		b := &books{request: ledger.RequestRecord{ID: record.ID{1}, CustomerID: record.ID{2}, Actor: "acme", State: record.KindIssued, File: []byte("cGxpc3Q="), Vendor: record.Hash{3}},
			customer: ledger.CustomerRecord{Customer: ledger.Customer{Name: "Acme Inc", Contact: "mdm@acme.example"}}}
		m := ledger.Message{About: record.ID{1}, Customer: record.ID{2}, Payload: recipient, Created: now}
		tt.change(b, &m)
		got, err := Deliveries{Ledger: b, Identity: func(record.Hash) string { return "2026" }, Now: func() time.Time { return now }}.Mail(t.Context(), m)
		if tt.want != nil {
			if !errors.Is(err, tt.want) || got.To != "" || errors.Is(err, notify.ErrNever) && errors.Is(err, notify.ErrNotYet) {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
			continue
		}
		if err != nil || got.To != "mdm@acme.example" || strings.Contains(got.Subject+got.Text+got.Name, "cme") {
			t.Errorf("%s: %+v, %v", name, got, err)
			continue
		}
		if want := (record.Permit{Request: record.ID{1}.String(), Customer: record.ID{2}, Actor: "acme", Identity: "2026"}); b.permit.Request != want.Request || b.permit.Customer != want.Customer || b.permit.Actor != want.Actor || b.permit.Identity != want.Identity {
			t.Errorf("%s: permit %+v", name, b.permit)
		}
		if content, err := mdmcert.Decrypt(got.Data, testkit.Key("recipient")); err != nil || string(content) != "cGxpc3Q=" {
			t.Errorf("%s: %q, %v", name, content, err)
		}
	}
}

// What is decoded is a CSR that the body has, and every error is one line of kind usage or too large.
func checkDecoded(t *testing.T, data, csr []byte, err error) {
	t.Helper()
	switch {
	case err != nil && (csr != nil || fault.KindOf(err) != fault.Usage && fault.KindOf(err) != fault.TooLarge || strings.ContainsAny(err.Error(), "\r\n")):
		t.Errorf("%q, %v", csr, err)
	case err == nil && (len(csr) == 0 || !json.Valid(data)):
		t.Errorf("%q of %q", csr, data)
	}
}

func FuzzDecodeFleet(f *testing.F) {
	testkit.Seeds(f, "FuzzDecodeFleet", 3)
	f.Fuzz(func(t *testing.T, data []byte) {
		csr, err := DecodeFleet(data)
		checkDecoded(t, data, csr, err)
		if err != nil {
			return
		}
		again, err := DecodeFleet(encode(map[string][]byte{"unsignedCsrData": csr}))
		if err != nil || string(again) != string(csr) {
			t.Errorf("%q, then %q, %v", csr, again, err)
		}
	})
}

func FuzzDecodeZentral(f *testing.F) {
	testkit.Seeds(f, "FuzzDecodeZentral", 3)
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := DecodeZentral(data)
		checkDecoded(t, data, o.CSR, err)
		if o.Signed != nil && (!json.Valid(o.Signed) || len(o.Signed) > maxSigned || !strings.Contains(string(data), string(o.Signed))) {
			t.Errorf("signed %q", o.Signed)
		}
	})
}

// The key is the one that ParseOrder returns: who asks is known before the order is read.
func FuzzKey(f *testing.F) {
	testkit.Seeds(f, "FuzzKey", 3)
	f.Fuzz(func(t *testing.T, data []byte) {
		key, err := Key(data)
		if err != nil && (key != "" || fault.KindOf(err) != fault.Usage) {
			t.Errorf("%q, %v", key, err)
		}
		if _, parsed, parseErr := mdmcert.ParseOrder(data); parseErr == nil && (err != nil || parsed != key) {
			t.Errorf("%q, %v; ParseOrder returns %q", key, err, parsed)
		}
	})
}
