// Package identity knows the certificates of device management: which kinds there are, who issues each, who needs it, and
// what stops when it expires.
//
//	kinds := identity.Detect(certs)                              // of the certificates in one file
//	report := identity.VerifyMessage(header, body, options)      // the Mdm-Signature of a device
//	content := identity.ReadProfile(ctx, profile)                // the payloads that bring certificates to a device
//	anchors, err := identity.ReadDEPProfile(json)                // the anchors of a DEP profile
//
// A defect is a fault.Finding with the subject identity, or mdm for a message. All functions depend only on their arguments
// and are safe for concurrent use.
package identity

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/asn1"
	"slices"
	"strings"

	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/internal/pfx"
	"hsmsign/lifecycle/pushcert"
)

// Kind is a kind of certificate. The texts are clauses without a period.
type Kind struct {
	ID       string // "device-scep"
	Name     string
	IssuedBy string
	NeededBy string
	OnExpiry string
	HSMSign  string // what hsmsign does with it, with its commands in backquotes
}

// The IDs of the kinds that other code names.
const (
	Vendor            = "vendor"
	AppleCA           = "apple-ca"
	Push              = "push"
	PushPKCS12        = "push-profile-manager"
	Device            = "device"
	DevicePKCS12      = "device-pkcs12"
	DeviceSCEP        = "device-scep"
	DeviceACME        = "device-acme"
	DeviceCA          = "device-ca"
	SCEPRA            = "scep-ra"
	ProfileSigner     = "profile-signing"
	ProfileEncryption = "profile-encryption"
	Trusted           = "trusted"
	ServerTLS         = "server-tls"
	ServerCA          = "server-ca"
	ABMToken          = "abm-token"
	DEPAnchor         = "dep-anchor"
)

// deviceExpiry is what happens when the identity of a device expires, however it was issued.
const deviceExpiry = "the device can no longer authenticate, and the server loses control of it; replace the enrollment profile before"

// kinds is the table of docs/certificates.md.
var kinds = []Kind{
	{
		Vendor, "MDM vendor certificate", "Apple's developer portal, for members of the Developer Enterprise Program with the MDM vendor option",
		"the vendor, to sign customers' Push Certificate Requests",
		"Apple refuses new requests; push certificates that exist remain valid",
		"makes the CSR and the bundle, signs with the key: `vendor csr`, `vendor import`, `vendor status`, `sign`",
	}, {
		AppleCA, "CA of the vendor or push certificate", "Apple",
		"each Push Certificate Request, which contains the chain of the vendor certificate",
		"Apple refuses requests that contain it; get the newer intermediate",
		"downloads it by pinned SHA-256 and builds the chain: `chain fetch`, `chain build`, `chain check`",
	}, {
		Push, "push certificate", "Apple's Push Certificates Portal, for a request that an MDM vendor signed: the organization's vendor, or mdmcert.download",
		"the MDM server, to wake devices through the Apple Push Notification service",
		"no device can be reached; renew it with the same Apple Account, because with another topic every device has to enroll again",
		"signs the request, checks certificate and renewal, writes the server's file: `push`, `sign`, `ledger attach`",
	}, {
		PushPKCS12, "push certificate of Profile Manager (.p12)", "Apple, through macOS Server, with only an Apple Account",
		"Profile Manager, and the MDM server that takes over its devices",
		"as any push certificate; renew it with the Apple Account of Profile Manager",
		"splits the file, checks key and topic, and records the certificate: `push import`",
	}, {
		Device, "device identity", "the MDM server's CA, or the organization's CA",
		"the device, to authenticate to the MDM server with TLS or Mdm-Signature",
		deviceExpiry,
		"shows it, and verifies messages that it signed: `inspect`, `verify --mdm-signature`",
	}, {
		DevicePKCS12, "device identity in a PKCS#12 payload", "the MDM server or the organization's CA, often self-signed; the key travels in the profile",
		"the device, to authenticate to the MDM server with TLS or Mdm-Signature",
		deviceExpiry,
		"shows it in the profile, and warns that the profile contains the key: `inspect`",
	}, {
		DeviceSCEP, "device identity by SCEP", "a SCEP server, for a key that the device makes",
		"the device, to authenticate to the MDM server with TLS or Mdm-Signature",
		deviceExpiry,
		"shows the settings in the profile, and the issued certificate: `inspect`, `verify --mdm-signature`",
	}, {
		DeviceACME, "device identity by ACME", "an ACME server, for a key that the device makes and can attest",
		"the device, to authenticate to the MDM server with TLS or Mdm-Signature",
		deviceExpiry,
		"shows the settings in the profile, and the issued certificate: `inspect`, `verify --mdm-signature`",
	}, {
		DeviceCA, "CA of device identities", "itself, or the organization's root CA",
		"the MDM server, to accept the certificates of its devices only",
		"the device identities that it issued are no longer accepted; renew them under a new CA before",
		"verifies the chain of a device: `verify --mdm-signature --trust-root`",
	}, {
		SCEPRA, "registration authority of a SCEP server", "the CA of device identities",
		"the SCEP server, to decrypt requests of devices and to sign its answers",
		"no device can enroll or renew its identity; identities that exist remain valid",
		"shows it: `inspect`",
	}, {
		ProfileSigner, "profile signing certificate", "any CA that the devices trust, such as that of the MDM server's TLS certificate; Apple, for developers",
		"the publisher of profiles, so that devices show them as \"Verified\"",
		"devices show the profiles that it signed as \"Unverified\"; sign them again",
		"signs and verifies profiles with a key that is not the vendor's: `profile sign`, `profile verify`",
	}, {
		ProfileEncryption, "profile encryption certificate", "the issuer of the device identity: it is usually the same certificate",
		"the server that encrypts a profile for one device, which has the key",
		"no new profile can be encrypted for the device; installed profiles remain",
		"encrypts the payloads of a profile to it: `profile encrypt`",
	}, {
		Trusted, "certificate that a profile makes trusted", "the organization, usually as its own root CA",
		"the device, to trust servers and signers of the organization before the MDM payload is installed",
		"the device refuses every server and signer below it, which may include the MDM server; replace the profile before",
		"shows it in the profile: `inspect`",
	}, {
		ServerTLS, "MDM server certificate (TLS)", "a public CA, the organization's CA, or itself",
		"the MDM server, for every connection of devices",
		"no device can connect to the server, and the server loses control of them",
		"shows the chain, and watches its dates: `inspect`, `ledger watch add`",
	}, {
		ServerCA, "CA of the MDM server", "itself, or the organization's root CA; public CAs are known to devices",
		"the devices, in the profile with the MDM payload or as a DEP anchor",
		"no device can connect to the server: every certificate of the chain must be valid",
		"shows the chain, and watches its dates: `inspect`, `ledger watch add`",
	}, {
		ABMToken, "certificate for the server token (Apple Business Manager, DEP)", "itself: the MDM server makes the key pair",
		"Apple, to encrypt the server token; the MDM server, to decrypt it",
		"nothing by itself; the token expires after a year, and then no devices are assigned until a new token is downloaded",
		"makes the key pair and decrypts the token: `abm keypair`, `abm decrypt`",
	}, {
		DEPAnchor, "DEP anchor certificate", "the organization, as root of its MDM server's TLS certificate",
		"a device in automated enrollment, where nobody can accept an unknown server; it is in anchor_certs of the DEP profile",
		"devices cannot enroll automatically; assign a DEP profile with the new anchor before",
		"shows it in the DEP profile: `inspect`",
	},
}

