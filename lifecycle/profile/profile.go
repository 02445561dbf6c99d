// Package profile reads, signs, verifies and encrypts configuration profiles (.mobileconfig), as Apple's Configuration
// Profile Reference describes them.
//
//	p, err := profile.Parse(file)                       // a profile that is not signed
//	signed, err := profile.Sign(ctx, key, chain, p, now) // as CMS SignedData, the profile inside
//	report := profile.Verify(signed, profile.VerifyOptions{Roots: roots, Now: now})
//	encrypted, err := profile.Encrypt(p, devices...)    // its payloads, for the certificates of devices
//
// Parse is strict, because only what it returns is signed: XML, one dictionary, no key twice, and every key that a device
// needs. What a payload means is not checked. A profile is signed with a certificate of its own purpose: CheckSigner
// refuses the vendor's, whose key signs customers' CSRs only.
//
// Everything here is safe for concurrent use. Refusals are *fault.Finding with the subject profile.
package profile

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"

	"howett.net/plist"

	"hsmsign/fault"
	"hsmsign/internal/cms"
	"hsmsign/internal/filekind"
)

// MaxSize is the size limit of a profile, in bytes. It is the same for a signed one.
const MaxSize = 1 << 20

const (
	maxDepth    = 32  // of nested elements
	maxPayloads = 500 // of one profile
	maxText     = 512 // bytes of an identifier or name
)

// Profile is a configuration profile that is not signed.
type Profile struct {
	Identifier   string
	UUID         string
	Name         string // PayloadDisplayName; optional
	Organization string // optional
	Version      int
	// Encrypted says that the payloads are in EncryptedPayloadContent, which only the devices can read.
	Encrypted bool
	Payloads  []Payload
	// XML is the file as it was read.
	XML []byte

	keys map[string]any
}

// Payload is one payload of a profile.
type Payload struct {
	Type       string // "com.apple.security.scep"
	Identifier string
	UUID       string
	Name       string // PayloadDisplayName; optional
	Version    int
	// Keys are all keys of the payload, with values of package plist: string, bool, uint64, int64, float64, time.Time, []byte,
	// []any and map[string]any. They may be secret.
	Keys map[string]any
}

// Parse reads a profile that is not signed: an XML property list. The error is a *fault.Finding.
func Parse(data []byte) (*Profile, error) {
	if len(data) > MaxSize {
		return nil, fault.Refuse("profile.size", "the profile is larger than %d bytes", MaxSize).WithFix("make it smaller, or split it")
	}
	if cms.IsSigned(data) {
		return nil, fault.Refuse("profile.signed", "the profile is signed already").WithFix("name the profile from which it was made, which is not signed")
	}
	if err := checkXML(data); err != nil {
		return nil, err
	}
	p := &Profile{XML: data}
	if _, err := plist.Unmarshal(data, &p.keys); err != nil {
		return nil, notPlist(data, fault.Clip(err.Error(), 160))
	}
	if err := p.read(); err != nil {
		return nil, err
	}
	return p, nil
}

func notPlist(data []byte, why string) *fault.Finding {
	f := fault.Refuse("profile.form", "not a configuration profile in XML: %s", why)
	if bytes.HasPrefix(data, []byte("bplist")) {
		return f.WithFix("convert it with plutil -convert xml1")
	}
	return f.WithFix("name a .mobileconfig file")
}

// checkXML checks the structure, in which the property list must be the only element: nesting, keys that occur twice, and
// entities. Programs differ in which of two keys counts, so a device could see another profile than the one that was checked.
func checkXML(data []byte) error {
	if bytes.HasPrefix(data, []byte("bplist")) {
		return notPlist(data, "it is a binary property list")
	}
	decoder := xml.NewDecoder(bytes.NewReader(data))
	var open []string
	var keys []map[string]bool // of each open element
	var key strings.Builder    // text of the open <key>, which may come in pieces
	roots := 0
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return notPlist(data, "it is "+string(filekind.Of(data))+", or damaged")
		}
		switch t := token.(type) {
		case xml.Directive:
			if bytes.ContainsRune(t, '[') {
				return notPlist(data, "its document type declares entities")
			}
		case xml.StartElement:
			switch n := len(open); {
			case n == 0:
				roots++
			case open[n-1] == "key":
				return notPlist(data, "a key contains an element")
			}
			key.Reset()
			if open, keys = append(open, t.Name.Local), append(keys, map[string]bool{}); len(open) > maxDepth {
				return notPlist(data, fmt.Sprintf("its elements are nested deeper than %d", maxDepth))
			}
		case xml.EndElement:
			if n := len(open); n > 1 && t.Name.Local == "key" {
				name := key.String()
				if keys[n-2][name] {
					return fault.Refuse("profile.repeated-key", "the key %q occurs twice in a dictionary", fault.Clip(name, 64)).WithFix("remove one of them")
				}
				keys[n-2][name] = true
			}
			open, keys = open[:len(open)-1], keys[:len(keys)-1]
		case xml.CharData:
			switch n := len(open); {
			case n == 0 && strings.TrimLeft(string(t), " \t\r\n\ufeff") != "":
				return notPlist(data, "text is outside of it")
			case n > 0 && open[n-1] == "key":
				key.Write(t)
			}
		}
	}
	if roots != 1 {
		return notPlist(data, fmt.Sprintf("it has %d elements at the top, want 1", roots))
	}
	return nil
}

