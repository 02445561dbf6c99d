package main

import (
	"cmp"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"hsmsign/api"
	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/internal/console"
	"hsmsign/internal/wholefile"
	"hsmsign/request"
	"hsmsign/signer"
)

// printCert shows a certificate, indented under its title.
func (p *program) printCert(title string, c api.Certificate) {
	p.con.Printf("%s: %s", title, c.Name)
	p.con.Field("subject", c.Subject)
	p.con.Field("issuer", c.Issuer)
	p.con.Field("serial", c.Serial)
	left := fmt.Sprintf("%d days left", c.DaysLeft)
	if c.DaysLeft < 0 {
		left = "expired"
	}
	p.con.Field("valid", fmt.Sprintf("%s to %s (%s)", c.NotBefore, c.NotAfter, left))
	p.con.Field("topic", c.Topic)
	p.con.Field("key", c.Key)
	p.con.Field("key SHA-256", c.KeySHA256)
	p.con.Field("SHA-256", c.SHA256)
}

func (p *program) printCSR(title string, c *api.CSR) {
	p.con.Printf("%s: certificate signing request", title)
	p.con.Field("subject", c.Subject)
	p.con.Field("key", c.Key)
	p.con.Field("signed with", c.Signature)
	p.con.Field("key SHA-256", c.KeySHA256)
	p.con.Field("SHA-256", c.SHA256)
}

// printFindings shows each finding with what to do about it and what the portal would say.
func (p *program) printFindings(findings []fault.Finding) {
	levels := map[fault.Severity]console.Level{fault.SeverityError: console.Bad, fault.SeverityWarning: console.Warning}
	for _, f := range findings {
		p.con.Printf("  %s: %s [%s]", console.Styled{Level: levels[f.Severity], Text: string(f.Severity)}, f.Message, f.ID)
		if f.Fix != "" {
			p.con.Printf("      to do:  %s", f.Fix)
		}
		if f.Portal != "" {
			p.con.Printf("      portal: %s", f.Portal)
		}
	}
}

// printReport shows the verdict on a request.
func (p *program) printReport(file string, r *request.Report, now time.Time, asJSON bool) {
	if asJSON {
		p.con.JSON(api.NewVerifyResult(file, r, now))
		return
	}
	verdict := console.Styled{Level: console.Good, Text: "good"}
	switch {
	case !r.OK():
		verdict = console.Styled{Level: console.Bad, Text: "DEFECTIVE"}
	case api.RootOf(r.Chain) == api.RootGiven:
		verdict.Text = "valid under the given trust root"
	}
	p.con.Printf("%s: %s", file, verdict)
	if r.CSR != nil {
		p.con.Field("customer", api.Name(r.CSR.Subject))
	}
	if vendor := r.Vendor(); vendor != nil {
		p.con.Field("vendor", api.Name(vendor.Subject))
	}
	p.con.Field("signature", api.DigestName(r.Digest))
	if r.OK() {
		p.con.Field("use before", api.Time(chain.FirstExpiry(r.Chain).NotAfter))
	}
	p.printFindings(r.Findings)
}

// printKey shows one key in full. The first line is its reference.
func (p *program) printKey(k signer.KeyInfo, asJSON bool) {
	info := api.NewKey(k, time.Now())
	if asJSON {
		p.con.JSON(info)
		return
	}
	p.con.Printf("%s", info.Ref)
	rows := [][]string{
		{"", "store", info.Store}, {"", "label", info.Label}, {"", "id", info.ID},
		{"", "key", fmt.Sprintf("%s %d bits", info.Algorithm, info.Bits)}, {"", "key SHA-256", info.KeySHA256},
	}
	for _, property := range info.Properties {
		rows = append(rows, []string{"", property.Name, property.Value})
	}
	if info.Certificate != nil {
		rows = append(rows, []string{"", "certificate", info.Certificate.Subject}, []string{"", "valid until", info.Certificate.NotAfter})
	}
	p.con.Table(slices.DeleteFunc(rows, func(row []string) bool { return row[2] == "" }))
}

