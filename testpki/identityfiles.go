package testpki

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"software.sslmate.com/src/go-pkcs12"

	"hsmsign/internal/wholefile"
)

// Passphrase is the passphrase of the PKCS#12 files and payloads of a test PKI. It protects nothing.
const Passphrase = "hsmsign-test"

// PKCS12 returns key, certificate and chain as PKCS#12 with Passphrase. legacy is the encryption of old programs such as
// Profile Manager (RC2 and triple DES), otherwise it is PBES2.
func (i Identity) PKCS12(legacy bool) ([]byte, error) {
	encoder := pkcs12.Modern2023.WithIterations(2048)
	if legacy {
		encoder = pkcs12.LegacyRC2.WithIterations(2048)
	}
	return encoder.Encode(i.Key, i.Certificate, i.Chain, Passphrase)
}

// PEM returns the certificate and its chain.
func (i Identity) PEM() []byte {
	var text []byte
	for _, cert := range append([]*x509.Certificate{i.Certificate}, i.Chain...) {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: certBlock, Bytes: cert.Raw})...)
	}
	return text
}

// find returns the identity of a kind. It is in list.
func find(list []Identity, kind string) Identity {
	return list[slices.IndexFunc(list, func(i Identity) bool { return i.Kind == kind })]
}

// EnrollmentProfile returns a configuration profile (XML) that enrolls a device with the result of Identities: a trusted
// certificate, an identity, and the MDM payload. identity is the kind of the identity: device-scep, device-acme or
// device-pkcs12.
func EnrollmentProfile(list []Identity, identity string) ([]byte, error) {
	var payload string
	switch identity {
	case "device-scep":
		payload = entry("PayloadType", "com.apple.security.scep") + "\t\t\t<key>PayloadContent</key>\n\t\t\t<dict>\n" +
			entry("URL", "https://scep.example/scep") + entry("Name", "hsmsign TEST Device CA") + entry("Challenge", Passphrase) +
			entry("Key Type", "RSA") + "\t\t\t<key>Keysize</key>\n\t\t\t<integer>2048</integer>\n\t\t\t</dict>\n"
	case "device-acme":
		payload = entry("PayloadType", "com.apple.security.acme") + entry("DirectoryURL", "https://acme.example/directory") +
			entry("ClientIdentifier", "C02TEST00001") + entry("KeyType", "ECSECPrimeRandom") +
			"\t\t\t<key>KeySize</key>\n\t\t\t<integer>384</integer>\n\t\t\t<key>HardwareBound</key>\n\t\t\t<true/>\n\t\t\t<key>Attest</key>\n\t\t\t<true/>\n"
	case "device-pkcs12":
		p12, err := find(list, identity).PKCS12(true)
		if err != nil {
			return nil, err
		}
		payload = entry("PayloadType", "com.apple.security.pkcs12") + entry("Password", Passphrase) + data("PayloadContent", p12)
	default:
		return nil, fmt.Errorf("the test identity %q has no payload", identity)
	}
	id := uuid()
	trusted := entry("PayloadType", "com.apple.security.root") + data("PayloadContent", find(list, "trusted").Certificate.Raw)
	mdm := entry("PayloadType", "com.apple.mdm") + entry("ServerURL", "https://mdm.example/server") + entry("CheckInURL", "https://mdm.example/checkin") +
		entry("Topic", topicOf(find(list, "push").Certificate)) + entry("IdentityCertificateUUID", id) +
		"\t\t\t<key>SignMessage</key>\n\t\t\t<true/>\n\t\t\t<key>AccessRights</key>\n\t\t\t<integer>8191</integer>\n"
	return []byte(`<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
` + entry("PayloadType", "Configuration") + common("example.mdm", uuid()) + entry("PayloadDisplayName", "hsmsign TEST Enrollment") + `
	<key>PayloadContent</key>
	<array>
		<dict>
` + trusted + common("example.mdm.root", uuid()) + `		</dict>
		<dict>
` + payload + common("example.mdm.identity", id) + `		</dict>
		<dict>
` + mdm + common("example.mdm.mdm", uuid()) + `		</dict>
	</array>
</dict>
</plist>
`), nil
}

func common(identifier, id string) string {
	return entry("PayloadIdentifier", identifier) + entry("PayloadUUID", id) + "\t\t\t<key>PayloadVersion</key>\n\t\t\t<integer>1</integer>\n"
}

func entry(key, value string) string {
	return "\t\t\t<key>" + key + "</key>\n\t\t\t<string>" + value + "</string>\n"
}

func data(key string, value []byte) string {
	return "\t\t\t<key>" + key + "</key>\n\t\t\t<data>" + base64.StdEncoding.EncodeToString(value) + "</data>\n"
}

// topicOf returns the topic of a push certificate that the authority issued.
func topicOf(cert *x509.Certificate) string {
	for _, attribute := range cert.Subject.Names {
		if attribute.Type.Equal(oidUserID) {
			return fmt.Sprint(attribute.Value)
		}
	}
	return ""
}

// DEPProfile returns a DEP profile (the JSON of Apple's device assignment API) with the anchor of Identities.
func DEPProfile(list []Identity) ([]byte, error) {
	return json.MarshalIndent(map[string]any{
		"profile_name": "hsmsign TEST", "url": "https://mdm.example/enroll", "await_device_configured": true,
		"anchor_certs": [][]byte{find(list, "dep-anchor").Certificate.Raw},
	}, "", "  ")
}

// SaveIdentities writes the identities to the folder dir, which it creates: KIND.pem (certificate and chain), KIND.key (PKCS#8,
// mode 0600), push-profile-manager.p12 and device-pkcs12.p12 (see Passphrase), an enrollment profile for each way to an
// identity, and dep-profile.json. It returns the names. It does not overwrite: if one of the files exists, it writes nothing
// and the error wraps fs.ErrExist.
func SaveIdentities(dir string, list []Identity) ([]string, error) {
	type file struct {
		name string
		data []byte
		mode fs.FileMode
	}
	var files []file
	for _, i := range list {
		key, err := x509.MarshalPKCS8PrivateKey(i.Key)
		if err != nil {
			return nil, err
		}
		files = append(files, file{i.Kind + ".pem", i.PEM(), 0o644}, file{i.Kind + ".key", pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: key}), 0o600})
		if i.Kind == "push-profile-manager" || i.Kind == "device-pkcs12" {
			p12, err := i.PKCS12(true)
			if err != nil {
				return nil, err
			}
			files = append(files, file{i.Kind + ".p12", p12, 0o600})
		}
		if strings.HasPrefix(i.Kind, "device-") && i.Kind != "device-ca" {
			profile, err := EnrollmentProfile(list, i.Kind)
			if err != nil {
				return nil, err
			}
			files = append(files, file{"enroll-" + i.Kind + ".mobileconfig", profile, 0o600})
		}
	}
	dep, err := DEPProfile(list)
	if err != nil {
		return nil, err
	}
	files = append(files, file{"dep-profile.json", dep, 0o644})
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var names []string
	for _, f := range files {
		path := filepath.Join(dir, f.name)
		if err := wholefile.Write(path, f.data, f.mode, false); err != nil {
			for _, made := range names {
				err = errors.Join(err, os.Remove(made))
			}
			return nil, err
		}
		names = append(names, path)
	}
	return names, nil
}
