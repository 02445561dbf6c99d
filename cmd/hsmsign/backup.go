package main

import (
	"errors"
	"io/fs"
	"strings"

	"filippo.io/age"
	"github.com/urfave/cli/v2"

	"hsmsign/fault"
	"hsmsign/ledger/backup"
	"hsmsign/ledger/open"
)

// maxAgeFile is the maximum length of a file with age recipients or identities.
const maxAgeFile = 64 << 10

func (p *program) backupCommand() *cli.Command {
	return &cli.Command{
		Name: "backup", Usage: "copy a SQLite ledger while it is in use, and verify the copy",
		Description: "The copy contains everything but the checkpoint key. It is verified before it gets its name. With a recipient it is\n" +
			"encrypted (age), and the unencrypted copy exists only in a private folder next to the ledger meanwhile.\n\n" +
			"  hsmsign ledger backup --ledger sqlite:ledger.db -o /mnt/other/ledger-2026-11-21.db\n" +
			"  hsmsign ledger backup --ledger sqlite:ledger.db --recipient age1... -o /mnt/other/ledger-2026-11-21.db.age\n" +
			"  hsmsign ledger backup --ledger sqlite:ledger.db --recipients-file team.txt -o /mnt/other/ledger-2026-11-21.db.age",
		Flags: append(ledgerFlags(), verifierFlag(), outputFlag(), listFlag("recipient", "encrypt the backup to the age `RECIPIENT`, age1...; may be repeated"),
			stringFlag("recipients-file", "encrypt the backup to the age recipients in `FILE`, one a line"), configFlag()),
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
		return fault.Usage.Errorf("no file for the backup").Fix("name it with -o; a backup is written whole or not at all, so not to standard output")
	}
	recipients, err := p.recipients(ctx, s)
	if err != nil {
		return err
	}
	c, err := s.neededLedger()
	if err != nil {
		return err
	}
	if open.Path(c.reference) == "" {
		return fault.Usage.Errorf("only a SQLite ledger is backed up by hsmsign").Fix("use pg_dump, and verify the restored database with hsmsign ledger restore")
	}
	l, done, err := p.openLedger(ctx.Context, s, false)
	if err != nil {
		return err
	}
	defer done()
	verifier, _, err := c.keys(false)
	if err != nil {
		return err
	}
	report, err := backup.Write(ctx.Context, l, backup.Options{Path: output, Verifier: verifier, Near: open.Path(c.reference), Recipients: recipients})
	if errors.Is(err, fs.ErrExist) {
		return fault.Usage.Errorf("%q: %w", output, errExists).Fix("name another file; a backup is never overwritten")
	}
	if err != nil {
		return err
	}
	how := ""
	if len(recipients) > 0 {
		how = ", encrypted"
	}
	p.con.Infof("wrote %s: %d entries are whole%s", output, report.Entries, how)
	return nil
}

// recipients returns the age recipients that the flags name.
func (p *program) recipients(ctx *cli.Context, s *settings) ([]age.Recipient, error) {
	var all []age.Recipient
	given, _ := s.list("recipient")
	if len(given) > 0 {
		found, err := backup.Recipients(strings.Join(given, "\n"))
		if err != nil {
			return nil, fault.Usage.Errorf("--recipient: %w", err)
		}
		all = found
	}
	name, _ := s.str("recipients-file")
	if name == "" {
		return all, nil
	}
	data, err := p.read(ctx.Context, name, maxAgeFile, "name a readable file with age recipients")
	if err != nil {
		return nil, err
	}
	found, err := backup.Recipients(string(data))
	if err != nil {
		return nil, fault.Usage.Errorf("%s: %w", name, err)
	}
	return append(all, found...), nil
}