// keyRow is a key as one row of a table.
func keyRow(k signer.KeyInfo) []string {
	size, cert := k.Algorithm, "no certificate"
	protection := map[string]string{signer.TypePublic: "public key only", signer.TypeCertificate: "certificate only"}[k.Type]
	if k.Bits > 0 {
		size += fmt.Sprintf(" %d", k.Bits)
	}
	for _, p := range k.Properties {
		protection = cmp.Or(map[string]string{
			"CKA_EXTRACTABLE no": "not extractable", "CKA_EXTRACTABLE yes": "extractable",
			"encrypted no": "not encrypted", "encrypted yes": "encrypted",
		}[p.Name+" "+p.Value], protection)
	}
	if k.Cert != nil {
		cert = "certificate"
	}
	return []string{k.Store, orDefault(k.Label, "-"), orDefault(k.ID, "-"), orDefault(size, "-"), orDefault(protection, "-"), cert}
}

func (p *program) printPublicKey(pub crypto.PublicKey) error {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return err
	}
	p.con.Write(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	return nil
}

// printStep shows one step of a diagnosis as it ends, and below it what to do.
func (p *program) printStep(step signer.Step, asJSON bool) {
	if asJSON {
		p.con.JSON(api.NewStep(step))
		return
	}
	levels := map[signer.Status]console.Level{signer.StatusOK: console.Good, signer.StatusWarn: console.Warning, signer.StatusFail: console.Bad}
	status := console.Styled{Level: levels[step.Status], Text: fmt.Sprintf("%-7s", step.Status)}
	if step.Status == signer.StatusFail {
		status.Text = strings.ToUpper(status.Text)
	}
	p.con.Printf("%s  %s", status, strings.TrimRight(fmt.Sprintf("%-14s  %s", step.Name, step.Detail), " "))
	if step.Fix != "" && step.Status != signer.StatusOK {
		p.con.Printf("%-7s  %-14s  -> %s", "", "", step.Fix)
	}
}

// writeFile writes a file whole or not at all; without force it leaves an existing file as it is.
func writeFile(path string, data []byte, mode fs.FileMode, force bool) error {
	err := wholefile.Write(path, data, mode, force)
	if errors.Is(err, fs.ErrExist) {
		return existsError(path)
	}
	return err
}

var errExists = errors.New("the output exists already")

func existsError(path string) error {
	return fault.Usage.Errorf("%q: %w", path, errExists).Fix("write elsewhere, or overwrite it with --force")
}

// checkOutput refuses, before the key is used, an output that could not be written anyway: one that exists and, forced or
// not, one that is an input.
func checkOutput(path string, force bool, inputs ...string) error {
	info, err := os.Stat(path)
	if err != nil {
		dir := filepath.Dir(path)
		if d, err := os.Stat(dir); err != nil || !d.IsDir() {
			return fault.Usage.Errorf("write %q: the folder %q does not exist", path, dir).Fix("make the folder first")
		}
		return nil
	}
	for _, input := range inputs {
		if sameFile(input, path) {
			return fault.Usage.Errorf("the output %q is also an input", path).Fix("name another output")
		}
	}
	switch {
	case info.IsDir():
		return fault.Usage.Errorf("the output %q is a folder", path).Fix("name a file, or use --out-dir")
	case !force && info.Mode().IsRegular():
		return existsError(path)
	}
	return nil
}

// sameFile returns whether two paths are one existing file.
func sameFile(a, b string) bool {
	ia, errA := os.Stat(a)
	ib, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(ia, ib)
}

// emit writes a result to a file, or to standard output if path is "" or "-".
func (p *program) emit(path string, data []byte, mode fs.FileMode, force bool) error {
	if path != "" && path != "-" {
		if force {
			wholefile.Sweep(filepath.Dir(path)) // of a run with --force that was killed
		}
		return writeFile(path, data, mode, force)
	}
	p.con.Write(data)
	if p.con.OutIsTerminal() && len(data) > 0 && data[len(data)-1] != '\n' {
		p.con.Write([]byte("\n"))
	}
	return nil
}
