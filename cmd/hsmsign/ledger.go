package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/api"
	"hsmsign/api/ledgerapi"
	"hsmsign/fault"
	"hsmsign/internal/wholefile"
	"hsmsign/ledger"
	"hsmsign/ledger/open"
	"hsmsign/ledger/record"
)

// maxKeyFile is the maximum length of a file with a key of the ledger.
const maxKeyFile = 4096

func ledgerFlags() []cli.Flag {
	return []cli.Flag{
		stringFlag("ledger", "`REFERENCE` of the ledger: sqlite:PATH or postgres://USER@HOST/DATABASE"),
		stringFlag("checkpoint-key", "`FILE` with the ledger's checkpoint key, mode 0600 (default for sqlite:PATH: PATH.key)"),
		stringFlag("last-checkpoint", "`FILE` that keeps the newest checkpoint outside the store (default for sqlite:PATH: PATH.last)"),
	}
}

func verifierFlag() cli.Flag {
	return stringFlag("verifier-key", "public `KEY` of the ledger, as ledger init prints it, or a file with it")
}

func (p *program) ledgerCommand() *cli.Command {
	reading := append(ledgerFlags(), verifierFlag(), jsonFlag(), configFlag())
	return &cli.Command{
		Name:  "ledger",
		Usage: "record who was issued what, and prove that nobody changed the record",
		Subcommands: []*cli.Command{
			{
				Name:  "init",
				Usage: "make a ledger and its checkpoint key, and print its origin and verifier key",
				Description: "Pin the verifier key outside the store: without it nobody can tell a ledger from another one.\n\n" +
					"  hsmsign ledger init --ledger sqlite:/var/lib/hsmsign/ledger.db --origin example.com/mdm",
				Flags:  append(ledgerFlags(), stringFlag("origin", "`NAME` of the ledger in its checkpoints: a name of yours, as example.com/mdm"), jsonFlag(), configFlag()),
				Action: p.ledgerInit,
			},
			{
				Name:  "list",
				Usage: "list the entries, the newest first",
				Description: "  hsmsign ledger list --ledger sqlite:ledger.db --customer acme\n" +
					"  hsmsign ledger list --ledger sqlite:ledger.db --kind issued --limit 10 --json",
				Flags: slices.Concat(reading, []cli.Flag{stringFlag("customer", "only entries about the customer `NAME`"), stringFlag("kind", "only entries of the `KIND`: issued, refused, ..."),
					stringFlag("before", "only entries older than the `INDEX`"), stringFlag("limit", "at most `NUMBER` entries (default: 50)")}),
				Action: p.ledgerList,
			},
			{
				Name:        "show",
				Usage:       "show everything about one entry",
				ArgsUsage:   "INDEX",
				Description: "  hsmsign ledger show --ledger sqlite:ledger.db 17",
				Flags:       reading,
				Action:      p.ledgerShow,
			},
			{
				Name:        "export",
				Usage:       "print every entry, the oldest first, as JSON lines or CSV",
				Description: "  hsmsign ledger export --ledger sqlite:ledger.db --as csv -o ledger.csv",
				Flags:       slices.Concat(reading, []cli.Flag{stringFlag("as", "`FORMAT`: json (default) or csv"), outputFlag(), forceFlag()}),
				Action:      p.ledgerExport,
			},
			{
				Name:  "verify",
				Usage: "recompute the ledger from its entries, or check a proof without the ledger",
				Description: "Exit code 7 when something is wrong; the first entry that was changed, removed or added is named.\n\n" +
					"  hsmsign ledger verify --ledger sqlite:ledger.db --verifier-key ledger.pub\n" +
					"  hsmsign ledger verify --ledger sqlite:ledger.db --verifier-key ledger.pub --against /mnt/other/checkpoint\n" +
					"  hsmsign ledger verify --verifier-key ledger.pub --proof acme.tlog-proof --csr acme.csr --request acme.req\n" +
					"  hsmsign ledger verify --verifier-key ledger.pub --proof acme.tlog-proof --witness-key w1.pub --witness-key w2.pub --required 2",
				Flags: slices.Concat(reading, []cli.Flag{stringFlag("against", "also check that the ledger has grown from the checkpoint in `FILE`, or from each of many, as in a copy"), stringFlag("proof", "check the proof in `FILE`, without the ledger"),
					stringFlag("csr", "with --proof: `FILE` with the CSR that the entry must be about"), stringFlag("request", "with --proof: `FILE` with the request that the entry must be about"), witnessKeyFlag(),
					stringFlag("required", "exit with 7 unless at least `NUMBER` operators of known witnesses have cosigned (default: that of the configuration, or 0)")}),
				Action: p.ledgerVerify,
			},
			{
				Name:        "prove",
				Usage:       "write a proof that a request is in the ledger (C2SP tlog-proof)",
				ArgsUsage:   "REQUEST-ID",
				Description: "  hsmsign ledger prove --ledger sqlite:ledger.db -o acme.tlog-proof 6f1c...",
				Flags:       slices.Concat(reading, []cli.Flag{outputFlag(), forceFlag()}),
				Action:      p.ledgerProve,
			},
			p.statusCommand(), p.copyCommand(), p.migrateCommand(), p.customerCommand(), p.attachCommand(), p.dueCommand(), p.watchCommand(), p.reconcileCommand(),
			p.backupCommand(), p.restoreCommand(), p.rotateCommand(),
		},
	}
}

