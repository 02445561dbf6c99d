package signer

import (
	"context"
	"crypto"
	"slices"
)

// ProbeMessage is what a vendor key signs to show that it works: the only message besides certificate signing requests. A
// signature over it is worth nothing to anybody, because no program accepts the message as something else. It is ASCII
// text. A structure in DER that means anything (a CSR, a certificate, signed attributes) is a SEQUENCE or a SET and begins
// with "0" or "1"; this begins with "h", and with "s" as a length it is cut off. It is no JSON, no property list, no PEM and
// no base64, and a TLS 1.3 signature covers 64 spaces first.
//
// The message never changes, so a signature over it shows that the key signs, and not that it signed just now.
const ProbeMessage = "hsmsign probe: the key that signed this text works. It is no request and no certificate.\n"

// Probe has the key sign ProbeMessage with SHA-256. The signature is verified and dropped. Whoever wants to know whether a key
// works calls it: a vendor key never signs random data.
func Probe(ctx context.Context, key Signer) error {
	_, err := Sign(ctx, key, []byte(ProbeMessage), crypto.SHA256)
	return err
}

// ProbeReason begins the Reason of the operation of a probe; a random id follows.
const ProbeReason = "hsmsign-probe-"

// Names returns a name for each attempt under which the log of the key store may have it: the id of the service, or Reason
// if there is none.
func (o *Operation) Names() []string {
	var names []string
	for _, a := range o.Attempts() {
		name := a.ID
		if name == "" {
			name = o.Reason
		}
		names = append(names, name)
	}
	return slices.Clip(names)
}
