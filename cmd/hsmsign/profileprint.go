package main

import (
	"fmt"
	"strconv"

	"hsmsign/api"
	"hsmsign/internal/console"
)

// printProfile shows a profile, and the verdict if there is one.
func (p *program) printProfile(r api.ProfileReport, asJSON bool) {
	if asJSON {
		p.con.JSON(r)
		return
	}
	switch {
	case r.OK == nil:
		p.con.Printf("%s: %s", r.File, map[bool]string{true: "signed profile", false: "profile that is not signed"}[r.Signed])
	case *r.OK:
		p.con.Printf("%s: %s", r.File, console.Styled{Level: console.Good, Text: "good"})
	default:
		p.con.Printf("%s: %s", r.File, console.Styled{Level: console.Bad, Text: "DEFECTIVE"})
	}
	for i, c := range r.Chain {
		p.con.Field(map[bool]string{true: "signer", false: "issuer"}[i == 0], fmt.Sprintf("%s (%s to %s)", c.Subject, c.NotBefore, c.NotAfter))
	}
	p.con.Field("signature", r.Digest)
	p.con.Field("signed at", r.SigningTime)
	if found := r.Profile; found != nil {
		p.con.Field("profile", found.Identifier+" version "+strconv.Itoa(found.Version))
		p.con.Field("UUID", found.UUID)
		p.con.Field("name", found.Name)
		p.con.Field("organization", found.Organization)
		if found.Encrypted {
			p.con.Field("payloads", "encrypted")
		}
		for _, one := range found.Payloads {
			p.con.Field("payload", fmt.Sprintf("%s %s %s version %d", one.Type, one.Identifier, one.UUID, one.Version))
		}
	}
	p.printFindings(r.Findings)
}
