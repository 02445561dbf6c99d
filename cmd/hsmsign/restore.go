package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/internal/wholefile"
	"hsmsign/ledger"
	"hsmsign/ledger/backup"
	"hsmsign/ledger/open"
	"hsmsign/secret"
)

func (p *program) restoreCommand() *cli.Command {
	return &cli.Command{
		Name: "restore", Usage: "put a backup in place of a lost ledger, or continue from an older copy under a new origin", ArgsUsage: "COPY",
		Description: "The copy is verified with the pinned verifier key and compared with the checkpoints that were kept elsewhere, and the\n" +
			"customers that were erased since are erased again. An existing ledger is never overwritten: move it away first.\n" +
			"COPY is a file that ledger backup wrote, or the reference of a store: for PostgreSQL, restore the dump with pg_restore\n" +
			"and name the database as COPY and as --ledger, to check it and to erase again.\n\n" +
			"  hsmsign ledger restore --ledger sqlite:ledger.db --identity key.txt /mnt/other/ledger-2026-11-21.db.age\n" +
			"  hsmsign ledger restore --ledger postgres:///mdm --verifier-key ledger.pub --last-checkpoint last postgres:///mdm\n\n" +
			"A copy that lacks entries, or a ledger that was forked, continues only as a new ledger, with a new origin and key. Its\n" +
			"first entry has the last checkpoint of the old one. It repeats the customers, push certificates and requests, so the\n" +
			"rules still apply. Keep the old verifier key: receipts of the old ledger are verified with it.\n\n" +
			"  hsmsign ledger restore --ledger sqlite:ledger.db --new-ledger sqlite:ledger-2.db --new-origin example.com/mdm-2 old.db\n" +
			"  hsmsign ledger restore --ledger postgres:///mdm --checkpoint-key mdm.key --new-ledger postgres:///mdm2 \\\n" +
			"      --new-checkpoint-key mdm2.key --new-last-checkpoint mdm2.last --new-origin example.com/mdm-2 postgres:///restored\n" +
			"  hsmsign ledger restore --ledger sqlite:ledger.db --until trusted-checkpoint --new-ledger sqlite:ledger-2.db \\\n" +
			"      --new-origin example.com/mdm-2 sqlite:ledger.db",
		Flags: slices.Concat(ledgerFlags(), []cli.Flag{
			verifierFlag(), stringFlag("identity", "`FILE` with the age identity that decrypts the backup, mode 0600"),
			listFlag("against", "also compare with the newest checkpoint in `FILE`; may be repeated"),
			stringFlag("new-origin", "`NAME` of the new ledger that continues this one"),
			stringFlag("new-ledger", "`REFERENCE` of the new ledger"),
			stringFlag("new-checkpoint-key", "`FILE` for the new checkpoint key (default for sqlite:PATH: PATH.key)"),
			stringFlag("new-last-checkpoint", "`FILE` that keeps the newest checkpoint of the new ledger (default for sqlite:PATH: PATH.last)"),
			stringFlag("until", "with --new-origin: do not continue entries after the newest checkpoint in `FILE`, the last one that is trusted"),
			jsonFlag(), configFlag(),
		}),
		Action: p.ledgerRestore,
	}
}

func (p *program) ledgerRestore(ctx *cli.Context) error {
	s, args, err := p.start(ctx, oneName)
	if err != nil {
		return err
	}
	origin, _ := s.str("new-origin")
	if err := s.newFlags(origin != ""); err != nil {
		return err
	}
	c, err := s.neededLedger()
	if err != nil {
		return err
	}
	of, err := p.knownLedger(ctx.Context, s, &c)
	if err != nil {
		return err
	}
	from, done, err := p.copySource(ctx.Context, s, args[0])
	if err != nil {
		return err
	}
	defer done()
	if origin != "" {
		return p.continueLedger(ctx.Context, s, from, of, origin)
	}
	path := open.Path(c.reference)
	if from.Store != nil && args[0] != c.reference || from.Store == nil && path == "" {
		return fault.Usage.Errorf("%s is not the ledger, and hsmsign does not copy databases", args[0]).
			Fix("restore a database with the tools of its server, and name it as --ledger too; to continue from it, add --new-origin and --new-ledger")
	}
	result, err := backup.Restore(ctx.Context, from, path, of)
	if err != nil {
		return err
	}
	if s.json {
		p.con.JSON(api.LedgerRestore{Store: c.name(), Entries: result.Entries, Erased: result.Erased})
		return nil
	}
	p.con.Infof("%s is whole: %d entries; %d customers were erased again", c.name(), result.Entries, result.Erased)
	return nil
}

