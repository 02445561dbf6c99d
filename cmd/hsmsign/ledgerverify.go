package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"hsmsign/api"
	"hsmsign/api/ledgerapi"
	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/internal/console"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/request"
)

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
	required, err := s.requiredCosignatures()
	if err != nil {
		return err
	}
	compared := 0
	if against, _ := s.str("against"); against != "" {
		if compared, err = p.compareWith(ctx, l, against); err != nil {
			return err
		}
	}
	var step func()
	end := func() {}
	report, err := l.Verify(ctx.Context, func(of int) {
		if step == nil {
			step, end = p.con.Progress(of, "verifying")
		}
		step()
	})
	end()
	if err != nil {
		return err
	}
	cosigned, err := l.Cosigned(ctx.Context, required)
	if err != nil && len(report.Defects) == 0 {
		return err
	}
	return p.verdict(s, l.Origin(), report, ledgerapi.NewCosigned(cosigned, time.Now()), required, compared)
}

// verdict prints the result of ledger verify. A missing cosignature is a defect too.
func (p *program) verdict(s *settings, origin string, report *ledger.Report, cosigned *api.LedgerCosigned, required, compared int) error {
	result := api.LedgerVerify{Entries: report.Entries, Defects: report.Defects, Cosigned: cosigned, Required: required, Compared: compared}
	if report.Head != nil {
		result.Root = hex.EncodeToString(report.Head.Root[:])
	}
	if text := tooFewCosignatures(cosigned, required); text != "" {
		result.Defects = append(result.Defects, record.Defect{Entry: -1, Text: text})
	}
	if result.OK = len(result.Defects) == 0; result.OK {
		result.Defects = []record.Defect{}
	}
	if s.json {
		p.con.JSON(result)
	} else {
		for _, d := range result.Defects {
			where := "the ledger"
			if d.Entry >= 0 {
				where = fmt.Sprintf("entry %d", d.Entry)
			}
			p.con.Printf("%s  %s: %s", console.Styled{Level: console.Bad, Text: "DEFECT"}, where, d.Text)
		}
		if result.OK {
			p.con.Printf("%s: %d entries of %s are whole; root %s", console.Styled{Level: console.Good, Text: "ok"}, report.Entries, origin, result.Root)
		}
		p.printCosignatures(cosigned)
		if compared > 0 {
			p.con.Field("compared", fmt.Sprintf("the ledger has grown from %d checkpoints kept elsewhere", compared))
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
	var issued []byte // the request
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
		if f.flag == "request" {
			issued = data
		}
	}
	cosigned, required, err := provenCosignatures(s, proven)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	e := api.NewLedgerEntry(record.Record{Index: proven.Index, Entry: proven.Entry, UseBefore: useBefore(issued, proven.Entry)})
	if s.json {
		p.con.JSON(api.LedgerVerify{Cosigned: cosigned, Required: required, OK: true, Entries: proven.Checkpoint.Size, Root: hex.EncodeToString(proven.Checkpoint.Root[:]), Defects: []record.Defect{}, Entry: &e})
		return nil
	}
	p.con.Printf("%s: entry %d of %s, a ledger of %d entries", console.Styled{Level: console.Good, Text: "ok"}, proven.Index, proven.Checkpoint.Origin, proven.Checkpoint.Size)
	for _, f := range ledgerapi.Fields(e)[1:] {
		p.con.Field(f[0], f[1])
	}
	p.printCosignatures(cosigned)
	return nil
}

// useBefore returns when the chain in a request expires first, if it is the chain of the entry; otherwise the zero time: an
// entry has only the hash of its chain.
func useBefore(issued []byte, e *record.Entry) time.Time {
	req, err := request.Parse(issued)
	if err != nil {
		return time.Time{}
	}
	joined := bytes.Join(req.Chain, nil)
	certs, err := x509.ParseCertificates(joined)
	if err != nil || len(certs) == 0 || record.SHA256(joined) != e.Chain {
		return time.Time{}
	}
	return chain.FirstExpiry(certs).NotAfter
}

// provenCosignatures returns who has cosigned the checkpoint of a proof; the error is about too few.
func provenCosignatures(s *settings, proven *ledger.Proven) (*api.LedgerCosigned, int, error) {
	required, err := s.requiredCosignatures()
	if err != nil {
		return nil, 0, err
	}
	witnesses, err := s.knownWitnesses()
	if err != nil {
		return nil, 0, err
	}
	found, err := ledger.FindCosignatures(proven.Checkpoint, witnesses)
	if err != nil {
		return nil, 0, err
	}
	cosigned := ledgerapi.NewCosigned(found, time.Now())
	if text := tooFewCosignatures(cosigned, required); text != "" {
		return nil, 0, fault.Defects.Errorf("%s the checkpoint of the proof", text).
			Fix("name the witnesses that you trust with --witness-key; hsmsign ledger prove writes the proof again with the newest cosignatures")
	}
	return cosigned, required, nil
}

func csrHash(data []byte) (record.Hash, error) {
	csr, err := request.DecodeCSR(data)
	if err != nil {
		return record.Hash{}, err
	}
	return record.SHA256(csr.DER), nil
}

func fileHash(data []byte) (record.Hash, error) { return record.SHA256(data), nil }