// read reads the keys that every profile has.
func (p *Profile) read() (err error) {
	if kind, _ := p.keys["PayloadType"].(string); kind != "Configuration" {
		return fault.Refuse("profile.type", "the PayloadType of the profile is %q, want \"Configuration\"", fault.Clip(kind, 64)).WithFix("name a configuration profile")
	}
	if p.Identifier, p.UUID, p.Version, err = common("the profile", p.keys); err != nil {
		return err
	}
	p.Name, p.Organization = text(p.keys, "PayloadDisplayName"), text(p.keys, "PayloadOrganization")
	_, p.Encrypted = p.keys["EncryptedPayloadContent"].([]byte)
	content, present := p.keys["PayloadContent"]
	list, ok := content.([]any)
	switch {
	case p.Encrypted && present:
		return fault.Refuse("profile.content", "the profile has both PayloadContent and EncryptedPayloadContent").WithFix("remove one of them")
	case p.Encrypted:
		return nil
	case !ok || len(list) == 0:
		return fault.Refuse("profile.content", "the profile has no list PayloadContent with a payload").WithFix("add a payload")
	case len(list) > maxPayloads:
		return fault.Refuse("profile.content", "the profile has %d payloads; at most %d are allowed", len(list), maxPayloads).WithFix("split the profile")
	}
	uuids := map[string]string{strings.ToUpper(p.UUID): "the profile"}
	for i, item := range list {
		what := fmt.Sprintf("payload %d", i+1)
		payload, err := readPayload(what, item)
		if err != nil {
			return err
		}
		if other := uuids[strings.ToUpper(payload.UUID)]; other != "" {
			return fault.Refuse("profile.repeated-uuid", "%s has the PayloadUUID of %s, %s", what, other, payload.UUID).WithFix("make a new one with uuidgen")
		}
		uuids[strings.ToUpper(payload.UUID)] = what
		p.Payloads = append(p.Payloads, payload)
	}
	return nil
}

func readPayload(what string, item any) (payload Payload, err error) {
	keys, ok := item.(map[string]any)
	if !ok {
		return payload, fault.Refuse("profile.content", "%s is not a dictionary", what).WithFix("correct PayloadContent")
	}
	payload.Keys, payload.Type, payload.Name = keys, text(keys, "PayloadType"), text(keys, "PayloadDisplayName")
	if payload.Type == "" {
		return payload, fault.Refuse("profile.type", "%s has no PayloadType", what).WithFix("add it: com.apple...")
	}
	payload.Identifier, payload.UUID, payload.Version, err = common(what, keys)
	return payload, err
}

// common reads the keys that the profile and each payload must have.
func common(what string, keys map[string]any) (identifier, uuid string, version int, err error) {
	identifier, uuid = text(keys, "PayloadIdentifier"), text(keys, "PayloadUUID")
	switch v := keys["PayloadVersion"].(type) {
	case uint64:
		version = int(min(v, 1<<31-1)) // #nosec G115 -- bounded
	case int64:
		version = int(max(v, -1))
	}
	switch {
	case identifier == "":
		err = fault.Refuse("profile.identifier", "%s has no PayloadIdentifier of at most %d bytes", what, maxText).WithFix("add it: com.example.wifi")
	case uuid == "":
		err = fault.Refuse("profile.uuid", "%s has no PayloadUUID of at most %d bytes", what, maxText).WithFix("make one with uuidgen")
	case version < 1:
		err = fault.Refuse("profile.version", "%s has no PayloadVersion", what).WithFix("add it: the integer 1")
	}
	return identifier, uuid, version, err
}

// text returns a string; "" if it is absent, another type or too long.
func text(keys map[string]any, name string) string {
	value, _ := keys[name].(string)
	if len(value) > maxText {
		return ""
	}
	return value
}
