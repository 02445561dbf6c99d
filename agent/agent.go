// Package agent is the use cases of a vendor, shared by the command line and every other front end: Prepare runs every
// check of a customer's CSR that needs no key, Issue signs what was prepared, and Status reports whether the vendor can
// sign. It is the only way to a request: nothing unchecked reaches the key, and nothing unverified is released.
//
//	vendor, err := agent.NewVendor(ctx, agent.Config{Key: key, Certificates: load})
//	prepared, err := vendor.Prepare(ctx, agent.Caller{}, agent.Order{CSR: file})
//	issued, err := vendor.Issue(ctx, prepared)
//
// A Vendor is safe for concurrent use. Refusals of a CSR or of the vendor's chain are *fault.Finding; other errors wrap
// one of the families of package signer.
package agent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"sync/atomic"

	"hsmsign/fault"
	"hsmsign/request"
	"hsmsign/signer"
)

// Caller is who asks for a request.
type Caller struct {
	// Name is the name of the caller as the front end knows it; empty for the person at the command line.
	Name string
}

// Order is what a caller asks for. The zero value of a field other than CSR is its default.
type Order struct {
	CSR      []byte         // the customer's CSR: PEM, DER, or the base64 of either
	Customer string         // name of the customer; repeated in the result
	Digest   crypto.Hash    // crypto.SHA256 (default), or crypto.SHA1 for vendor certificates older than 2021
	Format   request.Format // request.Base64 (default), which Apple accepts, or request.Plist, the XML inside
}

// Prepared is an order that passed every check under one vendor identity. It is redeemed by one Issue. Another process
// rebuilds it by preparing the order again with the stored DER of the CSR.
type Prepared struct {
	CSR    *request.CSR
	Order  Order // with its defaults filled in
	Caller Caller

	identity *identity
	redeemed atomic.Bool
}

// Issued is a signed request.
type Issued struct {
	Request   []byte // the file for the customer, in the format of the order
	CSR       []byte // DER
	Signature []byte // RSASSA-PKCS1-v1_5 over the CSR; verified
}

// Prepare checks an order against the vendor's identity: the CSR, the key of the CSR, and the dates of the vendor's
// chain. It needs no key and no network.
func (v *Vendor) Prepare(ctx context.Context, caller Caller, order Order) (*Prepared, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	id := v.identity.Load()
	if err := id.chain.CheckDates(v.cfg.Now()); err != nil {
		return nil, err
	}
	if order.Digest == 0 {
		order.Digest = crypto.SHA256
	}
	if order.Digest != crypto.SHA256 && order.Digest != crypto.SHA1 {
		return nil, fault.Errorf("%w: digest %v", signer.ErrUnsupported, order.Digest).Fix("it is SHA-256, or SHA-1")
	}
	if order.Format == "" {
		order.Format = request.Base64
	}
	if _, err := request.ParseFormat(string(order.Format)); err != nil {
		return nil, fault.Usage.Errorf("%w", err)
	}
	csr, err := request.DecodeCSR(order.CSR)
	if err != nil {
		return nil, err
	}
	if bytes.Equal(csr.Parsed.RawSubjectPublicKeyInfo, id.chain.Leaf().RawSubjectPublicKeyInfo) {
		return nil, request.VendorCSR()
	}
	return &Prepared{CSR: csr, Order: order, Caller: caller, identity: id}, nil
}

// Issue signs what was prepared and returns the request, whose signature it has verified. A Prepared is redeemed once:
// a second call is an error, whether or not the first succeeded. The key is opened by the first Issue, and again after
// a failure. The chain must still be the one of Prepare and still be valid.
func (v *Vendor) Issue(ctx context.Context, p *Prepared) (*Issued, error) {
	if p.identity != v.identity.Load() {
		return nil, fault.Conflict.Errorf("the CSR was prepared for another vendor chain").Fix("prepare it again")
	}
	if p.redeemed.Swap(true) {
		return nil, errors.New("the prepared CSR was issued already")
	}
	if err := p.identity.chain.CheckDates(v.cfg.Now()); err != nil {
		return nil, err
	}
	signature, err := v.sign(ctx, p.identity, p.CSR.DER, p.Order.Digest)
	if err != nil {
		return nil, err
	}
	return &Issued{
		Request: p.identity.encoders[p.Order.Format].Encode(p.CSR.DER, signature), CSR: p.CSR.DER, Signature: signature,
	}, nil
}

// Matches returns whether data is the very request that Issue would return. RSASSA-PKCS1-v1_5 is deterministic: a
// signature that verifies is the signature. A batch that was interrupted uses it to skip what it has written.
func (p *Prepared) Matches(data []byte) bool {
	found, err := request.Parse(data)
	if err != nil || !bytes.Equal(found.CSR, p.CSR.DER) {
		return false
	}
	pub, ok := p.identity.chain.Leaf().PublicKey.(*rsa.PublicKey)
	if !ok {
		return false
	}
	hash := p.Order.Digest.New()
	hash.Write(found.CSR)
	return rsa.VerifyPKCS1v15(pub, p.Order.Digest, hash.Sum(nil), found.Signature) == nil &&
		bytes.Equal(p.identity.encoders[p.Order.Format].Encode(found.CSR, found.Signature), data)
}