func (p *program) ledgerInit(ctx *cli.Context) error {
	s, _, err := p.start(ctx, noFiles)
	if err != nil {
		return err
	}
	c, err := s.neededLedger()
	if err != nil {
		return err
	}
	origin, _ := s.str("origin")
	switch {
	case c.keyFile == "":
		return fault.Usage.Errorf("no file for the checkpoint key").Fix("name one with --checkpoint-key")
	case strings.HasPrefix(c.keyFile, "credential:"):
		return fault.Usage.Errorf("the checkpoint key %q is a systemd credential, which cannot be written", c.keyFile).Fix("name a file with --checkpoint-key, and move it to where the unit loads the credential from")
	case origin == "":
		host, _ := os.Hostname()
		origin = orDefault(host, "hsmsign") + "/ledger"
	}
	if _, err := os.Lstat(c.keyFile); err == nil {
		return fault.Usage.Errorf("%q exists", c.keyFile).Fix("a checkpoint key is never replaced; name another --checkpoint-key")
	}
	key, verifier, err := ledger.GenerateKey(origin)
	if err != nil {
		return badOrigin("--origin", origin, err)
	}
	store, err := open.Store(ctx.Context, c.reference, true)
	if err != nil {
		return err
	}
	defer func() { _ = store.DB.Close() }() // every transaction has ended
	// The key first: a ledger without its key could never grow.
	if err := wholefile.Write(c.keyFile, []byte(key+"\n"), 0o600, false); err != nil {
		return fault.Usage.Errorf("checkpoint key: %w", err).Fix("name a file that can be made with --checkpoint-key")
	}
	if _, err := ledger.Init(ctx.Context, ledger.Config{Store: store, Key: key, Verifier: verifier, LastCheckpoint: c.last}); err != nil {
		_ = os.Remove(c.keyFile) // no ledger has this key
		return err
	}
	if s.json {
		p.con.JSON(api.LedgerInit{Store: store.Name, Origin: origin, VerifierKey: verifier, KeyFile: c.keyFile})
		return nil
	}
	p.con.Printf("origin: %s", origin)
	p.con.Printf("verifier key: %s", verifier)
	p.con.Infof("pin the verifier key outside the store: give it to those who verify (--verifier-key)")
	p.con.Infof("the checkpoint key is in %s: keep it where the ledger is not, and back it up", c.keyFile)
	return nil
}

// reader opens the ledger for a command that reads.
func (p *program) reader(ctx *cli.Context, want files) (*settings, []string, *ledger.Ledger, func(), error) {
	s, args, err := p.start(ctx, want)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	l, done, err := p.openLedger(ctx.Context, s, false)
	return s, args, l, done, err
}

