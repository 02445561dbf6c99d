package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/internal/console"
	"hsmsign/internal/input"
	"hsmsign/ledger"
	"hsmsign/ledger/reconcile"
	"hsmsign/ledger/record"
	"hsmsign/signer"
)

// maxLogFiles is how many files of a log are read.
const maxLogFiles = 100_000

func (p *program) reconcileCommand() *cli.Command {
	return &cli.Command{
		Name: "reconcile", Usage: "compare the ledger with the cloud's own log of signatures", ArgsUsage: "[FILE...]",
		Description: "Each signature in the log must have an entry, and each issued request a signature in the time of the log. Files may\n" +
			"be compressed with gzip; a folder means every .json, .jsonl, .json.gz and .jsonl.gz file below it. Exit code 7 if\n" +
			"a signature or a request is left over. Only the calls of --key count (default: the configured key). With --cert\n" +
			"only requests under this vendor certificate must be in the log. The commands vendor csr, vendor import and vendor\n" +
			"ceremony sign without an entry, and so do sign, key test, doctor and vendor status without a ledger.\n\n" +
			"  hsmsign ledger reconcile --ledger sqlite:ledger.db --key awskms:///alias/mdm-vendor --cloudtrail AWSLogs/\n" +
			"  hsmsign ledger reconcile --ledger sqlite:ledger.db --key gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/1 \\\n" +
			"      --gcp-audit audit.jsonl",
		Flags: slices.Concat(ledgerFlags(), []cli.Flag{
			verifierFlag(), listFlag("cloudtrail", "`FILE` or folder of AWS CloudTrail; further ones may follow as arguments"),
			listFlag("gcp-audit", "`FILE` or folder with log entries of Google's Cloud Audit Logs as JSON; further ones may follow as arguments"), keyFlag(), jsonFlag(),
		}, identityFlags()),
		Action: p.ledgerReconcile,
	}
}

func (p *program) ledgerReconcile(ctx *cli.Context) error {
	s, args, err := p.start(ctx, anyFiles)
	if err != nil {
		return err
	}
	log, names, err := s.cloudLog(args)
	if err != nil {
		return err
	}
	reference, from := s.str("key")
	if reference == "" {
		return s.missing("key", "key")
	}
	ref, err := signer.ParseRef(reference) // of any cloud, whatever this build can open
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	expected, err := s.underCert(ctx.Context)
	if err != nil {
		return err
	}
	l, done, err := p.openLedger(ctx.Context, s, false)
	if err != nil {
		return err
	}
	defer done()
	if err := p.readLog(ctx.Context, log, names); err != nil {
		return err
	}
	if err := log.Select(ref); err != nil {
		return err
	}
	begin, end := log.Window()
	signings, err := l.Signings(ctx.Context, begin, end)
	if err != nil {
		return err
	}
	report := log.Compare(signings, expected)
	if s.json {
		p.con.JSON(newReconcile(ref.String(), log, report))
	} else {
		p.printReconcile(ref.String(), log, report)
	}
	if !report.OK() {
		return exitStatus(fault.Defects.Exit())
	}
	return nil
}

// cloudLog returns an empty log of the cloud that a flag names, and its files.
func (s *settings) cloudLog(args []string) (*reconcile.Log, []string, error) {
	trail, _ := s.list("cloudtrail")
	audit, _ := s.list("gcp-audit")
	if (len(trail) == 0) == (len(audit) == 0) {
		return nil, nil, fault.Usage.Errorf("%d files of --cloudtrail and %d of --gcp-audit", len(trail), len(audit)).Fix("name the log of one cloud")
	}
	cloud := reconcile.AWS
	if len(audit) > 0 {
		cloud = reconcile.GCP
	}
	var names []string
	for _, name := range slices.Concat(trail, audit, args) {
		info, err := os.Stat(name)
		if err != nil || !info.IsDir() {
			names = append(names, name) // one that does not exist is reported in its turn
			continue
		}
		below, err := logFiles(name)
		if err != nil {
			return nil, nil, err
		}
		names = append(names, below...)
	}
	if len(names) > maxLogFiles {
		return nil, nil, fault.TooLarge.Errorf("%d files; at most %d are read", len(names), maxLogFiles).Fix("give the log in parts")
	}
	return reconcile.NewLog(cloud), names, nil
}

// logFiles returns the files of a log below a folder, in the order of their names. The folder with CloudTrail's digests has
// no events.
func logFiles(dir string) ([]string, error) {
	var names []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch plain := strings.TrimSuffix(path, ".gz"); {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == "CloudTrail-Digest":
			return filepath.SkipDir
		case d.Type().IsRegular() && (strings.HasSuffix(plain, ".json") || strings.HasSuffix(plain, ".jsonl")) && len(names) <= maxLogFiles:
			names = append(names, path)
		}
		return nil
	})
	if err == nil && len(names) == 0 {
		err = fault.Usage.Errorf("%q contains no .json, .jsonl, .json.gz or .jsonl.gz file", dir)
	}
	if err != nil {
		return nil, fault.Errorf("%w", err).Fix("name the files of the log, or a readable folder")
	}
	return names, nil
}

