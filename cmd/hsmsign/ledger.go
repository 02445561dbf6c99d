package main

import (
	"context"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/internal/console"
	"hsmsign/internal/wholefile"
	"hsmsign/ledger"
	"hsmsign/ledger/open"
	"hsmsign/ledger/record"
	"hsmsign/request"
	"hsmsign/secret"
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
				Flags: append(reading, stringFlag("customer", "only entries about the customer `NAME`"), stringFlag("kind", "only entries of the `KIND`: issued, refused, ..."),
					stringFlag("before", "only entries older than the `INDEX`"), stringFlag("limit", "at most `NUMBER` entries (default: 50)")),
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
				Flags:       append(reading, stringFlag("as", "`FORMAT`: json (default) or csv"), outputFlag(), forceFlag()),
				Action:      p.ledgerExport,
			},
			{
				Name:  "verify",
				Usage: "recompute the ledger from its entries, or check a proof without the ledger",
				Description: "Exit code 7 when something is wrong; the first entry that was changed, removed or added is named.\n\n" +
					"  hsmsign ledger verify --ledger sqlite:ledger.db --verifier-key ledger.pub\n" +
					"  hsmsign ledger verify --ledger sqlite:ledger.db --verifier-key ledger.pub --against /mnt/other/checkpoint\n" +
					"  hsmsign ledger verify --verifier-key ledger.pub --proof acme.tlog-proof --csr acme.csr --request acme.req",
				Flags: append(reading, stringFlag("against", "also check that the ledger has grown from the checkpoint in `FILE`"), stringFlag("proof", "check the proof in `FILE`, without the ledger"),
					stringFlag("csr", "with --proof: `FILE` with the CSR that the entry must be about"), stringFlag("request", "with --proof: `FILE` with the request that the entry must be about")),
				Action: p.ledgerVerify,
			},
			{
				Name:        "prove",
				Usage:       "write a proof that a request is in the ledger (C2SP tlog-proof)",
				ArgsUsage:   "REQUEST-ID",
				Description: "  hsmsign ledger prove --ledger sqlite:ledger.db -o acme.tlog-proof 6f1c...",
				Flags:       append(reading, outputFlag(), forceFlag()),
				Action:      p.ledgerProve,
			},
			{
				Name:        "status",
				Usage:       "show the size and the root hash of the ledger",
				Description: "  hsmsign ledger status --ledger sqlite:ledger.db",
				Flags:       reading,
				Action:      p.ledgerStatus,
			},
		},
	}
}

// ledgerConfig is where a ledger and its keys are.
type ledgerConfig struct {
	reference, keyFile, last, verifier string
}

