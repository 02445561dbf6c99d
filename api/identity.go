package api

import (
	"cmp"
	"crypto/x509"
	"time"

	"hsmsign/fault"
	"hsmsign/lifecycle/identity"
	"hsmsign/lifecycle/profile"
)

// Purpose is what is known of a kind of certificate, as in docs/certificates.md.
type Purpose struct {
	Kind     string `json:"kind"` // "device-scep"
	Name     string `json:"name"`
	IssuedBy string `json:"issued_by"`
	NeededBy string `json:"needed_by"`
	OnExpiry string `json:"on_expiry"` // what happens when it expires
}

// NewPurpose describes the kind with an ID; nil if there is no such kind.
func NewPurpose(id string) *Purpose {
	k, ok := identity.Find(id)
	if !ok {
		return nil
	}
	return &Purpose{Kind: k.ID, Name: k.Name, IssuedBy: k.IssuedBy, NeededBy: k.NeededBy, OnExpiry: k.OnExpiry}
}

// InspectedCertificate is a certificate and, if its kind is known, who issues and needs it.
type InspectedCertificate struct {
	Certificate
	Purpose *Purpose `json:"purpose,omitempty"`
}

// NewInspected describes the certificates of one file, each with its purpose. kind is the ID of what they are; "": what they
// say of themselves.
func NewInspected(certs []*x509.Certificate, kind string, now time.Time) (all []InspectedCertificate) {
	for i, id := range identity.Detect(certs) {
		all = append(all, InspectedCertificate{NewCertificate(certs[i], now), NewPurpose(cmp.Or(kind, id))})
	}
	return all
}

// InspectedProfile is a configuration profile, and what it brings to a device.
type InspectedProfile struct {
	Identifier    string                `json:"identifier"`
	UUID          string                `json:"uuid"`
	Name          string                `json:"name,omitempty"`
	Organization  string                `json:"organization,omitempty"`
	Encrypted     bool                  `json:"encrypted"`                // only devices can read the payloads
	Signer        *InspectedCertificate `json:"signer,omitempty"`         // absent if it is not signed; profile verify checks it
	ReplaceBefore string                `json:"replace_before,omitempty"` // when the first certificate in it expires
	Payloads      []InspectedPayload    `json:"payloads"`
}

// InspectedPayload is one payload of a profile, without what is secret.
type InspectedPayload struct {
	Type         string           `json:"type"`
	Identifier   string           `json:"identifier"`
	UUID         string           `json:"uuid"`
	Name         string           `json:"name,omitempty"`
	Purpose      *Purpose         `json:"purpose,omitempty"` // of the certificate that the device gets
	Settings     []PayloadSetting `json:"settings,omitempty"`
	Certificates []Certificate    `json:"certificates,omitempty"`
}

// PayloadSetting is a setting of a payload that is not secret.
type PayloadSetting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// NewInspectedProfile describes a profile and its content.
func NewInspectedProfile(r *profile.Report, c *identity.Content, now time.Time) *InspectedProfile {
	p := r.Profile
	shown := &InspectedProfile{
		Identifier: p.Identifier, UUID: p.UUID, Name: p.Name, Organization: p.Organization, Encrypted: p.Encrypted, Payloads: []InspectedPayload{},
	}
	if r.Signature != nil && r.Signature.Signer != nil {
		shown.Signer = &InspectedCertificate{NewCertificate(r.Signature.Signer, now), NewPurpose(identity.ProfileSigner)}
	}
	if !c.ReplaceBefore.IsZero() {
		shown.ReplaceBefore = Time(c.ReplaceBefore)
	}
	for _, one := range c.Payloads {
		payload := InspectedPayload{Type: one.Type, Identifier: one.Identifier, UUID: one.UUID, Name: one.Name, Purpose: NewPurpose(one.Kind)}
		for _, s := range one.Settings {
			payload.Settings = append(payload.Settings, PayloadSetting(s))
		}
		if len(one.Certificates) > 0 {
			payload.Certificates = NewCertificates(one.Certificates, now)
		}
		shown.Payloads = append(shown.Payloads, payload)
	}
	return shown
}

// InspectedDEP is a DEP profile: the JSON of Apple's device assignment API.
type InspectedDEP struct {
	Name string `json:"name,omitempty"`
	URL  string `json:"url,omitempty"` // of the MDM server
}

// MessageResult is the verdict on the Mdm-Signature of a device's message.
type MessageResult struct {
	File         string        `json:"file"`
	OK           bool          `json:"ok"`
	Chain        []Certificate `json:"chain,omitempty"`         // the device's certificate first
	Trusted      bool          `json:"trusted"`                 // the chain ends at a trusted root that was named
	Digest       string        `json:"digest,omitempty"`        // of the signature: "SHA-256"
	SigningTime  string        `json:"signing_time,omitempty"`  // as the device says
	UDID         string        `json:"udid,omitempty"`          // as the message says, like the following ones
	EnrollmentID string        `json:"enrollment_id,omitempty"` // instead of the UDID in a user enrollment
	Topic        string        `json:"topic,omitempty"`
	MessageType  string        `json:"message_type,omitempty"`
	Status       string        `json:"status,omitempty"` // of the answer to a command

	Findings []fault.Finding `json:"findings"`
}

// NewMessageResult describes the verdict on a message.
func NewMessageResult(file string, r *identity.MessageReport, now time.Time) MessageResult {
	result := MessageResult{
		File: file, OK: r.OK(), UDID: r.UDID, EnrollmentID: r.EnrollmentID, Topic: r.Topic, MessageType: r.MessageType, Status: r.Status,
		Findings: append([]fault.Finding{}, r.Findings...),
	}
	if s := r.Signature; s != nil {
		result.Digest, result.Trusted = s.Digest, s.Trusted
		if s.Signer != nil {
			result.Chain = NewCertificates(s.Chain, now)
		}
		if !s.SigningTime.IsZero() {
			result.SigningTime = Time(s.SigningTime)
		}
	}
	return result
}

// PushImportResult is a PKCS#12 file that was split.
type PushImportResult struct {
	File        string          `json:"file"`
	CertOutput  string          `json:"cert_output"`
	KeyOutput   string          `json:"key_output"`
	Certificate Certificate     `json:"certificate"`
	Customer    string          `json:"customer,omitempty"` // to whom the ledger attached it
	Findings    []fault.Finding `json:"findings"`
}

// TestIdentities are the files of a certificate of every kind.
type TestIdentities struct {
	Outputs    []string `json:"outputs"`
	Passphrase string   `json:"passphrase"` // of the PKCS#12 files
}
