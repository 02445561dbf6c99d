package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"

	"hsmsign/fault"
	"hsmsign/request"
)

// The outcomes of one CSR.
const (
	statusSigned    = "signed"
	statusUnchanged = "unchanged" // the output was there already, and is right
	statusRefused   = "refused"
	statusFailed    = "failed"
)

// signResult is what --json prints for one CSR. The fields are a contract; docs/cli.md lists them.
type signResult struct {
	File      string          `json:"file"`
	Status    string          `json:"status"`
	Customer  string          `json:"customer,omitempty"`
	Output    string          `json:"output,omitempty"`
	Subject   string          `json:"subject,omitempty"`
	CSRSHA256 string          `json:"csr_sha256,omitempty"` // of the DER
	KeySHA256 string          `json:"key_sha256,omitempty"` // of the CSR's SubjectPublicKeyInfo
	Warnings  []fault.Finding `json:"warnings,omitempty"`
	Error     *jsonError      `json:"error,omitempty"`
	Request   string          `json:"request,omitempty"` // the request itself, where no output file was named
}

// jsonError is an error in JSON.
type jsonError struct {
	ID      string `json:"id,omitempty"` // the rule, where the input was refused
	Message string `json:"message"`
	Fix     string `json:"fix,omitempty"`
	Exit    int    `json:"exit"`
}

func newJSONError(err error) *jsonError {
	e := &jsonError{Message: err.Error(), Fix: fault.Hint(err), Exit: exitCode(err)}
	var found *fault.Finding
	if errors.As(err, &found) {
		e.ID = found.ID
	}
	return e
}

// describe fills in what is known of the CSR; what only --json shows is left out where it is not wanted.
func (r *signResult) describe(csr *request.CSR, full bool) {
	r.Warnings = csr.Findings
	if !full {
		return
	}
	r.Subject = describeName(csr.Parsed.Subject)
	r.CSRSHA256 = hexSHA256(csr.DER)
	r.KeySHA256 = hexSHA256(csr.Parsed.RawSubjectPublicKeyInfo)
}

func hexSHA256(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// report tells how one CSR went: its JSON object, or its warnings. An error is left to the caller.
func (job *signJob) report(r *signResult, err error) {
	if r.Status == "" {
		r.Status = statusSigned
	}
	if err != nil {
		r.Status, r.Output = statusFailed, ""
		if fault.KindOf(err) == fault.Refused {
			r.Status = statusRefused
		}
		r.Error = newJSONError(err)
	}
	if job.json {
		job.p.ui.json(r)
		return
	}
	job.p.ui.warnings(r.File, r.Warnings)
}
