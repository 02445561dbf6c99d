// Package agent is the use case itself, shared by everything in front of it: Prepare runs every check that needs
// no key, Issue signs what was prepared. Nothing unchecked reaches the HSM.
//
//	p, err := agent.Prepare(vendorChain, csrFile)
//	a, err := agent.New(vendorChain, key, crypto.SHA256)
//	req, err := a.Issue(ctx, p)
package agent

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"sync/atomic"

	"hsmsign/chain"
	"hsmsign/request"
	"hsmsign/signer"
)

// Prepared is a CSR that passed every check against one vendor chain. It is good for one Issue.
type Prepared struct {
	CSR    *request.CSR
	chain  *chain.Chain
	issued atomic.Bool
}

// Prepare decodes and checks a customer's CSR file (PEM, DER, base64) and checks it against the vendor's chain. It
// needs no key and no network. An error is a *fault.Finding. Safe for concurrent use.
func Prepare(c *chain.Chain, csrFile []byte) (*Prepared, error) {
	csr, err := request.DecodeCSR(csrFile)
	if err != nil {
		return nil, err
	}
	if bytes.Equal(csr.Parsed.RawSubjectPublicKeyInfo, c.Leaf().RawSubjectPublicKeyInfo) {
		return nil, request.VendorCSR()
	}
	return &Prepared{CSR: csr, chain: c}, nil
}

// Agent signs with one vendor identity. Safe for concurrent use.
type Agent struct {
	chain  *chain.Chain
	raw    [][]byte
	key    signer.Signer
	digest crypto.Hash
}

// New joins the vendor's key and chain; the error says so when they do not belong together. The digest is
// crypto.SHA256, or crypto.SHA1 for who asks for it by name. The key stays the caller's to close.
func New(c *chain.Chain, key signer.Signer, digest crypto.Hash) (*Agent, error) {
	if err := c.MatchKey(key.Public()); err != nil {
		return nil, err
	}
	return &Agent{chain: c, raw: c.Raw(), key: key, digest: digest}, nil
}

// Issue signs the prepared CSR and gives the request. The signature has been verified. A Prepared is redeemed
// once: a second call is an error, whether or not the first succeeded.
func (a *Agent) Issue(ctx context.Context, p *Prepared) (*request.Request, error) {
	if p.chain != a.chain {
		return nil, errors.New("the CSR was prepared for another vendor chain")
	}
	if p.issued.Swap(true) {
		return nil, errors.New("the prepared CSR was issued already")
	}
	sig, err := signer.Sign(ctx, a.key, p.CSR.DER, a.digest)
	if err != nil {
		return nil, err
	}
	return &request.Request{CSR: p.CSR.DER, Chain: a.raw, Signature: sig}, nil
}
