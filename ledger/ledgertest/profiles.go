package ledgertest

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
)

// profileUse is a signature of a profile by an actor.
func profileUse(customer, content string) record.ProfileUse {
	return record.ProfileUse{
		Customer: customer, Actor: "uid 1000", Channel: "local", Credential: "uid 1000", Identity: "profiles/main",
		Profile: record.Profile{Identifier: "com.example." + content, UUID: "u"}, Content: []byte(content), Certificate: []byte("certificate"),
	}
}

func signProfile(t *testing.T, l *ledger.Ledger, u record.ProfileUse) {
	t.Helper()
	permit, err := l.AuthorizeProfile(t.Context(), u)
	must(t, err)
	must(t, l.ConcludeProfile(t.Context(), permit, record.Outcome{File: []byte("signed " + string(u.Content)), Operation: "op"}))
}

// testProfiles: each signature of a profile has an intent and an outcome, refusals are recorded, and an erasure leaves neither
// identifier nor customer.
func testProfiles(t *testing.T, f *fixture) {
	l := f.open(t)
	issue(t, l, use("acme", "csr", "key", "vendor"))
	signProfile(t, l, profileUse("", "wifi"))
	signProfile(t, l, profileUse("acme", "vpn"))
	permit, err := l.AuthorizeProfile(t.Context(), profileUse("acme", "mail"))
	must(t, err)
	must(t, l.ConcludeProfile(t.Context(), permit, record.Outcome{Err: errors.New("the key is gone")}))
	if _, err := l.AuthorizeProfile(t.Context(), profileUse("unknown", "vpn")); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a customer that is not known: %v", err)
	}
	for range 2 { // it is recorded once a day
		must(t, l.RefuseProfile(t.Context(), profileUse("acme", "vpn"), "policy.may"))
	}
	if got, want := kinds(t, l), "genesis customer intent issued profile profile-signed profile profile-signed profile profile-failed profile-refused profile-refused"; got != want {
		t.Errorf("entries %s, want %s", got, want)
	}
	r, err := l.Record(t.Context(), 7)
	must(t, err)
	if r.Entry.File != record.SHA256([]byte("signed vpn")) || r.Entry.CSR != record.SHA256([]byte("vpn")) || r.Entry.Operation != "op" || r.Customer != "acme" {
		t.Errorf("%+v", r.Entry)
	}
	r, err = l.Record(t.Context(), 6)
	must(t, err)
	if r.Profile == nil || r.Profile.Identifier != "com.example.vpn" {
		t.Errorf("profile %+v", r.Profile)
	}
	if err := l.ConcludeProfile(t.Context(), record.Permit{Request: permit.Request, Entry: 2}, record.Outcome{}); fault.KindOf(err) != fault.NotFound {
		t.Errorf("the permit of another entry: %v", err)
	}
	if err := l.ConcludeProfile(t.Context(), record.Permit{Request: permit.Request, Entry: 9}, record.Outcome{}); fault.KindOf(err) != fault.NotFound {
		t.Errorf("the permit of an outcome: %v", err)
	}
	if all, err := l.Signings(t.Context(), r.Entry.Time.Add(-time.Hour), r.Entry.Time.Add(time.Hour)); err != nil || len(all) != 4 || all[2].Kind != record.KindIssued ||
		all[2].Operation != "op" || all[3].Kind != record.KindFailed {
		t.Errorf("uses of keys: %+v, %v", all, err)
	}
	verified(t, l)
	must(t, l.EraseCustomer(t.Context(), "uid 1000", "local", "acme"))
	r, err = l.Record(t.Context(), 6)
	must(t, err)
	if r.Profile != nil || r.Customer != "" {
		t.Errorf("after the erasure: %+v of %q", r.Profile, r.Customer)
	}
	verified(t, l)
}

// testProfileLimits: freezes and the limit of a day apply to profiles, before the signature and before the release.
func testProfileLimits(t *testing.T, f *fixture) {
	l := f.open(t)
	u := profileUse("", "wifi")
	u.Policy, u.PerDay = record.Hash{1}, 2
	signProfile(t, l, u)
	permit, err := l.AuthorizeProfile(t.Context(), u)
	must(t, err)
	if _, err := l.AuthorizeProfile(t.Context(), u); fault.KindOf(err) != fault.Limited || fault.Rule(err) != "policy.per-day" {
		t.Errorf("the third of a day: %v", err)
	}
	must(t, l.Freeze(t.Context(), "bo", "local", ledger.Freeze{Scope: ledger.FreezeVendor, Name: "profiles/main", Reason: "lost"}))
	if err := l.ConcludeProfile(t.Context(), permit, record.Outcome{File: []byte("signed")}); fault.KindOf(err) != fault.Forbidden || fault.Rule(err) != "ledger.frozen" {
		t.Errorf("frozen before the release: %v", err)
	}
	if got := kinds(t, l); !strings.HasSuffix(got, "profile profile-refused frozen profile-refused") {
		t.Errorf("entries %s", got)
	}
	if _, err := l.AuthorizeProfile(t.Context(), profileUse("", "vpn")); fault.Rule(err) != "ledger.frozen" {
		t.Errorf("frozen: %v", err)
	}
	other := profileUse("", "vpn")
	other.Identity = "profiles/other"
	signProfile(t, l, other)
	verified(t, l)
}

// testProfilesTampered: Verify finds outcomes without an intent, and a second outcome.
func testProfilesTampered(t *testing.T, f *fixture) {
	l := f.open(t)
	permit, err := l.AuthorizeProfile(t.Context(), profileUse("", "wifi"))
	must(t, err)
	for range 2 { // agent concludes once; a program that does not is found out
		must(t, l.ConcludeProfile(t.Context(), permit, record.Outcome{File: []byte("signed")}))
	}
	forge := func(e record.Entry) {
		must(t, l.Append(t.Context(), func(_ context.Context, tx *ledger.Tx) error {
			_, err := tx.Append(&e)
			return err
		}))
	}
	forge(record.Entry{Kind: record.KindProfileSigned, Request: record.ID{9}})
	other, err := l.AuthorizeProfile(t.Context(), profileUse("", "vpn"))
	must(t, err)
	id, err := record.ParseID(other.Request)
	must(t, err)
	forge(record.Entry{Kind: record.KindProfileSigned, Request: id, CSR: record.Hash{7}})
	report, err := l.Verify(t.Context(), nil)
	must(t, err)
	var texts []string
	for _, d := range report.Defects {
		texts = append(texts, d.Text)
	}
	got := strings.Join(texts, "\n")
	if len(texts) != 3 || !strings.Contains(texts[0], "has one already") || !strings.Contains(texts[1], "was not authorized") || !strings.Contains(texts[2], "not about the profile") {
		t.Errorf("defects:\n%s", got)
	}
}
