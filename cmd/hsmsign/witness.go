package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/open"
	"hsmsign/secret"
)

const (
	// maxCopies is how many copies a ledger may have: each is written after a commit.
	maxCopies = 16
	// maxWitnessKeys is the maximum length of a file with the verifier keys of witnesses.
	maxWitnessKeys = 64 << 10
	// maxPiped is the maximum length of checkpoints that come through a pipe; a file may be larger.
	maxPiped = 64 << 20
)

func witnessKeyFlag() cli.Flag {
	return listFlag("witness-key", "public `KEY` of a witness whose cosignatures count, or a file with such keys, besides the configured ones; may be repeated")
}

// requiredText is the configuration's value of --required.
func requiredText(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// publishing reads and checks the configuration's witnesses and copies.
func (c *ledgerConfig) publishing(s *settings) error {
	configured := s.config.Ledger
	c.copies, c.required = configured.Copies, configured.Required
	where := func(err error) error { return fmt.Errorf("%s: ledger: %w", s.path, err) }
	for _, w := range configured.Witnesses {
		if w.URL == "" || w.Operator == "" {
			return where(fault.Usage.Errorf("the witness %q has no url or no operator", w.Name).Fix("write { name: NAME, operator: WHO, url: https://HOST/PATH, verifier-key: KEY }"))
		}
		c.witnesses = append(c.witnesses, ledger.Witness{Name: w.Name, Operator: w.Operator, URL: w.URL, Verifier: w.VerifierKey})
	}
	if err := ledger.CheckWitnesses(c.witnesses, c.required); err != nil {
		return where(err)
	}
	if len(c.copies) > maxCopies {
		return where(fault.Usage.Errorf("%d copies", len(c.copies)).Fix(fmt.Sprintf("configure at most %d", maxCopies)))
	}
	seen := map[string]string{filepath.Clean(c.last): "last-checkpoint", filepath.Clean(c.keyFile): "checkpoint-key", filepath.Clean(open.Path(c.reference)): "store"}
	for _, path := range c.copies {
		if what := seen[filepath.Clean(path)]; what != "" {
			return where(fault.Usage.Errorf("the copy %q is also the %s", path, what).Fix("name another file, on another disk"))
		}
		seen[filepath.Clean(path)] = "file of another copy"
	}
	return nil
}

// checkAnchors refuses to append to a ledger whose newest checkpoint is kept nowhere but in the store: nobody would find a
// rollback.
func (c *ledgerConfig) checkAnchors() error {
	if c.last != "" || c.required > 0 {
		return nil
	}
	return fault.Usage.Errorf("the newest checkpoint of %s would be kept in the store alone", c.name()).
		Fix("name a file on this host with --last-checkpoint (ledger: last-checkpoint), or configure witnesses and required: 1; see docs/ledger.md")
}

// publishingSettings are the configuration's settings about copies and witnesses, for check-config.
func (s *settings) publishingSettings() []api.Setting {
	configured := s.config.Ledger
	var witnesses, required []string
	for _, w := range configured.Witnesses {
		witnesses = append(witnesses, fmt.Sprintf("%s of %s at %s", w.Name, w.Operator, w.URL))
	}
	if configured.Required > 0 {
		required = []string{strconv.Itoa(configured.Required)}
	}
	return []api.Setting{
		inFile("copies", s.path, len(configured.Copies) > 0, configured.Copies), inFile("witnesses", s.path, len(witnesses) > 0, witnesses),
		inFile("required", s.path, len(required) > 0, required),
	}
}

// knownWitnesses returns the configured witnesses and those of --witness-key, whose names are those of their keys.
func (s *settings) knownWitnesses() ([]ledger.Witness, error) {
	var all []ledger.Witness
	for _, w := range s.config.Ledger.Witnesses {
		all = append(all, ledger.Witness{Name: w.Name, Operator: w.Operator, URL: w.URL, Verifier: w.VerifierKey})
	}
	values, from := s.list("witness-key")
	for _, value := range values {
		keys := []string{value}
		if _, err := os.Stat(value); err == nil {
			data, err := secret.ReadFile(value, maxWitnessKeys, true)
			if err != nil {
				return nil, fault.Usage.Errorf("%s: %w", from, err).Fix("name the key of a witness, or a file with keys")
			}
			if keys = strings.Fields(string(data)); len(keys) == 0 {
				return nil, fault.Usage.Errorf("%s: %q is empty", from, value).Fix("name the key of a witness, or a file with keys")
			}
		}
		for _, key := range keys {
			if slices.ContainsFunc(all, func(w ledger.Witness) bool { return w.Verifier == key }) {
				continue
			}
			name, _, _ := strings.Cut(key, "+")
			w := ledger.Witness{Name: name, Operator: name, Verifier: key}
			if slices.ContainsFunc(all, func(other ledger.Witness) bool { return other.Name == name }) {
				w.Name = strings.Join(strings.SplitN(key+"++", "+", 3)[:2], "+") // with the key hash
			}
			all = append(all, w)
		}
	}
	if err := ledger.CheckWitnesses(all, 0); err != nil {
		return nil, err
	}
	return all, nil
}

// requiredCosignatures returns how many operators must have cosigned what is verified.
func (s *settings) requiredCosignatures() (int, error) { return s.number("required", 0, 0, 100) }

// tooFewCosignatures is the text about a checkpoint that fewer operators than required have cosigned; "" if there are enough.
func tooFewCosignatures(c *api.LedgerCosigned, required int) string {
	n := 0
	if c != nil {
		n = c.Operators
	}
	if n >= required {
		return ""
	}
	return fmt.Sprintf("%d of %d required operators of witnesses have cosigned", n, required)
}

// printCosignatures prints who has cosigned.
func (p *program) printCosignatures(c *api.LedgerCosigned) {
	if c == nil {
		return
	}
	for _, one := range c.Cosignatures {
		p.con.Field("cosigned", fmt.Sprintf("%d entries by %s (%s) at %s", c.Entries, one.Witness, one.Operator, one.Time))
	}
}

// compareWith compares the ledger with the checkpoints of a file, of any length, or of a pipe.
func (p *program) compareWith(ctx *cli.Context, l *ledger.Ledger, name string) (int, error) {
	const fix = "name a file with checkpoints"
	var in io.Reader
	if info, err := os.Stat(name); err == nil && info.Mode().IsRegular() {
		f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // #nosec G304 -- the user's own argument
		if err != nil {
			return 0, fault.Refused.Errorf("%w", err).Fix(fix)
		}
		defer func() { _ = f.Close() }() // it was read
		in = f
	} else {
		data, err := p.read(ctx.Context, name, maxPiped, fix)
		if err == nil && len(data) > maxPiped {
			err = fault.TooLarge.Errorf("%s: larger than %d bytes", name, maxPiped).Fix("name a file instead of a pipe")
		}
		if err != nil {
			return 0, err
		}
		in = strings.NewReader(string(data))
	}
	n, err := l.CheckAgainst(ctx.Context, in)
	if err != nil && errors.Is(err, ledger.ErrTampered) {
		err = fault.Errorf("%s: %w", name, err).Fix(orDefault(fault.Hint(err), "stop the programs that use the ledger, and see docs/ledger.md"))
	}
	return n, err
}
