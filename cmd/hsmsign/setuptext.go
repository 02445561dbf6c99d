package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"hsmsign/agent/policy"
	"hsmsign/config"
	"hsmsign/fault"
)

// render returns the text of the configuration. It is read again, so that no answer can mean something else in the file.
func (job *setupJob) render() (string, error) {
	c, b := job.config, &strings.Builder{}
	line := func(format string, args ...any) { fmt.Fprintf(b, format+"\n", args...) }
	line("# Made by hsmsign setup. hsmsign.example.yaml shows every setting, and hsmsign check-config explains those of this file.")
	line("key: %s", quoted(c.Key))
	line("cert: %s", quoted(c.Cert))
	for _, list := range []struct {
		name  string
		files []string
	}{{"chain", c.Chain}, {"trust-root", c.TrustRoot}} {
		if len(list.files) > 0 {
			line("%s: %s", list.name, quotedList(list.files))
		}
	}
	if c.Modules != nil {
		line("# No other PKCS#11 module is loaded.\nmodules: %s", quotedList(c.Modules))
	}
	l := c.Ledger
	line("ledger:\n  store: %s\n  verifier-key: %s\n  checkpoint-key: %s\n  last-checkpoint: %s", quoted(l.Store), quoted(l.VerifierKey), quoted(l.CheckpointKey), quoted(l.LastCheckpoint))
	line("serve:\n  listen: %s", quotedList(c.Serve.Listen))
	if t := c.Serve.TLS; t.Cert != "" {
		line("  tls: { cert: %s, key: %s }", quoted(t.Cert), quoted(t.Key))
	}
	line("callers:")
	for _, name := range slices.Sorted(maps.Keys(c.Callers)) {
		line("  %s: %s", name, callerText(c.Callers[name]))
	}
	line("roles:")
	for _, name := range slices.Sorted(maps.Keys(c.Roles)) {
		line("  %s: %s", name, roleText(c.Roles[name]))
	}
	read, err := config.Parse(job.path, []byte(b.String()))
	if err == nil && !reflect.DeepEqual(read, c) {
		err = fault.Internal.Errorf("the configuration cannot be written so that it means what was chosen")
	}
	return b.String(), err
}

// quoted returns a text as YAML in double quotes, which JSON's are.
func quoted(text string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // a reference contains '&'
	_ = enc.Encode(text)     // a string
	return strings.TrimSpace(b.String())
}

func quotedList(texts []string) string {
	all := make([]string, len(texts))
	for i, text := range texts {
		all[i] = quoted(text)
	}
	if len(all) == 0 {
		return "[]"
	}
	return "[ " + strings.Join(all, ", ") + " ]"
}

func callerText(c policy.CallerConfig) string {
	if len(c.Tokens) > 0 {
		return fmt.Sprintf("{ role: %s, owners: %s, tokens: %s }", c.Role, quotedList(c.Owners), quotedList(c.Tokens))
	}
	return fmt.Sprintf("{ role: %s, person: %s, uid: [ %d ] }", c.Role, quoted(c.Person), c.UID[0])
}

func roleText(r policy.RoleConfig) string {
	text := fmt.Sprintf("{ may: [ %s ], customers: %s", strings.Join(r.May, ", "), quotedList(r.Customers))
	if slices.Contains(r.May, policy.Sign) {
		approvals := r.Approvals.String()
		if !r.Approvals.None {
			approvals = "{ " + approvals + " }"
		}
		text += ", per-second: " + strconv.Itoa(r.PerSecond) + ", per-day: " + strconv.Itoa(r.PerDay) + ", approvals: " + approvals
	}
	return text + " }"
}