// newFlags checks that the flags about a new ledger are complete, or that there is none.
func (s *settings) newFlags(given bool) error {
	for _, name := range []string{"new-ledger", "new-checkpoint-key", "new-last-checkpoint", "until"} {
		if value, from := s.str(name); value != "" && !given {
			return fault.Usage.Errorf("%s without --new-origin", from).Fix("name the new ledger with --new-origin, or leave it out")
		}
	}
	reference, from := s.str("new-ledger")
	if given && reference == "" {
		return s.missing("new-ledger", "new ledger")
	}
	if from != "$"+envName("new-ledger") && open.HasPassword(reference) {
		return fault.Usage.Errorf("%s contains a password", from).Fix("leave the password to PGPASSFILE")
	}
	return nil
}

// knownLedger returns what is known of a ledger outside its store.
func (p *program) knownLedger(ctx context.Context, s *settings, c *ledgerConfig) (of backup.Ledger, err error) {
	write := true
	if _, err := os.Lstat(c.keyFile); c.verifier != "" && (c.keyFile == "" || errors.Is(err, fs.ErrNotExist)) {
		write = false // it is needed only to erase again
	}
	actor, err := s.caller()
	if err != nil {
		return of, err
	}
	of.Config.LastCheckpoint, of.Config.Copies, of.Actor = c.last, c.copies, actor.Name
	if of.Config.Verifier, of.Config.Key, err = c.keys(write); err != nil {
		return of, err
	}
	names, _ := s.list("against")
	for _, name := range names {
		known, err := p.checkpoint(ctx, name, of.Config.Verifier)
		if err != nil {
			return of, err
		}
		of.Known = append(of.Known, known)
	}
	return of, nil
}

// maxKept is how much of a file with checkpoints is read.
const maxKept = 16 << 20

// checkpoint reads the newest checkpoint of a file.
func (p *program) checkpoint(ctx context.Context, name, verifier string) (*ledger.Checkpoint, error) {
	data, err := p.read(ctx, name, maxKept, "name a file with checkpoints")
	if err != nil {
		return nil, err
	}
	known, err := ledger.Known(data, verifier)
	if err != nil {
		return nil, fault.Errorf("%s: %w", name, err)
	}
	return known, nil
}

// copySource returns the copy that an argument names. The caller calls the function that it returns.
func (p *program) copySource(ctx context.Context, s *settings, name string) (from backup.Source, done func(), err error) {
	done = func() {}
	if open.IsReference(name) {
		if open.HasPassword(name) {
			return from, done, fault.Usage.Errorf("the reference of the copy contains a password").Fix("leave the password to PGPASSFILE")
		}
		if from.Store, err = open.Store(ctx, name, false); err == nil {
			done = func() { _ = from.Store.DB.Close() } // every transaction has ended
		}
		return from, done, err
	}
	from.Backup = name
	identity, _ := s.str("identity")
	if identity == "" {
		return from, done, nil
	}
	data, err := secret.ReadFile(identity, maxAgeFile, false)
	if err != nil {
		return from, done, fault.Auth.Errorf("--identity: %w", err).Fix("name a file with an age identity that only you can read")
	}
	defer clear(data)
	if from.Identities, err = backup.Identities(data); err != nil {
		return from, done, fault.Errorf("%s: %w", identity, err)
	}
	return from, done, nil
}

