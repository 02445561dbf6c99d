package chain

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"hsmsign/fault"
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

// The error families of Fetch.
var (
	// ErrFetch means that a certificate could not be downloaded. It may work later, or from another server.
	ErrFetch = fault.Unavailable.New("cannot fetch")
	// ErrPin means that the server sent other bytes than the pinned certificate.
	ErrPin = fault.Vendor.New("not the pinned certificate")
)

// The limits of Fetch.
const (
	fetchMax      = 64 << 10 // bytes of one file; Apple's are about 1 KiB
	fetchTries    = 3
	fetchTimeout  = 15 * time.Second // of one try
	fetchTotal    = 2 * time.Minute
	fetchPause    = 250 * time.Millisecond // before the second try; doubled before the third
	fetchRedirect = 5
)

// FetchOptions select what Fetch downloads, and from where. The zero value selects every current certificate, from Apple.
type FetchOptions struct {
	BaseURL string       // an https mirror with the files BaseURL/<Pin.File>; empty: Apple
	Names   []string     // Pin.Name or Pin.File of each; empty: all that are not retired
	Pins    []Pin        // the known certificates; nil: Pins()
	Client  *http.Client // nil: one with http.DefaultTransport. Its Timeout limits one try; zero: 15 s
}

// Fetched is one certificate and its pin.
type Fetched struct {
	Pin  Pin
	Cert *x509.Certificate
}

// Fetch downloads Apple's certificates over HTTPS and compares each with its pinned SHA-256, so that neither the server
// nor a proxy needs to be trusted. It returns all selected certificates, or an error that wraps ErrPin (other bytes) or
// ErrFetch. It ends within two minutes.
func Fetch(ctx context.Context, opts FetchOptions) ([]Fetched, error) {
	pins, err := opts.selectPins()
	if err != nil {
		return nil, err
	}
	var client http.Client
	if opts.Client != nil {
		client = *opts.Client
	}
	client.CheckRedirect, client.Timeout = onlyHTTPS, cmp.Or(client.Timeout, fetchTimeout)
	ctx, cancel := context.WithTimeout(ctx, fetchTotal)
	defer cancel()

	var got []Fetched
	for _, pin := range pins {
		url := pin.URL
		if opts.BaseURL != "" {
			url = strings.TrimSuffix(opts.BaseURL, "/") + "/" + pin.File
		}
		cert, err := fetch(ctx, &client, url, pin)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", pin.Name, err)
		}
		got = append(got, Fetched{Pin: pin, Cert: cert})
	}
	return got, nil
}

// Known returns the certificates that can be fetched: opts.Pins, or Apple's.
func (opts FetchOptions) Known() []Pin {
	if opts.Pins == nil {
		return Pins()
	}
	return opts.Pins
}

func (opts FetchOptions) selectPins() ([]Pin, error) {
	var chosen []Pin
	var known []string
	for _, p := range opts.Known() {
		known = append(known, p.Name)
		if len(opts.Names) == 0 && !p.Retired || slices.Contains(opts.Names, p.Name) || slices.Contains(opts.Names, p.File) {
			chosen = append(chosen, p)
		}
	}
	for _, n := range opts.Names {
		if !slices.ContainsFunc(chosen, func(p Pin) bool { return n == p.Name || n == p.File }) {
			return nil, fault.Errorf("%w: there is no certificate %q", ErrFetch, n).Fix("there are " + strings.Join(known, ", "))
		}
	}
	return chosen, nil
}

// fetch downloads one certificate. It tries again if that can help.
func fetch(ctx context.Context, client *http.Client, url string, pin Pin) (*x509.Certificate, error) {
	if !strings.HasPrefix(url, "https://") {
		return nil, fmt.Errorf("%w %q: only https is used", ErrFetch, url)
	}
	for try := 1; ; try++ {
		data, again, err := get(ctx, client, url)
		if err == nil {
			return pinned(data, url, pin)
		}
		if !again || try == fetchTries {
			return nil, fmt.Errorf("%w %q (try %d): %w", ErrFetch, url, try, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w %q: %w", ErrFetch, url, ctx.Err())
		case <-time.After(fetchPause << (try - 1)):
		}
	}
}

// errRedirect means that a redirect is not followed.
var errRedirect = errors.New("redirect refused")

func onlyHTTPS(req *http.Request, via []*http.Request) error {
	if req.URL.Scheme != "https" {
		return fmt.Errorf("%w: to %q, which is not https", errRedirect, req.URL.Redacted())
	}
	if len(via) >= fetchRedirect {
		return fmt.Errorf("%w: more than %d", errRedirect, fetchRedirect)
	}
	return nil
}

// get downloads one file; again reports whether another try can help.
func get(ctx context.Context, client *http.Client, url string) (data []byte, again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, false, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, !errors.Is(err, errRedirect), err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests, fmt.Errorf("the server answers %q", fault.Clip(resp.Status, maxName))
	}
	data, err = io.ReadAll(io.LimitReader(resp.Body, fetchMax+1))
	if err != nil {
		return nil, true, err
	}
	if len(data) > fetchMax {
		return nil, false, fmt.Errorf("more than %d bytes", fetchMax)
	}
	return data, false, nil
}

// pinned parses the bytes if their SHA-256 is that of the pin.
func pinned(data []byte, url string, pin Pin) (*x509.Certificate, error) {
	if sum := sha256Hex(data); sum != pin.SHA256 {
		return nil, fmt.Errorf("%w: %q has SHA-256 %s, pinned is %s", ErrPin, url, sum, pin.SHA256)
	}
	return x509.ParseCertificate(data)
}
