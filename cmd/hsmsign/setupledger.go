package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"hsmsign/fault"
	"hsmsign/ledger"
	"hsmsign/ledger/open"
)

// stateFolder is where the unit of the packages keeps what the service writes.
const stateFolder = "/var/lib/hsmsign"

// state returns the folder for a new ledger.
func (job *setupJob) state() string {
	if job.service != nil && isFolder(stateFolder) {
		return stateFolder
	}
	return job.dir
}

// askLedger asks for the ledger: one that exists is opened, and a new one is made when the configuration is written.
func (job *setupJob) askLedger(ctx context.Context) error {
	l := &job.config.Ledger
	var err error
	l.Store, err = job.answer(ctx, asking{
		flag: "ledger", question: "ledger, which records each use of the key: sqlite:PATH or postgres://USER@HOST/DATABASE", def: "sqlite:" + filepath.Join(job.state(), "ledger.db"),
		check: job.checkLedger,
	})
	if err != nil {
		return err
	}
	base := open.Path(l.Store)
	if base == "" {
		base = filepath.Join(job.state(), "ledger")
	}
	l.CheckpointKey, l.LastCheckpoint = base+".key", base+".last"
	if err := job.ledgerFiles(); err != nil {
		return err
	}
	job.pinned = filepath.Join(job.dir, "ledger.pub")
	l.VerifierKey, _ = job.str("verifier-key")
	if l.VerifierKey == "" && isFile(job.pinned) == nil {
		l.VerifierKey = job.pinned
	}
	_, statErr := os.Lstat(open.Path(l.Store))
	if l.VerifierKey != "" || open.Path(l.Store) != "" && statErr == nil {
		job.pinned = ""
		return job.existingLedger(ctx)
	}
	l.VerifierKey = job.pinned
	if _, credential := job.credentialFile(l.CheckpointKey); credential {
		return fault.Usage.Errorf("the ledger is new, and its checkpoint key %q is a credential, which setup does not write", l.CheckpointKey).
			Fix("name a file with --checkpoint-key; move it to " + job.secrets() + " later, and run setup again with --replace")
	}
	if err := errors.Join(notThere(job.pinned), notThere(l.CheckpointKey)); err != nil {
		return err
	}
	host, _ := os.Hostname()
	job.origin, err = job.answer(ctx, asking{
		flag: "origin", question: "name of the new ledger, as example.com/mdm", def: orDefault(host, "hsmsign") + "/ledger",
		check: func(text *string) error {
			_, _, err := ledger.GenerateKey(*text)
			if err != nil {
				err = badOrigin("the name", *text, err)
			}
			return err
		},
	})
	return err
}

// ledgerFiles replaces the files of the ledger by those of the command line. Only the service's checkpoint key can be a credential: it
// writes the other file.
func (job *setupJob) ledgerFiles() error {
	l := &job.config.Ledger
	for _, f := range []struct {
		flag  string
		file  *string
		check func(path *string) error
	}{{"checkpoint-key", &l.CheckpointKey, job.secretFile}, {"last-checkpoint", &l.LastCheckpoint, job.absolute}} {
		given, from := job.str(f.flag)
		if given != "" {
			*f.file = given
			if err := f.check(f.file); err != nil {
				return fmt.Errorf("%s: %w", from, err)
			}
		}
		if err := job.checkFolder(*f.file); err != nil {
			return err
		}
	}
	return nil
}

// checkLedger refuses what names no ledger, and makes the path of a SQLite file absolute.
func (job *setupJob) checkLedger(reference *string) error {
	path := open.Path(*reference)
	switch {
	case !open.IsReference(*reference):
		return fault.Usage.Errorf("%q does not name a ledger", fault.Clip(*reference, 64)).Fix("write sqlite:PATH or postgres://USER@HOST/DATABASE")
	case open.HasPassword(*reference):
		return fault.Usage.Errorf("the reference of the ledger contains a password").Fix("leave it to PGPASSFILE")
	case path == "":
		return nil
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	*reference = "sqlite:" + path
	return job.checkFolder(path)
}

// checkFolder refuses a file for which there is no folder.
func (job *setupJob) checkFolder(path string) error {
	if dir := filepath.Dir(path); !isFolder(dir) && dir != job.dir && !strings.HasPrefix(path, secretsCredential) {
		return fault.Usage.Errorf("there is no folder %q", dir).Fix("make it, for the user of the service alone (mode 0700)")
	}
	return nil
}

// existingLedger opens a ledger as the service will.
func (job *setupJob) existingLedger(ctx context.Context) error {
	l := &job.config.Ledger
	if l.VerifierKey == "" {
		c := ledgerConfig{reference: l.Store, keyFile: l.CheckpointKey}
		if file, ok := job.credentialFile(l.CheckpointKey); ok {
			c.keyFile = file
		}
		verifier, _, err := c.keys(true)
		if err != nil {
			return err
		}
		l.VerifierKey = verifier
	}
	nothing, err := emptyConfig()
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(nothing) }() // it is empty
	_, err = job.run(ctx, nil, "--config", nothing, "ledger", "status", "--ledger", l.Store, "--verifier-key", l.VerifierKey)
	return err
}

// emptyConfig makes an empty configuration, so that a command reads none of this machine.
func emptyConfig() (string, error) {
	f, err := os.CreateTemp("", "hsmsign-setup-*.yaml")
	if err != nil {
		return "", err
	}
	return f.Name(), errors.Join(f.Chmod(0o644), f.Close())
}