func (p *program) ledgerList(ctx *cli.Context) error {
	s, _, l, done, err := p.reader(ctx, noFiles)
	if err != nil {
		return err
	}
	defer done()
	query := ledger.Query{}
	query.Customer, _ = s.str("customer")
	query.Kind, _ = s.str("kind")
	if query.Limit, err = s.number("limit", 50, 1, 10_000); err != nil {
		return err
	}
	before, err := s.number("before", 0, 0, 1<<31-1)
	if err != nil {
		return err
	}
	query.Before = int64(before)
	records, err := l.List(ctx.Context, query)
	if err != nil {
		return err
	}
	rows := [][]string{{"ENTRY", "TIME", "KIND", "CUSTOMER", "ACTOR", "REQUEST", "USE BEFORE"}}
	for _, r := range records {
		e := api.NewLedgerEntry(r)
		if s.json {
			p.con.JSON(e)
		}
		rows = append(rows, []string{strconv.FormatInt(e.Index, 10), e.Time, e.Kind, orDefault(e.Customer, e.CustomerID), orDefault(e.Actor, e.ActorID), e.Request, strings.SplitN(e.UseBefore, "T", 2)[0]})
	}
	if !s.json {
		p.con.Table(rows)
	}
	return nil
}

func (p *program) ledgerShow(ctx *cli.Context) error {
	s, args, l, done, err := p.reader(ctx, oneName)
	if err != nil {
		return err
	}
	defer done()
	index, err := strconv.ParseInt(args[0], 10, 64)
	if err != nil || index < 0 {
		return fault.Usage.Errorf("%q is not the number of an entry", args[0]).Fix("hsmsign ledger list shows the numbers")
	}
	record, err := l.Record(ctx.Context, index)
	if err != nil {
		return err
	}
	e := api.NewLedgerEntry(*record)
	if s.json {
		p.con.JSON(e)
		return nil
	}
	for _, f := range ledgerapi.Fields(e) {
		p.con.Field(f[0], f[1])
	}
	for _, a := range e.Attempts {
		p.con.Field("attempt", fmt.Sprintf("%s %s: %s", api.Time(a.Time), orDefault(a.Operation, "no id"), a.Error))
	}
	p.con.Field("verifier keys", strings.Join(e.Keys, ", "))
	if e.Profile != nil {
		p.con.Field("profile", e.Profile.Identifier+" "+e.Profile.UUID)
	}
	p.printProbed(e.Probed)
	if f := e.Freeze; f != nil {
		p.con.Field("about", freezeText(f.Scope, f.Name))
		p.con.Field("reason", f.Reason)
	}
	p.printApproval(e)
	p.con.Field("replica", e.Replica)
	if e.Moved != nil {
		p.con.Field("moved to", e.Moved.Name+", store "+e.Moved.Store)
	}
	p.con.Field("entitlement", string(e.Entitlement))
	if o := e.Original; o != nil {
		p.con.Field("original", fmt.Sprintf("entry %d, %s, %s", o.Entry, o.Kind, o.Time.Format(time.RFC3339)))
	}
	if previous := e.Previous; previous != nil {
		p.con.Field("previous key", previous.VerifierKey)
		p.con.Field("copied", fmt.Sprintf("%d entries", previous.Copied))
		p.con.Printf("last checkpoint of the previous ledger:")
		p.con.Write([]byte(previous.Checkpoint))
	}
	return nil
}

func (p *program) ledgerExport(ctx *cli.Context) error {
	s, _, l, done, err := p.reader(ctx, noFiles)
	if err != nil {
		return err
	}
	defer done()
	format, from := s.str("as")
	if format != "" && format != "json" && format != "csv" {
		return fault.Usage.Errorf("%s is %q", from, format).Fix("it is json or csv")
	}
	var out strings.Builder
	export := ledgerapi.NewExport(&out, format == "csv")
	err = l.Records(ctx.Context, func(r record.Record) error { return export.Add(api.NewLedgerEntry(r)) })
	if err := errors.Join(err, export.Close()); err != nil {
		return err
	}
	output, _ := s.str("output")
	return p.emit(output, []byte(out.String()), 0o600, s.boolean("force"))
}

func (p *program) ledgerProve(ctx *cli.Context) error {
	s, args, l, done, err := p.reader(ctx, oneName)
	if err != nil {
		return err
	}
	defer done()
	id, err := record.ParseID(args[0])
	if err != nil {
		return err
	}
	proof, err := l.Prove(ctx.Context, id)
	if err != nil {
		return err
	}
	output, _ := s.str("output")
	return p.emit(output, proof, requestMode, s.boolean("force"))
}
