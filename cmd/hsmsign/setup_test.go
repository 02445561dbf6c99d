//go:build linux

package main

import (
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

	"hsmsign/config"
	"hsmsign/internal/testkit"
)

// answers are what a person types at the questions of setup, each with the text that shows the question.
type answers []struct{ question, answer string }

// dialogue is a whole one, up to the confirmation. It is in a folder of encryptedKey.
func dialogue(t *testing.T) answers {
	t.Helper()
	me := testkit.Value(user.Current())(t)
	return answers{
		{"whole reference (hsmsign help keys): ", "absent.key"},
		{"whole reference (hsmsign help keys): ", "enc.key"},
		{"passphrase of ", "correct-horse"},
		{"vendor certificate, or the bundle of vendor import (PEM, DER): ", "root.pem"},
		{"if it is not the bundle, separated by \":\" [none]: ", ""},
		{"for a test PKI only [none]: ", "root.pem"},
		{"vendor certificate, or the bundle of vendor import (PEM, DER): ", "chain.pem"},
		{"if it is not the bundle, separated by \":\" [none]: ", ""},
		{"for a test PKI only [none]: ", "root.pem"},
		{"postgres://USER@HOST/DATABASE [sqlite:", ""},
		{"name of the new ledger, as example.com/mdm [", "example.com/typed"},
		{"for clients with a certificate or token [unix://", ""},
		{"Unix user who may sign, read, manage customers and freeze", me.Username},
		{"none, or a number [none]: ", "many"},
		{"none, or a number [none]: ", ""},
		{"name of a machine that gets a token to sign, as portal [none]: ", ""},
		{"write them? [y/N] ", "y"},
	}
}

// talk answers the questions of a program; it stops before the last n answers.
func (a answers) talk(term *terminal, n int) {
	term.t.Helper()
	seen := map[string]int{}
	for _, step := range a[:len(a)-n] {
		seen[step.question]++
		term.waitFor(step.question, seen[step.question])
		if strings.HasPrefix(step.question, "passphrase") {
			term.waitForEcho(false)
		}
		term.write(step.answer + "\n")
	}
}

// From questions to a configuration: wrong answers are explained and asked for again, and a passphrase is asked for once and kept in a
// file of the user alone.
func TestSetupDialogue(t *testing.T) {
	dir := encryptedKey(t)
	path := filepath.Join(dir, "made", "hsmsign.yaml")
	doc := readDoc(t, "service.md")
	for _, step := range dialogue(t)[3:] {
		if question, _, _ := strings.Cut(step.question, " ["); !strings.Contains(doc, question) {
			t.Errorf("the dialogue of docs/service.md has no %q", question)
		}
	}
	term := startOnTerminal(t, dir, "--config", path, "setup")
	dialogue(t).talk(term, 0)
	if code := term.exit(); code != 0 {
		t.Fatalf("exit code %d: %s\n%s", code, term.shown(), term.stdout.String())
	}
	for text, want := range map[string]int{"correct-horse": 0, "passphrase of": 1, "no such file": 1, "approvals is \"many\"; write none, or a number from 1 to 9": 1} {
		if n := strings.Count(term.shown(), text); n != want {
			t.Errorf("%q is shown %d times: %s", text, n, term.shown())
		}
	}
	c := testkit.Value(config.Load(path))(t)
	if want := "file:" + dir + "/enc.key?passphrase-file=" + dir + "/made/passphrase"; c.Key != want || c.Cert != dir+"/chain.pem" || c.Modules == nil || len(c.Callers) != 1 {
		t.Errorf("the configuration is %+v", c)
	}
	secret := filepath.Join(dir, "made", "passphrase")
	if info := testkit.Value(os.Stat(secret))(t); info.Mode() != 0o600 || string(testkit.Value(os.ReadFile(secret))(t)) != "correct-horse\n" {
		t.Errorf("mode %v", info.Mode())
	}
	for _, text := range []string{"ok       chain ", "verifier key of the ledger: ", "check-config and doctor accept it\n", "hsmsign serve --config " + path} {
		if !strings.Contains(term.stdout.String(), text) {
			t.Errorf("standard output has no %q: %s", text, term.stdout.String())
		}
	}
	if pinned := string(testkit.Value(os.ReadFile(filepath.Join(dir, "made", "ledger.pub")))(t)); !strings.HasPrefix(pinned, "example.com/typed+") {
		t.Errorf("the verifier key is %q", pinned)
	}
}

// Whoever ends setup before the confirmation, or does not confirm, has changed nothing.
func TestSetupInterrupted(t *testing.T) {
	all := dialogue(t)
	for _, tt := range []struct {
		name  string
		left  int // answers that are not given
		typed string
		code  int
	}{
		{"first question", len(all), "\x03", 130}, {"passphrase", len(all) - 2, "\x03", 130}, {"ledger", 8, "\x03", 130},
		{"confirmation", 1, "\x03", 130}, {"not confirmed", 1, "no\n", 2}, {"end of the terminal", len(all), "\x04", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := encryptedKey(t)
			path := filepath.Join(dir, "made", "hsmsign.yaml")
			term := startOnTerminal(t, dir, "--config", path, "setup")
			all.talk(term, tt.left)
			seen := 0
			for _, step := range all[:len(all)-tt.left+1] {
				if step.question == all[len(all)-tt.left].question {
					seen++
				}
			}
			term.waitFor(all[len(all)-tt.left].question, seen)
			term.write(tt.typed)
			if code := term.exit(); code != tt.code {
				t.Errorf("exit code %d, want %d: %s", code, tt.code, term.shown())
			}
			if _, err := os.Stat(filepath.Dir(path)); !os.IsNotExist(err) {
				t.Errorf("a folder was made: %v", err)
			}
		})
	}
}
