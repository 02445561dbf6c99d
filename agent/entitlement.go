package agent

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"

	"hsmsign/ledger/record"

	"hsmsign/agent/policy"
	"hsmsign/agent/policy/hook"
	"hsmsign/api"
)

// Entitled asks the program of the caller's role whether the order may be signed. The answer is nil if there is no program or
// if it did not answer. If it denies, rule says so, and the error is of kind forbidden. Issue asks it, too.
func (p *Prepared) Entitled(ctx context.Context) (answer *api.Entitlement, rule string, err error) {
	rules := p.Caller.Rules
	if rules == nil || rules.Role.Entitlement == nil {
		return nil, "", nil
	}
	question, err := json.Marshal(p.question())
	if err != nil {
		return nil, "", err
	}
	got, rule, err := rules.Entitled(ctx, question)
	return newEntitlement(got), rule, err
}

// question is what the program is told.
func (p *Prepared) question() api.EntitlementRequest {
	c, csr := p.Caller.Rules, p.CSR
	return api.EntitlementRequest{
		Caller: c.Name, Role: c.Role.Name, Person: c.Person, Owners: c.Owners, Channel: p.Caller.Channel, Customer: p.Order.Customer, Vendor: p.vendor,
		Digest: p.Order.Digest.String(), Subject: policy.Attributes(csr.Parsed.Subject),
		CSRSHA256: api.SHA256(csr.DER), KeySHA256: api.SHA256(csr.Parsed.RawSubjectPublicKeyInfo),
		CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr.DER})),
	}
}

func newEntitlement(answer *hook.Answer) *api.Entitlement {
	if answer == nil {
		return nil
	}
	return &api.Entitlement{ProgramSHA256: hex.EncodeToString(answer.Program[:]), Exit: answer.Exit, Line: answer.Line}
}

// entitle returns what the recorder is told, with the answer of the program. A denial is recorded.
func (v *Vendor) entitle(ctx context.Context, p *Prepared) (record.Use, error) {
	use := p.use()
	answer, rule, err := p.Entitled(ctx)
	if answer != nil {
		text, failed := json.Marshal(answer)
		if failed != nil {
			return use, failed
		}
		use.Entitlement = text
	}
	if rule != "" && v.cfg.Recorder != nil {
		err = errors.Join(err, v.cfg.Recorder.Refuse(ctx, use, rule))
	}
	return use, err
}
