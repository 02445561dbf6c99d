package fault

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

func TestFirst(t *testing.T) {
	warning, second := *Warn("csr.sha1", "old"), *Refuse("csr.pem", "damaged")
	first := *Refuse("chain.expired", "over %d days ago", 2).WithFix("renew").WithPortal(PortalExpired)
	if want := (Finding{"chain.expired", SeverityError, "over 2 days ago", "renew", PortalExpired}); first != want {
		t.Errorf("got %+v, want %+v", first, want)
	}
	if err := First([]Finding{warning, *Note("x.y", "")}); err != nil {
		t.Errorf("warnings and notes refuse nothing: %v", err)
	}
	err := fmt.Errorf("acme.csr: %w", First([]Finding{warning, first, second}))
	var found *Finding
	if !errors.As(err, &found) || found.ID != "chain.expired" || found.Subject() != Chain || Hint(err) != "renew" {
		t.Errorf("got %+v", found)
	}
	if err.Error() != "acme.csr: over 2 days ago" {
		t.Errorf("got %q", err)
	}
}

func TestKindAndHint(t *testing.T) {
	auth, down := Auth.New("authentication failed"), Unavailable.New("backend unavailable")
	csr := &Finding{ID: "csr.key-size", Severity: SeverityError, Message: "too short", Fix: "make another"}
	for _, tt := range []struct {
		name string
		err  error
		kind Kind
		hint string
	}{
		{"nil", nil, None, ""},
		{"plain", errors.New("x"), Internal, ""},
		{"family", auth, Auth, ""},
		{"wrapped family", fmt.Errorf("open: %w", Errorf("%w: no PIN", auth).Fix("give one")), Auth, "give one"},
		{"own kind hides that of what it wraps", Refused.Errorf("a.csr: %w", down), Refused, ""},
		{"side by side, one way", fmt.Errorf("%w: %w", down, auth), Auth, ""},
		{"side by side, the other", errors.Join(auth, down), Auth, ""},
		{"finding of a CSR", fmt.Errorf("a.csr: %w", csr), Refused, "make another"},
		{"finding of a push certificate", &Finding{ID: "push.topic"}, Refused, ""},
		{"finding of the chain", &Finding{ID: "chain.expired"}, Vendor, ""},
		{"finding of a request", &Finding{ID: "request.plist"}, Defects, ""},
		{"outer hint", WithHint(csr, "ask the customer"), Refused, "ask the customer"},
		{"inner hint", WithHint(fmt.Errorf("x: %w", csr), ""), Refused, "make another"},
		{"hint behind an error without", errors.Join(down, csr), Refused, "make another"},
		{"time is over", context.DeadlineExceeded, Unavailable, ""},
		{"time is over, for a reason", fmt.Errorf("%w: %w", auth, context.DeadlineExceeded), Auth, ""},
		{"interrupted", fmt.Errorf("%w: %w", down, context.Canceled), Interrupted, ""},
		{"interrupted at an input", Refused.Errorf("stdin: %w", context.Canceled), Interrupted, ""},
	} {
		if kind, hint := KindOf(tt.err), Hint(tt.err); kind != tt.kind || hint != tt.hint {
			t.Errorf("%s: %v, %q; want %v, %q", tt.name, kind, hint, tt.kind, tt.hint)
		}
	}
	if WithHint(nil, "x") != nil {
		t.Error("a hint makes an error of nil")
	}
}

// Every kind has a row, and no two have the same problem type.
func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for k := None; k <= Internal; k++ {
		if seen[k.Problem()] || k.String() == "" || k.Status() < 200 || k != None && k.Exit() == 0 {
			t.Errorf("%d: %q, exit %d, status %d", k, k.Problem(), k.Exit(), k.Status())
		}
		seen[k.Problem()] = true
	}
	if len(table) != int(Internal)+1 {
		t.Errorf("%d rows", len(table))
	}
}

func TestParseProblem(t *testing.T) {
	for k := None; k <= Internal; k++ {
		if got, ok := ParseProblem(k.Problem()); !ok || got != k {
			t.Errorf("%v: %v, %v", k, got, ok)
		}
	}
	for _, urn := range []string{"", "refused", "urn:hsmsign:problem:", "urn:hsmsign:problem:other", "about:blank", "URN:hsmsign:problem:refused"} {
		if got, ok := ParseProblem(urn); ok {
			t.Errorf("%q: %v", urn, got)
		}
	}
}

func TestClip(t *testing.T) {
	for _, tt := range []struct {
		text  string
		limit int
		want  string
	}{
		{"short", 5, "short"},
		{"longer", 5, "lo..."},
		{" two\n\tlines\x1b[2J ", 40, "two lines [2J"},
		{"über alles", 4, "..."},
		{"", 3, ""},
	} {
		if got := Clip(tt.text, tt.limit); got != tt.want {
			t.Errorf("%q: %q, want %q", tt.text, got, tt.want)
		}
	}
}