// Kinds returns all kinds in the order of docs/certificates.md. The caller may change the slice.
func Kinds() []Kind { return slices.Clone(kinds) }

// Find returns the kind with an ID.
func Find(id string) (Kind, bool) {
	i := slices.IndexFunc(kinds, func(k Kind) bool { return k.ID == id })
	if i < 0 {
		return Kind{}, false
	}
	return kinds[i], true
}

var (
	oidRequestAgent = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 1} // Microsoft's "certificate request agent"
	oidRA           = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 28}      // id-kp-cmcRA (RFC 6402 section 2.10)
)

// Detect returns the ID of the kind of each certificate in a file, "" if it cannot be known: many certificates are told apart
// by their use only. The kind of a CA certificate is known from what it issued in the same file.
func Detect(certs []*x509.Certificate) []string {
	ids := make([]string, len(certs))
	for i, cert := range certs {
		ids[i] = detect(cert)
	}
	for range certs { // from the leaf up to the root
		for i, cert := range certs {
			if !cert.IsCA || ids[i] != "" {
				continue
			}
			for j, issued := range certs {
				if i != j && bytes.Equal(issued.RawIssuer, cert.RawSubject) {
					ids[i] = map[string]string{Vendor: AppleCA, Push: AppleCA, AppleCA: AppleCA, Device: DeviceCA, SCEPRA: DeviceCA, DeviceCA: DeviceCA, ServerTLS: ServerCA, ServerCA: ServerCA}[ids[j]]
				}
				if ids[i] != "" {
					break
				}
			}
		}
	}
	return ids
}

func detect(cert *x509.Certificate) string {
	has := func(usage x509.ExtKeyUsage) bool { return slices.Contains(cert.ExtKeyUsage, usage) }
	_, pinned := chain.Lookup(cert)
	switch {
	case pinned:
		return AppleCA
	case pushcert.Topic(cert) != "":
		return Push
	case cert.IsCA:
		return ""
	case chain.HasVendorExtension(cert), strings.HasPrefix(cert.Subject.CommonName, "MDM Vendor:"):
		return Vendor
	case slices.ContainsFunc(cert.UnknownExtKeyUsage, func(o asn1.ObjectIdentifier) bool { return o.Equal(oidRequestAgent) || o.Equal(oidRA) }):
		return SCEPRA
	case has(x509.ExtKeyUsageServerAuth):
		return ServerTLS
	case has(x509.ExtKeyUsageClientAuth):
		return Device
	case has(x509.ExtKeyUsageCodeSigning), has(x509.ExtKeyUsageEmailProtection):
		return ProfileSigner
	case cert.KeyUsage != x509.KeyUsageKeyEncipherment, strings.Contains(cert.Subject.CommonName, "mdmcert"): // mdmcert.download's
		return ""
	case bytes.Equal(cert.RawIssuer, cert.RawSubject):
		return ABMToken
	}
	return ProfileEncryption
}

// DetectPKCS12 returns the ID of the kind of a PKCS#12 file, which says more than its certificate alone; "" if it cannot be
// known. There is a finding if no certificate is that of the key.
func DetectPKCS12(f *pfx.File) (string, []fault.Finding) {
	if f.Certificate == nil {
		return "", []fault.Finding{*fault.Warn("identity.key-mismatch", "no certificate in the file matches its private key").
			WithFix("export certificate and key together")}
	}
	id := detect(f.Certificate)
	return cmp.Or(map[string]string{Push: PushPKCS12, Device: DevicePKCS12}[id], id), nil
}
