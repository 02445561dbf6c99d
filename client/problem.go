package client

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"sync"

	"hsmsign/api"
	"hsmsign/fault"
)

const (
	maxProblem = 64 << 10
	maxDetail  = 1024 // bytes of a text of the service in an error
)

// ruleForm matches the ids of rules. It is compiled at its first use.
var ruleForm = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z]+\.[a-z0-9-]{1,64}$`) })

// problem returns the error that a problem details object (RFC 9457) describes. What cannot be read is an error of the status.
func problem(status int, data []byte) error {
	var p api.Problem
	kind, ok := fault.None, false
	if json.Unmarshal(data, &p) == nil {
		kind, ok = fault.ParseProblem(p.Type)
	}
	if !ok || kind == fault.None {
		return statusError(status)
	}
	if kind == fault.Interrupted { // the service was; this program was not
		kind = fault.Unavailable
	}
	detail, fix := fault.Clip(p.Detail, maxDetail), fault.Clip(p.Fix, maxDetail)
	if detail == "" {
		detail = "the service refused the request: " + kind.String()
	}
	if !ruleForm().MatchString(p.Rule) {
		return kind.Errorf("%s", detail).Fix(fix)
	}
	if found := (&fault.Finding{ID: p.Rule, Severity: fault.SeverityError, Message: detail, Fix: fix}); isFinding(found) && found.Kind() == kind {
		return found
	}
	return kind.Errorf("%s", strings.TrimSuffix(detail, " ["+p.Rule+"]")).Rule(p.Rule).Fix(fix)
}

// isFinding returns whether a rule is one about an input. The others are about callers and the ledger.
func isFinding(f *fault.Finding) bool {
	switch f.Subject() {
	case fault.CSR, fault.Chain, fault.Request, fault.Push:
		return true
	}
	return false
}

// statuses are the kinds of answers without a problem details object. Such an answer is not from hsmsign, but from something
// before it.
var statuses = map[int]fault.Kind{
	http.StatusUnauthorized: fault.Unauthenticated, http.StatusRequestEntityTooLarge: fault.TooLarge, http.StatusTooManyRequests: fault.Limited,
}

// statusError returns the error of an answer whose body says nothing.
func statusError(status int) error {
	kind, ok := statuses[status]
	if !ok {
		kind = fault.Unavailable
	}
	return kind.Errorf("the service answers with status %d and without an error of hsmsign", status).
		Fix("check that the address is that of hsmsign serve, and what is between it and this machine")
}
