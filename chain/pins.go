package chain

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"time"
)

// Pin is one of Apple's certificates, known by the SHA-256 of its DER. hsmsign does not contain the certificates; Fetch
// downloads them.
type Pin struct {
	Name     string    // short: "Apple Root CA", "WWDR G3"
	File     string    // the name of Apple's file, and of the file under FetchOptions.BaseURL
	URL      string    // where Apple publishes it
	SHA256   string    // of the DER, lower case hex
	NotAfter time.Time // UTC
	Subject  string    // common name of the subject
	Unit     string    // organizational unit of the subject, which differs between WWDR G3, G4, G5 and G6
	KeyID    string    // subject key identifier, lower case hex: an issued certificate's authority key id
	Root     bool      // trusted: a chain may end here
	Retired  bool      // expired and to be replaced; Fetch skips it
}

const (
	wwdr      = "Apple Worldwide Developer Relations Certification Authority"
	pushCA    = "Apple Application Integration 2 Certification Authority"
	appleUnit = "Apple Certification Authority"
	published = "https://www.apple.com/certificateauthority/"
)

// Pins returns the table of Apple's certificates, as published at https://www.apple.com/certificateauthority/. The caller
// may change the slice.
func Pins() []Pin {
	return []Pin{
		{
			Name: "Apple Root CA", File: "AppleIncRootCertificate.cer", Subject: "Apple Root CA", Unit: appleUnit,
			URL:    "https://www.apple.com/appleca/AppleIncRootCertificate.cer",
			SHA256: "b0b1730ecbc7ff4505142c49f1295e6eda6bcaed7e2c68c5be91b5a11001f024",
			KeyID:  "2bd06947947609fef46b8d2e40a6f7474d7f085e", NotAfter: utc(2035, 2, 9, 21, 40, 36), Root: true,
		}, {
			Name: "Apple Root CA - G3", File: "AppleRootCA-G3.cer", Subject: "Apple Root CA - G3", Unit: appleUnit,
			URL:    published + "AppleRootCA-G3.cer",
			SHA256: "63343abfb89a6a03ebb57e9b3f5fa7be7c4f5c756f3017b3a8c488c3653e9179",
			KeyID:  "bbb0dea15833889aa48a99debebdebafdacb24ab", NotAfter: utc(2039, 4, 30, 18, 19, 6), Root: true,
		}, {
			Name: "WWDR G1", File: "AppleWWDRCA.cer", Subject: wwdr, Unit: "Apple Worldwide Developer Relations",
			URL:    published + "AppleWWDRCA.cer",
			SHA256: "ce057691d730f89ca25e916f7335f4c8a15713dcd273a658c024023f8eb809c2",
			KeyID:  "88271709a9b618608becebbaf64759c55254a3b7", NotAfter: utc(2023, 2, 7, 21, 48, 47), Retired: true,
		}, {
			Name: "WWDR G2", File: "AppleWWDRCAG2.cer", Unit: appleUnit,
			Subject: "Apple Worldwide Developer Relations CA - G2",
			URL:     published + "AppleWWDRCAG2.cer",
			SHA256:  "9ed4b3b88c6a339cf1387895bda9ca6ea31a6b5ce9edf7511845923b0c8ac94c",
			KeyID:   "84b684cc3a866272165994e81aa3bd48df3adf0b", NotAfter: utc(2029, 5, 6, 23, 43, 24),
		}, {
			Name: "WWDR G3", File: "AppleWWDRCAG3.cer", Subject: wwdr, Unit: "G3",
			URL:    published + "AppleWWDRCAG3.cer",
			SHA256: "dcf21878c77f4198e4b4614f03d696d89c66c66008d4244e1b99161aac91601f",
			KeyID:  "09fec01590f9af640a9212b92628630c97eca7b2", NotAfter: utc(2030, 2, 20, 0, 0, 0),
		}, {
			Name: "WWDR G4", File: "AppleWWDRCAG4.cer", Subject: wwdr, Unit: "G4",
			URL:    published + "AppleWWDRCAG4.cer",
			SHA256: "ea4757885538dd8cb59ff4556f676087d83c85e70902c122e42c0808b5bce14c",
			KeyID:  "5bd9fa1de79a1a0ba399762250863e91c85b77a8", NotAfter: utc(2030, 12, 10, 0, 0, 0),
		}, {
			Name: "WWDR G5", File: "AppleWWDRCAG5.cer", Subject: wwdr, Unit: "G5",
			URL:    published + "AppleWWDRCAG5.cer",
			SHA256: "53fd008278e5a595fe1e908ae9c5e5675f26243264a5a6438c023e3ce2870760",
			KeyID:  "198b978d4a5b617857f4a55c35128a3908e3b075", NotAfter: utc(2030, 12, 10, 0, 0, 0),
		}, {
			Name: "WWDR G6", File: "AppleWWDRCAG6.cer", Subject: wwdr, Unit: "G6",
			URL:    published + "AppleWWDRCAG6.cer",
			SHA256: "bdd4ed6e74691f0c2bfd01be0296197af1379e0418e2d300efa9c3bef642ca30",
			KeyID:  "3f2f942351d350c99a283dedb07ce5cfa5906299", NotAfter: utc(2036, 3, 19, 0, 0, 0),
		}, {
			Name: "Application Integration 2", File: "AppleAAI2CA.cer", Subject: pushCA, Unit: appleUnit,
			URL:    published + "AppleAAI2CA.cer", // issues push certificates, not vendor certificates
			SHA256: "d3496f4b73cd67aab9f2fcb1d5aa41f8dc457769c455c792b70ddb19e92023d6",
			KeyID:  "f7be7c216091db3d1b7bd83a328169df9e6c7f9b", NotAfter: utc(2028, 5, 24, 17, 43, 37),
		},
	}
}

// Lookup returns the pin of a certificate with exactly these bytes.
func Lookup(cert *x509.Certificate) (Pin, bool) {
	digest := sha256Hex(cert.Raw)
	for _, p := range Pins() {
		if p.SHA256 == digest {
			return p, true
		}
	}
	return Pin{}, false
}

// lookupIssuer returns the pin of the certificate that issued cert, by the issuer's name and, if cert has one, the
// authority key identifier. The WWDR generations differ in the unit, which not every tool writes.
func lookupIssuer(cert *x509.Certificate) (Pin, bool) {
	for _, p := range Pins() {
		if p.Subject != cert.Issuer.CommonName {
			continue
		}
		if len(cert.AuthorityKeyId) > 0 {
			if p.KeyID == hex.EncodeToString(cert.AuthorityKeyId) {
				return p, true
			}
		} else if len(cert.Issuer.OrganizationalUnit) == 1 && cert.Issuer.OrganizationalUnit[0] == p.Unit {
			return p, true
		}
	}
	return Pin{}, false
}

func sha256Hex(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

func utc(year int, month time.Month, day, hour, minute, second int) time.Time {
	return time.Date(year, month, day, hour, minute, second, 0, time.UTC)
}
