package identity

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/internal/pfx"
	"hsmsign/lifecycle/profile"
)

// Content is what a profile brings to a device.
type Content struct {
	Payloads []Payload
	// ReplaceBefore is when the first certificate in the profile expires, UTC; zero if it has no certificate. The
	// profile must be replaced before.
	ReplaceBefore time.Time
	Findings      []fault.Finding
}

// Payload is one payload of a profile.
type Payload struct {
	Type       string
	Identifier string
	UUID       string
	Name       string
	Kind       string // ID of the kind of certificate that the device gets; "": none
	// Settings are those that are not secret, in a fixed order.
	Settings     []Setting
	Certificates []*x509.Certificate
}

// Setting is one setting of a payload.
type Setting struct{ Name, Value string }

// maxOpened is how many PKCS#12 payloads of one profile are opened: each can take seconds.
const maxOpened = 4

// The types of the payloads with certificates, and of the MDM payload.
const (
	typeSCEP   = "com.apple.security.scep"
	typeACME   = "com.apple.security.acme"
	typePKCS12 = "com.apple.security.pkcs12"
	typeMDM    = "com.apple.mdm"
)

// ReadProfile reads the payloads of a profile that have to do with certificates; of others it returns the type. Challenges and
// passwords are not returned. A PKCS#12 payload is opened with the password in the profile, if there is one; ctx bounds that.
func ReadProfile(ctx context.Context, p *profile.Profile) *Content {
	c := &Content{}
	opened := 0
	for i := range p.Payloads {
		source := &p.Payloads[i]
		payload := Payload{Type: source.Type, Identifier: source.Identifier, UUID: source.UUID, Name: source.Name}
		keys := settings(source.Keys)
		switch source.Type {
		case typeSCEP:
			c.readSCEP(&payload, keys)
		case typeACME:
			payload.Kind = DeviceACME
			payload.add(keys, "DirectoryURL", "ClientIdentifier", "KeyType", "KeySize", "HardwareBound", "Attest")
		case typePKCS12:
			opened++
			c.readPKCS12(ctx, &payload, keys, opened <= maxOpened)
		case "com.apple.security.root", "com.apple.security.pem", "com.apple.security.pkcs1":
			payload.Kind = Trusted
			c.readCertificates(&payload, keys)
		case typeMDM:
			c.readMDM(&payload, keys, p)
		}
		for _, cert := range payload.Certificates {
			if c.ReplaceBefore.IsZero() || cert.NotAfter.Before(c.ReplaceBefore) {
				c.ReplaceBefore = cert.NotAfter.UTC()
			}
		}
		c.Payloads = append(c.Payloads, payload)
	}
	return c
}

func (c *Content) add(f *fault.Finding) { c.Findings = append(c.Findings, *f) }

// settings are the keys of a payload.
type settings map[string]any

// text returns a setting as text; "" if it is absent or has another type.
func (s settings) text(name string) string {
	switch v := s[name].(type) {
	case string:
		return fault.Clip(v, maxText)
	case bool, uint64, int64:
		return fmt.Sprint(v)
	}
	return ""
}

// dict returns a dictionary, empty if it is absent.
func (s settings) dict(name string) settings {
	d, _ := s[name].(map[string]any)
	return d
}

// add adds the settings of these names that are present.
func (p *Payload) add(keys settings, names ...string) {
	for _, name := range names {
		if value := keys.text(name); value != "" {
			p.Settings = append(p.Settings, Setting{name, value})
		}
	}
}

func (c *Content) readSCEP(p *Payload, keys settings) {
	p.Kind = DeviceSCEP
	// Apple nests these keys; some servers write them at the top.
	inner := keys.dict("PayloadContent")
	if len(inner) == 0 {
		inner = keys
	}
	p.add(inner, "URL", "Name", "Key Type", "Keysize", "Key Usage", "KeyIsExtractable")
	if challenge := inner.text("Challenge"); challenge != "" {
		p.Settings = append(p.Settings, Setting{"Challenge", "present, not shown"})
	}
	if strings.HasPrefix(strings.ToLower(inner.text("URL")), "http:") && inner["CAFingerprint"] == nil {
		c.add(fault.Warn("identity.scep-ca", "the SCEP payload %s uses http without CAFingerprint: the device cannot know the CA", p.UUID).
			WithFix("add CAFingerprint, or use https"))
	}
}