// continueLedger makes the new ledger that continues a copy.
func (p *program) continueLedger(ctx context.Context, s *settings, from backup.Source, of backup.Ledger, origin string) error {
	var to backup.New
	var err error
	if name, _ := s.str("until"); name != "" {
		if to.Until, err = p.checkpoint(ctx, name, of.Config.Verifier); err != nil {
			return err
		}
	}
	reference, _ := s.str("new-ledger")
	keyFile := s.beside("new-checkpoint-key", reference, ".key")
	to.Config.LastCheckpoint = s.beside("new-last-checkpoint", reference, ".last")
	if keyFile == "" {
		return fault.Usage.Errorf("no file for the new checkpoint key").Fix("name one with --new-checkpoint-key")
	}
	if _, err := os.Lstat(to.Config.LastCheckpoint); err == nil {
		return fault.Usage.Errorf("%q exists: there is a ledger of this name", to.Config.LastCheckpoint).Fix("name another --new-ledger or --new-last-checkpoint")
	}
	made, err := newKey(keyFile, origin, &to.Config)
	if err != nil {
		return err
	}
	to.Near = orDefault(open.Path(reference), keyFile)
	path := open.Path(reference)
	_, statErr := os.Lstat(path)
	result, err := p.continueIn(ctx, reference, from, of, to)
	if err != nil {
		if made {
			_ = os.Remove(keyFile) // no ledger has this key
		}
		if path != "" && errors.Is(statErr, fs.ErrNotExist) {
			_ = os.Remove(path) // it contains no ledger; its log is gone since it was closed
		}
		return err
	}
	if s.json {
		p.con.JSON(api.LedgerRestore{
			Store: reference, Entries: result.Head.Size, Origin: origin, VerifierKey: to.Config.Verifier, KeyFile: keyFile, Missing: result.Missing,
			Customers: result.Customers, Requests: result.Requests, PushCertificates: result.Pushes,
		})
		return nil
	}
	p.con.Printf("origin: %s", origin)
	p.con.Printf("verifier key: %s", to.Config.Verifier)
	p.con.Infof("continued %d customers, %d requests and %d push certificates; %d entries of the old ledger are missing", result.Customers, result.Requests, result.Pushes, result.Missing)
	p.con.Infof("pin the new verifier key where the old one is, and keep the old one for the receipts of the old ledger")
	p.con.Infof("the new checkpoint key is in %s: keep it where the ledger is not, and back it up", keyFile)
	return nil
}

// continueIn opens the new store and fills it.
func (p *program) continueIn(ctx context.Context, reference string, from backup.Source, of backup.Ledger, to backup.New) (*ledger.Continued, error) {
	store, err := open.Store(ctx, reference, true)
	if err != nil {
		return nil, err
	}
	defer func() { _ = store.DB.Close() }() // every transaction has ended
	to.Config.Store = store
	return backup.Continue(ctx, from, of, to)
}

// beside returns the file that a flag names; for a SQLite store the default is next to it.
func (s *settings) beside(flag, reference, extension string) string {
	value, _ := s.str(flag)
	if path := open.Path(reference); value == "" && path != "" {
		return path + extension
	}
	return value
}

// newKey makes a checkpoint key for a new ledger and writes its file, and returns whether it did. A key of the same origin that
// a killed run left is used.
func newKey(path, origin string, cfg *ledger.Config) (made bool, err error) {
	if data, err := secret.ReadFile(path, maxKeyFile, false); err == nil {
		cfg.Key = strings.TrimSpace(string(data))
		cfg.Verifier, err = ledger.VerifierKey(cfg.Key)
		if err != nil || !strings.HasPrefix(cfg.Verifier, origin+"+") {
			return false, fault.Usage.Errorf("%q exists", path).Fix("a checkpoint key is never replaced; name another file")
		}
		return false, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, fault.Usage.Errorf("checkpoint key: %w", err).Fix("name another file")
	}
	if cfg.Key, cfg.Verifier, err = ledger.GenerateKey(origin); err != nil {
		return false, badOrigin("--new-origin", origin, err)
	}
	// The key first: a ledger without its key could never grow.
	if err := wholefile.Write(path, []byte(cfg.Key+"\n"), 0o600, false); err != nil {
		return false, fault.Usage.Errorf("checkpoint key: %w", err).Fix("name a file that can be made")
	}
	return true, nil
}

func badOrigin(flag, origin string, err error) error {
	return fault.Usage.Errorf("%s %q: %w", flag, origin, err).Fix("write a name without spaces and plus signs, as example.com/mdm")
}