// readLog reads the files of a log.
func (p *program) readLog(ctx context.Context, log *reconcile.Log, names []string) error {
	step, end := p.con.Progress(len(names), "reading")
	defer end()
	for _, name := range names {
		file, err := input.Open(name)
		if err != nil {
			return fault.Usage.Errorf("%q: %w", name, err).Fix("name a readable file of the log")
		}
		err = log.Read(ctx, name, file)
		_ = file.Close() // nothing was written
		if err != nil {
			return err
		}
		step()
	}
	return nil
}

// underCert returns which requests must be in the log: those under the vendor certificate, if there is one; nil: all.
func (s *settings) underCert(ctx context.Context) (func(ledger.Signing) bool, error) {
	certs, err := s.vendorCerts(ctx, time.Now())
	if err != nil || len(certs) == 0 {
		return nil, err
	}
	vendor := record.SHA256(certs[0].Raw)
	return func(signing ledger.Signing) bool { return signing.Vendor == vendor }, nil
}

func (p *program) printReconcile(key string, log *reconcile.Log, r *reconcile.Report) {
	var rows [][]string
	for _, u := range r.Unexplained {
		rows = append(rows, []string{"NO ENTRY", api.Time(u.Time), orDefault(u.ID, "-"), orDefault(u.Principal, "-"), orDefault(u.UserAgent, "-"), u.Why})
	}
	for _, m := range r.Missing {
		rows = append(rows, []string{"NO SIGNATURE", api.Time(m.Time), orDefault(m.Operation, "-"), "-", "-", "entry " + strconv.FormatInt(m.Index, 10) + ", request " + m.Request.String()})
	}
	for _, e := range r.ByTime {
		rows = append(rows, []string{"by time", api.Time(e.Time), orDefault(e.ID, "-"), orDefault(e.Principal, "-"), orDefault(e.UserAgent, "-"), explainedBy(e)})
	}
	p.con.Table(rows)
	verdict := console.Styled{Level: console.Good, Text: "ok"}
	if !r.OK() {
		verdict = console.Styled{Level: console.Bad, Text: "DEFECTIVE"}
	}
	covered := "the log is empty"
	if log.Records > 0 {
		covered = fmt.Sprintf("from %s to %s", api.Time(log.From), api.Time(log.To))
	}
	probes := ""
	if r.Probes > 0 {
		probes = fmt.Sprintf("; %d signatures are probes", r.Probes)
	}
	p.con.Printf("%s: %d signatures of %s, %s: %d by id, %d by time, %d without an entry; %d requests without a signature; %d calls were refused%s",
		verdict, r.Signatures, key, covered, r.ByID, len(r.ByTime), len(r.Unexplained), len(r.Missing), r.Refused, probes)
	if len(r.Unexplained) > 0 {
		p.con.Infof("vendor csr, vendor import and vendor ceremony sign without an entry, and without a ledger so do sign, key test, doctor and vendor status")
	}
}

// explainedBy returns what a signature was made for.
func explainedBy(e reconcile.Explained) string {
	if e.Request == (record.ID{}) {
		return "probe, entry " + strconv.FormatInt(e.Entry, 10)
	}
	return "request " + e.Request.String()
}

// newReconcile describes the comparison of a log with a ledger.
func newReconcile(key string, log *reconcile.Log, r *reconcile.Report) api.LedgerReconcile {
	result := api.LedgerReconcile{
		OK: r.OK(), Key: key, From: api.Time(log.From), To: api.Time(log.To), Records: log.Records, Signatures: r.Signatures, Refused: r.Refused, ByID: r.ByID, Probes: r.Probes,
		ByTime: []api.CloudCall{}, Unexplained: []api.CloudCall{}, Missing: []api.MissingRequest{},
	}
	for _, e := range r.ByTime {
		c := newCloudCall(e.Call)
		c.Request, c.Entry = e.Request.String(), e.Entry
		result.ByTime = append(result.ByTime, c)
	}
	for _, u := range r.Unexplained {
		c := newCloudCall(u.Call)
		c.Why = u.Why
		result.Unexplained = append(result.Unexplained, c)
	}
	for _, m := range r.Missing {
		result.Missing = append(result.Missing, api.MissingRequest{Entry: m.Index, Time: api.Time(m.Time), Request: m.Request.String(), Operation: m.Operation})
	}
	return result
}

func newCloudCall(c reconcile.Call) api.CloudCall {
	return api.CloudCall{Time: api.Time(c.Time), ID: c.ID, Key: c.Key, Reason: c.Reason, Principal: c.Principal, UserAgent: c.UserAgent, File: c.File}
}