func (c *Content) readPKCS12(ctx context.Context, p *Payload, keys settings, open bool) {
	p.Kind = DevicePKCS12
	data, _ := keys["PayloadContent"].([]byte)
	password, hasPassword := keys["Password"].(string)
	c.add(fault.Warn("identity.key-in-profile", "the PKCS#12 payload %s contains a private key%s", p.UUID, map[bool]string{true: " and its password"}[hasPassword]).
		WithFix("keep the profile secret, or let devices make their keys: SCEP or ACME"))
	switch {
	case len(data) == 0:
		c.add(fault.Warn("identity.pkcs12", "the PKCS#12 payload %s has no PayloadContent", p.UUID).WithFix("add it"))
		return
	case !hasPassword:
		p.Settings = append(p.Settings, Setting{"Password", "absent: the device asks for it"})
		return
	case !open:
		return
	}
	content, err := pfx.Decode(ctx, data, []byte(password))
	if err != nil {
		c.add(fault.Warn("identity.pkcs12", "the PKCS#12 payload %s cannot be read: %s", p.UUID, fault.Clip(err.Error(), maxText)).
			WithFix("check Password and PayloadContent"))
		return
	}
	p.Certificates = content.Certificates()
}

func (c *Content) readCertificates(p *Payload, keys settings) {
	data, _ := keys["PayloadContent"].([]byte)
	certs, err := chain.Parse(data)
	if err != nil {
		c.add(fault.Warn("identity.certificate", "the certificate payload %s cannot be read: %s", p.UUID, fault.Clip(err.Error(), maxText)).
			WithFix("put one certificate into PayloadContent, DER or PEM"))
		return
	}
	p.Certificates = certs
}

// readMDM reads the MDM payload, and finds the payload of the identity that it names.
func (c *Content) readMDM(p *Payload, keys settings, all *profile.Profile) {
	p.add(keys, "ServerURL", "CheckInURL", "Topic", "SignMessage")
	uuid := keys.text("IdentityCertificateUUID")
	found := ""
	for i := range all.Payloads {
		one := &all.Payloads[i]
		if uuid != "" && strings.EqualFold(one.UUID, uuid) {
			found = cmp.Or(map[string]string{typeSCEP: DeviceSCEP, typeACME: DeviceACME, typePKCS12: DevicePKCS12}[one.Type], one.Type)
		}
	}
	kind, identity := Find(found)
	switch {
	case identity:
		p.Settings = append(p.Settings, Setting{"identity", kind.Name + " (" + uuid + ")"})
	case found != "":
		c.add(fault.Refuse("identity.unresolved", "IdentityCertificateUUID names a payload of type %q, which is not an identity", fault.Clip(found, 64)).
			WithFix("name the SCEP, ACME or PKCS#12 payload"))
	default:
		c.add(fault.Refuse("identity.unresolved", "IdentityCertificateUUID %q names no payload of the profile", uuid).
			WithFix("write the PayloadUUID of the SCEP, ACME or PKCS#12 payload"))
	}
	if topic := keys.text("Topic"); !strings.HasPrefix(topic, "com.apple.mgmt.") {
		c.add(fault.Refuse("identity.topic", "the Topic %q is not that of a push certificate for MDM", topic).
			WithFix("write what hsmsign push topic prints"))
	}
	if url := keys.text("ServerURL"); !strings.HasPrefix(strings.ToLower(url), "https://") {
		c.add(fault.Refuse("identity.server", "the ServerURL %q is not https", url).WithFix("devices connect with TLS only"))
	}
}
