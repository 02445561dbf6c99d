package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"hsmsign/fault"
	"hsmsign/internal/wholefile"
	"hsmsign/ledger"
	"hsmsign/ledger/open"
)

func (p *program) backupCommand() *cli.Command {
	return &cli.Command{
		Name: "backup", Usage: "copy a SQLite ledger while it is in use, and verify the copy",
		Description: "The copy contains everything but the checkpoint key. It is verified before the command ends.\n\n" +
			"  hsmsign ledger backup --ledger sqlite:ledger.db -o /mnt/other/ledger-2026-11-21.db",
		Flags:  append(ledgerFlags(), verifierFlag(), outputFlag(), configFlag()),
		Action: p.ledgerBackup,
	}
}

func (p *program) ledgerBackup(ctx *cli.Context) error {
	s, _, err := p.start(ctx, noFiles)
	if err != nil {
		return err
	}
	output, _ := s.str("output")
	if output == "" || output == "-" {
		return fault.Usage.Errorf("no file for the backup").Fix("name it with -o")
	}
	c, err := s.ledgerConfig()
	if err != nil {
		return err
	}
	if open.Path(c.reference) == "" {
		return fault.Usage.Errorf("only a SQLite ledger is backed up by hsmsign").Fix("use pg_dump, and verify the restored database with hsmsign ledger verify")
	}
	l, done, err := p.openLedger(ctx.Context, s, false)
	if err != nil {
		return err
	}
	defer done()
	if err := l.Backup(ctx.Context, output); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return existsError(output)
		}
		return err
	}
	verifier, _, err := c.keys(false)
	if err != nil {
		return err
	}
	report, err := verifyCopy(ctx, output, verifier)
	if err == nil && len(report.Defects) > 0 {
		err = fault.Defects.Errorf("entry %d: %s", report.Defects[0].Entry, report.Defects[0].Text).Fix("verify the ledger itself")
	}
	if err == nil {
		err = wholefile.FlushFolder(filepath.Dir(output))
	}
	if err != nil {
		_ = os.Remove(output) // it is not a backup
		return err
	}
	p.con.Infof("wrote %s: %d entries are whole", output, report.Entries)
	return nil
}

// verifyCopy verifies the ledger in a SQLite file.
func verifyCopy(ctx *cli.Context, path, verifier string) (*ledger.Report, error) {
	store, err := open.Store(ctx.Context, "sqlite:"+path, false)
	if err != nil {
		return nil, err
	}
	defer func() { _ = store.DB.Close() }() // nothing was written
	l, err := ledger.Open(ctx.Context, ledger.Config{Store: store, Verifier: verifier})
	if err != nil {
		return nil, err
	}
	defer func() { _ = l.Close() }() // it keeps nothing
	return l.Verify(ctx.Context, nil)
}
