package main

import (
	"context"
	"os"
	"strings"

	"hsmsign/fault"
	"hsmsign/internal/console"
	"hsmsign/ledger"
	"hsmsign/ledger/open"
	"hsmsign/secret"
)

// ledgerConfig is where a ledger and its keys are.
type ledgerConfig struct {
	reference, origin, keyFile, last, verifier string // origin is where the reference comes from

	secrets   secret.Reader // of the checkpoint key
	copies    []string
	witnesses []ledger.Witness // of the configuration
	required  int
}

// name returns the reference without a password.
func (c *ledgerConfig) name() string {
	if open.HasPassword(c.reference) {
		return "postgres:(with a password)"
	}
	return c.reference
}

// ledgerConfig reads the flags about the ledger; the reference is "" if there is none.
func (s *settings) ledgerConfig() (c ledgerConfig, err error) {
	c.secrets.Getenv = s.getenv
	if c.reference, c.origin = s.str("ledger"); c.reference == "" {
		return c, nil
	}
	if configured := s.config.Ledger.Store; configured != "" && c.reference != configured {
		return c, fault.Usage.Errorf("%s names another ledger than the configuration %s", c.origin, s.path).Fix("leave it out: what is signed here is recorded there")
	}
	if c.origin != "$HSMSIGN_LEDGER" && open.HasPassword(c.reference) {
		return c, fault.Usage.Errorf("%s contains a password", c.origin).Fix("set $HSMSIGN_LEDGER, or leave the password to PGPASSFILE")
	}
	path := open.Path(c.reference)
	def := func(name, extension string) string {
		value, _ := s.str(name)
		if value == "" && path != "" {
			value = path + extension
		}
		return value
	}
	c.keyFile, c.last = def("checkpoint-key", ".key"), def("last-checkpoint", ".last")
	c.verifier, _ = s.str("verifier-key")
	return c, c.publishing(s)
}

// neededLedger is ledgerConfig for a command that needs a ledger.
func (s *settings) neededLedger() (ledgerConfig, error) {
	c, err := s.ledgerConfig()
	if err == nil && c.reference == "" {
		err = s.missing("ledger", "ledger")
	}
	return c, err
}

// openLedger opens the ledger; to write, it needs the checkpoint key. The caller calls the function that it returns.
func (p *program) openLedger(ctx context.Context, s *settings, write bool) (*ledger.Ledger, func(), error) {
	c, err := s.neededLedger()
	if err != nil {
		return nil, nil, err
	}
	if write {
		err = c.checkAnchors()
	} else {
		c.witnesses, err = s.knownWitnesses()
	}
	if err != nil {
		return nil, nil, err
	}
	verifier, key, err := c.keys(write)
	if err != nil {
		return nil, nil, err
	}
	if !write {
		key = "" // a ledger with a key publishes
	}
	cfg := ledger.Config{Verifier: verifier, Key: key, Keys: c.readKey, LastCheckpoint: c.last, Copies: c.copies, Witnesses: c.witnesses, Required: c.required}
	if cfg.Store, err = open.Store(ctx, c.reference, false); err != nil {
		return nil, nil, err
	}
	l, err := ledger.Open(ctx, cfg)
	if err != nil {
		_ = cfg.Store.DB.Close() // the first error is reported
		return nil, nil, err
	}
	return l, func() {
		if err := l.Close(); err != nil {
			p.warn(console.ErrorLine(err))
		}
		_ = cfg.Store.DB.Close() // every transaction has ended
	}, nil
}

// keys returns the verifier key, and the checkpoint key if it is needed.
func (c *ledgerConfig) keys(write bool) (verifier, key string, err error) {
	verifier = c.verifier
	if _, err := os.Stat(verifier); verifier != "" && err == nil {
		data, err := secret.ReadFile(verifier, maxKeyFile, true)
		if err != nil {
			return "", "", fault.Usage.Errorf("--verifier-key: %w", err).Fix("name the key that ledger init printed, or a file with it")
		}
		verifier = strings.TrimSpace(string(data))
	}
	if !write && verifier != "" {
		return verifier, "", nil
	}
	if key, err = c.readKey(); err != nil {
		return "", "", err
	}
	derived, err := ledger.VerifierKey(key)
	if err != nil {
		return "", "", fault.Usage.Errorf("checkpoint key %q: %w", c.keyFile, err).Fix("it is the file that ledger init made")
	}
	if verifier == "" {
		verifier = derived
	}
	return verifier, key, nil
}

// readKey reads the checkpoint key; during a rotation, both.
func (c *ledgerConfig) readKey() (string, error) {
	if c.keyFile == "" {
		return "", fault.Usage.Errorf("no key of the ledger").Fix("name the checkpoint key with --checkpoint-key, or, to read, the verifier key with --verifier-key")
	}
	data, err := c.secrets.ReadFile(c.keyFile, maxKeyFile)
	if err != nil {
		return "", fault.Auth.Errorf("checkpoint key of the ledger: %w", err).Fix("name it with --checkpoint-key; to read, --verifier-key is enough")
	}
	defer clear(data)
	return strings.TrimSpace(string(data)), nil
}
