package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/cms"
)

// The size limits of a message, in bytes. Apple says that a header has about 2 KiB; it grows with the chain. A list of
// installed apps can be a long body.
const (
	MaxHeader = 32 << 10
	MaxBody   = 16 << 20
)

// maxDepth is how deep the elements of a body may be nested.
const maxDepth = 64

// MessageOptions says what a message is checked against.
type MessageOptions struct {
	Intermediates []*x509.Certificate // besides those in the signature
	Roots         []*x509.Certificate // the CA of the devices; empty: trust is not checked
	Now           time.Time
}

// MessageReport is the result of VerifyMessage.
type MessageReport struct {
	Signature *cms.Signed // nil if it cannot be read
	// From the body, which says them of itself; "" if absent.
	UDID, EnrollmentID, Topic, MessageType, Status string

	Findings []fault.Finding
}

// OK returns whether no finding is an error.
func (r *MessageReport) OK() bool { return fault.First(r.Findings) == nil }

func (r *MessageReport) add(f *fault.Finding) { r.Findings = append(r.Findings, *f) }

const fixHeader = "give the value of the header Mdm-Signature as it was received"

// VerifyMessage checks the header Mdm-Signature of a device's message: a CMS signature (RFC 5652) in base64 over exactly the
// bytes of the body, with one signer, whose certificate is in it. The name of the header may be in front of the value.
//
// A signature proves who made the body, and not when it was sent: it can be sent again.
func VerifyMessage(header string, body []byte, o MessageOptions) *MessageReport {
	r := &MessageReport{}
	r.readBody(body)
	message, f := decodeHeader(header)
	if f != nil {
		r.add(f)
		return r
	}
	if body == nil {
		body = []byte{} // nil would mean that the content is in the signature
	}
	signed, err := cms.Verify(message, cms.VerifyOptions{Content: body, Intermediates: o.Intermediates, Roots: o.Roots, At: o.Now})
	if err != nil {
		f := &fault.Finding{}
		if !errors.As(err, &f) {
			f = fault.Refuse("mdm.header", "%v", err)
		}
		r.add(f.WithFix(fixHeader))
		return r
	}
	r.Signature = signed
	for _, f := range signed.Findings {
		switch {
		case f.ID == "cms.digest" && signed.Digest == "SHA-1":
			f = *fault.Warn("mdm.digest", "the signature uses SHA-1, as old devices do").WithFix("update the device")
		case f.ID == "cms.signature":
			f.Fix = "compare the body with the bytes that the device sent: a proxy must not change it"
		}
		r.add(&f)
	}
	r.checkSigner(o)
	return r
}

// decodeHeader returns the CMS message in a header.
func decodeHeader(header string) ([]byte, *fault.Finding) {
	if len(header) > MaxHeader {
		return nil, fault.Refuse("mdm.header", "the header is longer than %d bytes", MaxHeader).WithFix(fixHeader)
	}
	value := strings.TrimSpace(header)
	const name = "Mdm-Signature:"
	if len(value) >= len(name) && strings.EqualFold(value[:len(name)], name) {
		value = value[len(name):]
	}
	value = strings.Join(strings.Fields(value), "")
	if value == "" {
		return nil, fault.Refuse("mdm.header", "the header is empty").WithFix("set SignMessage to true in the MDM payload; " + fixHeader)
	}
	message, err := base64.StdEncoding.DecodeString(value)
	if err != nil {
		return nil, fault.Refuse("mdm.header", "the header is not base64: %v", err).WithFix(fixHeader)
	}
	return message, nil
}

// checkSigner adds what is wrong with the signer as the certificate of a device.
func (r *MessageReport) checkSigner(o MessageOptions) {
	cert := r.Signature.Signer
	if cert == nil {
		return
	}
	anyUse := slices.ContainsFunc(cert.ExtKeyUsage, func(u x509.ExtKeyUsage) bool { return u == x509.ExtKeyUsageClientAuth || u == x509.ExtKeyUsageAny })
	switch {
	case cert.IsCA:
		r.add(fault.Refuse("mdm.signer", "the signer %q is a CA, not a device", fault.Clip(cert.Subject.CommonName, maxText)).WithFix("a device signs with its own identity"))
	case len(cert.ExtKeyUsage)+len(cert.UnknownExtKeyUsage) > 0 && !anyUse:
		r.add(fault.Warn("mdm.signer", "the certificate of %q is not for clients: its extended key usage has no clientAuth", fault.Clip(cert.Subject.CommonName, maxText)).
			WithFix("check that it is the identity of a device"))
	}
	if len(o.Roots) == 0 {
		r.add(fault.Warn("mdm.trust", "whether the CA of the devices issued the certificate was not checked: anybody can make such a signature").
			WithFix("name the CA with --trust-root, or compare the SHA-256 with that of the device's enrollment"))
	}
}

// maxText is how many bytes of a text from outside are shown.
const maxText = 256

// readBody reads the names in a message: the strings at the top of a property list in XML.
func (r *MessageReport) readBody(body []byte) {
	if len(body) > MaxBody {
		r.add(fault.Refuse("mdm.body", "the body is larger than %d bytes", MaxBody).WithFix("give one message"))
		return
	}
	values, err := topStrings(body)
	if err != nil {
		r.add(fault.Refuse("mdm.body", "the body is not a message of a device: %v", err).WithFix("give the body of the request as it was received"))
		return
	}
	get := func(key string) string { return fault.Clip(values[key], maxText) }
	r.UDID, r.EnrollmentID, r.Topic, r.MessageType, r.Status = get("UDID"), get("EnrollmentID"), get("Topic"), get("MessageType"), get("Status")
	if r.UDID == "" && r.EnrollmentID == "" {
		r.add(fault.Warn("mdm.device", "the body has no UDID and no EnrollmentID").WithFix("a server must check that the device in the body has this certificate"))
	}
}

// topStrings returns the values of type string of the dictionary of a property list in XML.
func topStrings(data []byte) (map[string]string, error) {
	decoder := xml.NewDecoder(bytes.NewReader(data))
	values, seen := map[string]string{}, map[string]bool{}
	var open []string
	var key string
	var text strings.Builder
	roots, dicts := 0, 0
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, errors.New("it is not XML, or cut short")
		}
		switch t := token.(type) {
		case xml.Directive:
			if bytes.ContainsRune(t, '[') {
				return nil, errors.New("its document type declares entities")
			}
		case xml.StartElement:
			if len(open) == 0 {
				roots++
			}
			if open = append(open, t.Name.Local); len(open) > maxDepth {
				return nil, fmt.Errorf("its elements are nested deeper than %d", maxDepth)
			}
			if text.Reset(); len(open) == 2 {
				dicts++
			}
			if roots > 1 || open[0] != "plist" || len(open) > 1 && open[1] != "dict" {
				return nil, errors.New("it is not a property list with a dictionary")
			}
		case xml.CharData:
			text.Write(t)
		case xml.EndElement:
			if len(open) == 3 {
				switch open[2] {
				case "key":
					if key = text.String(); seen[key] {
						return nil, fmt.Errorf("the key %q occurs twice", fault.Clip(key, 64))
					}
					seen[key] = true
				case "string":
					values[key] = text.String()
				}
			}
			open = open[:len(open)-1]
		}
	}
	if dicts != 1 {
		return nil, errors.New("it is not a property list with a dictionary")
	}
	return values, nil
}
