package api

import (
	"crypto/x509"
	"encoding/base64"
	"time"

	"hsmsign/fault"
	"hsmsign/lifecycle/profile"
)

// ProfileSignResult is a profile that was signed.
type ProfileSignResult struct {
	File          string `json:"file,omitempty"`
	Output        string `json:"output,omitempty"`
	Customer      string `json:"customer,omitempty"`
	Identifier    string `json:"identifier"` // PayloadIdentifier
	UUID          string `json:"uuid"`       // PayloadUUID
	ProfileSHA256 string `json:"profile_sha256"`
	SignedSHA256  string `json:"signed_sha256"`
	Signer        string `json:"signer"`               // subject of the certificate
	NotAfter      string `json:"not_after"`            // when devices begin to show the profile as "Unverified"
	RequestID     string `json:"request_id,omitempty"` // of the ledger
	Signed        string `json:"signed,omitempty"`     // base64 of the signed profile, unless it was written to a file
}

// NewProfileSignResult describes a profile that was signed with the chain.
func NewProfileSignResult(p *profile.Profile, signed []byte, chain []*x509.Certificate) ProfileSignResult {
	first := chain[0]
	for _, cert := range chain[1:] {
		if cert.NotAfter.Before(first.NotAfter) {
			first = cert
		}
	}
	return ProfileSignResult{
		Identifier: p.Identifier, UUID: p.UUID, ProfileSHA256: SHA256(p.XML), SignedSHA256: SHA256(signed),
		Signer: Name(chain[0].Subject), NotAfter: Time(first.NotAfter), Signed: base64.StdEncoding.EncodeToString(signed),
	}
}

// ProfileReport is what a profile contains, and, of profile verify, whether its signature is valid.
type ProfileReport struct {
	File        string          `json:"file"`
	OK          *bool           `json:"ok,omitempty"` // no finding is an error; of profile verify only
	Signed      bool            `json:"signed"`
	Profile     *Profile        `json:"profile,omitempty"`      // absent if it cannot be read
	Chain       []Certificate   `json:"chain,omitempty"`        // of the signer, whose certificate is the first
	Digest      string          `json:"digest,omitempty"`       // of the signature: "SHA-256"
	SigningTime string          `json:"signing_time,omitempty"` // as the signer says
	Findings    []fault.Finding `json:"findings,omitempty"`
}

// Profile is a configuration profile.
type Profile struct {
	Identifier   string           `json:"identifier"`
	UUID         string           `json:"uuid"`
	Version      int              `json:"version"`
	Name         string           `json:"name,omitempty"`
	Organization string           `json:"organization,omitempty"`
	Encrypted    bool             `json:"encrypted"` // only devices can read the payloads
	Payloads     []ProfilePayload `json:"payloads"`
}

// ProfilePayload is one payload, without its settings, which may be secret.
type ProfilePayload struct {
	Type       string `json:"type"`
	Identifier string `json:"identifier"`
	UUID       string `json:"uuid"`
	Version    int    `json:"version"`
	Name       string `json:"name,omitempty"`
}

// NewProfileReport describes a report; verdict says that it has one.
func NewProfileReport(file string, r *profile.Report, verdict bool, now time.Time) ProfileReport {
	report := ProfileReport{File: file, Signed: r.Signature != nil, Findings: r.Findings}
	if ok := r.OK(); verdict {
		report.OK = &ok
	}
	if s := r.Signature; s != nil {
		report.Chain, report.Digest, report.SigningTime = NewCertificates(s.Chain, now), s.Digest, Time(s.SigningTime)
	}
	if r.Profile != nil {
		report.Profile = newProfile(r.Profile)
	}
	return report
}

func newProfile(p *profile.Profile) *Profile {
	shown := &Profile{
		Identifier: p.Identifier, UUID: p.UUID, Version: p.Version, Name: p.Name, Organization: p.Organization, Encrypted: p.Encrypted, Payloads: []ProfilePayload{},
	}
	for _, one := range p.Payloads {
		shown.Payloads = append(shown.Payloads, ProfilePayload{Type: one.Type, Identifier: one.Identifier, UUID: one.UUID, Version: one.Version, Name: one.Name})
	}
	return shown
}

// ProfileOrder says how a service signs a profile.
type ProfileOrder struct {
	Customer string // name of the customer whose profile it is; "": nobody's
	Profile  string // name of the identity that signs; "": the active one
}