// ledgerConfig reads the flags about the ledger; the reference is "" if there is none.
func (s *settings) ledgerConfig() (c ledgerConfig, err error) {
	var from string
	if c.reference, from = s.str("ledger"); c.reference == "" {
		return c, nil
	}
	if from == "--ledger" && open.HasPassword(c.reference) {
		return c, fault.Usage.Errorf("--ledger contains a password, which process lists show").Fix("set $HSMSIGN_LEDGER, or leave the password to PGPASSFILE")
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
	return c, nil
}

// openLedger opens the ledger; to write, it needs the checkpoint key. The caller calls the function that it returns.
func (p *program) openLedger(ctx context.Context, s *settings, write bool) (*ledger.Ledger, func(), error) {
	c, err := s.ledgerConfig()
	if err != nil {
		return nil, nil, err
	}
	if c.reference == "" {
		return nil, nil, s.missing("ledger", "ledger")
	}
	verifier, key, err := c.keys(write)
	if err != nil {
		return nil, nil, err
	}
	cfg := ledger.Config{Verifier: verifier, Key: key, LastCheckpoint: c.last}
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
			p.con.Warnf("%s", console.ErrorLine(err))
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
	if c.keyFile == "" {
		return "", "", fault.Usage.Errorf("no key of the ledger").Fix("name the checkpoint key with --checkpoint-key, or, to read, the verifier key with --verifier-key")
	}
	data, err := secret.ReadFile(c.keyFile, maxKeyFile, false)
	if err != nil {
		return "", "", fault.Auth.Errorf("checkpoint key of the ledger: %w", err).Fix("name it with --checkpoint-key; to read, --verifier-key is enough")
	}
	key = strings.TrimSpace(string(data))
	clear(data)
	derived, err := ledger.VerifierKey(key)
	if err != nil {
		return "", "", fault.Usage.Errorf("checkpoint key %q: %w", c.keyFile, err).Fix("it is the file that ledger init made")
	}
	if verifier == "" {
		verifier = derived
	}
	return verifier, key, nil
}

func (p *program) ledgerInit(ctx *cli.Context) error {
	s, _, err := p.start(ctx, noFiles)
	if err != nil {
		return err
	}
	c, err := s.ledgerConfig()
	if err != nil {
		return err
	}
	origin, _ := s.str("origin")
	switch {
	case c.reference == "":
		return s.missing("ledger", "ledger")
	case c.keyFile == "":
		return fault.Usage.Errorf("no file for the checkpoint key").Fix("name one with --checkpoint-key")
	case origin == "":
		host, _ := os.Hostname()
		origin = orDefault(host, "hsmsign") + "/ledger"
	}
	if _, err := os.Lstat(c.keyFile); err == nil {
		return fault.Usage.Errorf("%q exists", c.keyFile).Fix("a checkpoint key is never replaced; name another --checkpoint-key")
	}
	key, verifier, err := ledger.GenerateKey(origin)
	if err != nil {
		return fault.Usage.Errorf("--origin %q: %w", origin, err).Fix("write a name without spaces and plus signs, as example.com/mdm")
	}
	store, err := open.Store(ctx.Context, c.reference, true)
	if err != nil {
		return err
	}
	defer store.DB.Close()
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
	rows := [][]string{{"ENTRY", "TIME", "KIND", "CUSTOMER", "ACTOR", "REQUEST"}}
	for _, r := range records {
		e := api.NewLedgerEntry(r)
		if s.json {
			p.con.JSON(e)
		}
		rows = append(rows, []string{strconv.FormatInt(e.Index, 10), e.Time, e.Kind, orDefault(e.Customer, e.CustomerID), orDefault(e.Actor, e.ActorID), e.Request})
	}
	if !s.json {
		p.con.Table(rows)
	}
	return nil
}

func (p *program) ledgerShow(ctx *cli.Context) error {
	s, args, l, done, err := p.reader(ctx, oneFile)
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
	for _, f := range fieldsOf(e) {
		p.con.Field(f[0], f[1])
	}
	return nil
}

// fieldsOf returns the names and values of an entry.
func fieldsOf(e api.LedgerEntry) [][2]string {
	return [][2]string{
		{"entry", strconv.FormatInt(e.Index, 10)}, {"time", e.Time}, {"kind", e.Kind}, {"request", e.Request}, {"customer", e.Customer},
		{"customer id", e.CustomerID}, {"actor", e.Actor}, {"actor id", e.ActorID}, {"channel", e.Channel}, {"rule", e.Rule}, {"digest", e.Digest},
		{"operation", e.Operation}, {"CSR SHA-256", e.CSRSHA256}, {"key SHA-256", e.KeySHA256}, {"vendor SHA-256", e.VendorSHA256},
		{"chain SHA-256", e.ChainSHA256}, {"file SHA-256", e.FileSHA256}, {"commitments", strings.Join(e.Commitments, ", ")},
	}
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
	table := csv.NewWriter(&out)
	first := true
	err = l.Records(ctx.Context, func(r record.Record) error {
		e := api.NewLedgerEntry(r)
		if format != "csv" {
			line, err := json.Marshal(e)
			out.Write(append(line, '\n'))
			return err
		}
		var names, values []string
		for _, f := range fieldsOf(e) {
			names, values = append(names, f[0]), append(values, plainCell(f[1]))
		}
		if first {
			first = false
			_ = table.Write(names) // to memory
		}
		return table.Write(values)
	})
	if err != nil {
		return err
	}
	table.Flush()
	output, _ := s.str("output")
	return p.emit(output, []byte(out.String()), 0o600, s.boolean("force"))
}

// plainCell returns a value that no spreadsheet takes for a formula (OWASP, CSV injection).
func plainCell(value string) string {
	if value != "" && strings.ContainsRune("=+-@\t\r", rune(value[0])) {
		return "'" + value
	}
	return value
}

func (p *program) ledgerVerify(ctx *cli.Context) error {
	s, _, err := p.start(ctx, noFiles)
	if err != nil {
		return err
	}
	if name, _ := s.str("proof"); name != "" {
		return p.verifyProof(ctx.Context, s, name)
	}
	l, done, err := p.openLedger(ctx.Context, s, false)
	if err != nil {
		return err
	}
	defer done()
	against, _ := s.str("against")
	if against != "" {
		data, err := p.read(ctx.Context, against, maxKeyFile*16, "name a file with a checkpoint")
		if err == nil {
			err = l.CheckAgainst(ctx.Context, data)
		}
		if err != nil {
			return err
		}
	}
	report, err := l.Verify(ctx.Context, nil)
	if err != nil {
		return err
	}
	result := api.LedgerVerify{OK: len(report.Defects) == 0, Entries: report.Entries, Defects: report.Defects}
	if report.Head != nil {
		result.Root = hex.EncodeToString(report.Head.Root[:])
	}
	if result.Defects == nil {
		result.Defects = []record.Defect{}
	}
	if s.json {
		p.con.JSON(result)
	} else {
		for _, d := range report.Defects {
			where := "the ledger"
			if d.Entry >= 0 {
				where = fmt.Sprintf("entry %d", d.Entry)
			}
			p.con.Printf("%s  %s: %s", console.Styled{Level: console.Bad, Text: "DEFECT"}, where, d.Text)
		}
		if result.OK {
			p.con.Printf("%s: %d entries of %s are whole; root %s", console.Styled{Level: console.Good, Text: "ok"}, report.Entries, l.Origin(), result.Root)
		}
	}
	if !result.OK {
		return exitStatus(fault.Defects.Exit())
	}
	return nil
}

// verifyProof checks a proof, and that it is about the given CSR and request.
func (p *program) verifyProof(ctx context.Context, s *settings, name string) error {
	c := ledgerConfig{}
	if c.verifier, _ = s.str("verifier-key"); c.verifier == "" {
		return s.missing("verifier-key", "verifier key of the ledger")
	}
	verifier, _, err := c.keys(false)
	if err != nil {
		return err
	}
	data, err := p.read(ctx, name, 1<<20, "name the file that ledger prove or sign --receipt wrote")
	if err != nil {
		return err
	}
	proven, err := ledger.CheckProof(data, verifier)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, f := range []struct {
		flag string
		want record.Hash
		hash func([]byte) (record.Hash, error)
	}{{"csr", proven.Entry.CSR, csrHash}, {"request", proven.Entry.File, fileHash}} {
		file, _ := s.str(f.flag)
		if file == "" {
			continue
		}
		data, err := p.read(ctx, file, request.MaxRequest, "name a readable file")
		if err != nil {
			return err
		}
		hash, err := f.hash(data)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if hash != f.want {
			return fault.Defects.Errorf("%s: the proof is about another %s, with SHA-256 %s", file, f.flag, f.want)
		}
	}
	e := api.NewLedgerEntry(record.Record{Index: proven.Index, Entry: proven.Entry})
	if s.json {
		p.con.JSON(api.LedgerVerify{OK: true, Entries: proven.Checkpoint.Size, Root: hex.EncodeToString(proven.Checkpoint.Root[:]), Defects: []record.Defect{}, Entry: &e})
		return nil
	}
	p.con.Printf("%s: entry %d of %s, a ledger of %d entries", console.Styled{Level: console.Good, Text: "ok"}, proven.Index, proven.Checkpoint.Origin, proven.Checkpoint.Size)
	for _, f := range fieldsOf(e)[1:] {
		p.con.Field(f[0], f[1])
	}
	return nil
}

func csrHash(data []byte) (record.Hash, error) {
	csr, err := request.DecodeCSR(data)
	if err != nil {
		return record.Hash{}, err
	}
	return record.SHA256(csr.DER), nil
}

func fileHash(data []byte) (record.Hash, error) { return record.SHA256(data), nil }

func (p *program) ledgerProve(ctx *cli.Context) error {
	s, args, l, done, err := p.reader(ctx, oneFile)
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

func (p *program) ledgerStatus(ctx *cli.Context) error {
	s, _, l, done, err := p.reader(ctx, noFiles)
	if err != nil {
		return err
	}
	defer done()
	head, err := l.Head(ctx.Context)
	if err != nil {
		return err
	}
	newest, err := l.Record(ctx.Context, head.Size-1)
	if err != nil {
		return err
	}
	status := api.LedgerStatus{
		Store: l.Name(), Origin: head.Origin, Entries: head.Size, Root: hex.EncodeToString(head.Root[:]), Newest: api.NewLedgerEntry(*newest).Time,
	}
	if s.json {
		p.con.JSON(status)
		return nil
	}
	for _, f := range [][2]string{
		{"store", status.Store}, {"origin", status.Origin}, {"entries", strconv.FormatInt(status.Entries, 10)}, {"root", status.Root}, {"newest", status.Newest},
	} {
		p.con.Field(f[0], f[1])
	}
	return nil
}
