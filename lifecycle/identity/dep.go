package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"strings"

	"hsmsign/fault"
	"hsmsign/internal/strictder"
)

// MaxDEPProfile is the size limit of a DEP profile, in bytes.
const MaxDEPProfile = 1 << 20

// maxAnchors is how many anchors of a DEP profile are read.
const maxAnchors = 64

// DEPProfile is what a DEP profile (the JSON of Apple's device assignment API) says about certificates.
type DEPProfile struct {
	Name, URL string
	// Anchors are its anchor_certs: the certificates that a device trusts when it enrolls.
	Anchors []*x509.Certificate
}

// IsDEPProfile returns whether data looks like a DEP profile: a JSON object that names anchor_certs.
func IsDEPProfile(data []byte) bool {
	return bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) && bytes.Contains(data, []byte(`"anchor_certs"`))
}

// ReadDEPProfile reads a DEP profile. The error is a *fault.Finding, identity.dep.
func ReadDEPProfile(data []byte) (*DEPProfile, error) {
	refuse := func(format string, args ...any) (*DEPProfile, error) {
		return nil, fault.Refuse("identity.dep", "the DEP profile "+format, args...).WithFix("anchor_certs is a list of certificates, each the base64 of its DER")
	}
	if len(data) > MaxDEPProfile {
		return refuse("is larger than %d bytes", MaxDEPProfile)
	}
	var read struct {
		Name    string   `json:"profile_name"`
		URL     string   `json:"url"`
		Anchors []string `json:"anchor_certs"`
	}
	if err := json.Unmarshal(data, &read); err != nil {
		return refuse("is damaged: %s", fault.Clip(err.Error(), maxText))
	}
	if len(read.Anchors) > maxAnchors {
		return refuse("has %d anchors; at most %d are read", len(read.Anchors), maxAnchors)
	}
	p := &DEPProfile{Name: fault.Clip(read.Name, maxText), URL: fault.Clip(read.URL, maxText)}
	for i, text := range read.Anchors {
		der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(text), ""))
		if err != nil {
			return refuse("has anchor %d that is not base64", i+1)
		}
		cert, err := strictder.ParseCertificate(der)
		if err != nil {
			return refuse("has anchor %d that is not a certificate in DER", i+1)
		}
		p.Anchors = append(p.Anchors, cert)
	}
	return p, nil
}
