package gcpkms

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"

	"hsmsign/signer"
	remote "hsmsign/signer/kms"
)

// resource is a resource name, down to where it was written; what it leaves out is empty.
type resource struct{ project, location, ring, key, version string }

// String is the resource name as the service knows it.
func (r resource) String() string {
	var b strings.Builder
	for i, id := range []string{r.project, r.location, r.ring, r.key, r.version} {
		if id == "" {
			break
		}
		if i > 0 {
			b.WriteByte('/')
		}
		b.WriteString(collection(i) + "/" + id)
	}
	return b.String()
}

func (r resource) parentOfRings() string {
	return resource{project: r.project, location: r.location}.String()
}

func (r resource) parentOfKeys() string {
	return resource{project: r.project, location: r.location, ring: r.ring}.String()
}

// sameVersion says whether an answer speaks of this version. The service may answer with the project's id where it
// was asked by number.
func (r resource) sameVersion(name string) bool {
	if strings.Trim(r.project, "0123456789") != "" {
		return name == r.String()
	}
	_, asked, _ := strings.Cut(r.String(), "/locations/")
	_, answered, ok := strings.Cut(name, "/locations/")
	return ok && asked == answered
}

// collection is the i-th collection of a resource name.
func collection(i int) string {
	return [...]string{"projects", "locations", "keyRings", "cryptoKeys", "cryptoKeyVersions"}[i]
}

const collections = 5

// settings is what a reference says.
type settings struct {
	name       resource
	endpoint   string // host:port; empty: Google's
	loopback   bool   // the endpoint is a double on this machine
	google     bool   // the endpoint is a name of Google's
	requireHSM bool
	protection kmspb.ProtectionLevel // of a key to be made
	policy     remote.Policy
}

// parse reads a reference. Errors wrap ErrReference.
func parse(ref signer.Ref, policy remote.Policy) (settings, error) {
	s := settings{policy: policy, protection: kmspb.ProtectionLevel_HSM}
	if err := ref.CheckQuery("endpoint", "require-hsm", "protection", "max-rps", "max-concurrent", "timeout"); err != nil {
		return s, err
	}
	var err error
	if s.name, err = parseResource(ref.Path); err != nil {
		return s, err
	}
	for _, a := range []struct {
		name string
		set  func(value string) error
	}{
		{"endpoint", s.setEndpoint}, {"require-hsm", s.setRequireHSM}, {"protection", s.setProtection},
		{"max-rps", s.setMaxRPS}, {"max-concurrent", s.setMaxConcurrent}, {"timeout", s.setTimeout},
	} {
		value, ok := ref.Query(a.name)
		if !ok {
			continue
		}
		if err := a.set(value); err != nil {
			return s, fmt.Errorf("%w: %s: %w", signer.ErrReference, a.name, err)
		}
	}
	if s.requireHSM && s.protection != kmspb.ProtectionLevel_HSM {
		return s, fmt.Errorf("%w: require-hsm=yes and protection=software exclude each other", signer.ErrReference)
	}
	return s, nil
}

// parseResource reads "//projects/P/locations/L[/keyRings/R[/cryptoKeys/K[/cryptoKeyVersions/V]]]".
func parseResource(path string) (resource, error) {
	rest, ok := strings.CutPrefix(path, "//")
	words := strings.Split(rest, "/")
	if !ok || words[0] != collection(0) {
		return resource{}, fmt.Errorf("%w: write gcpkms://projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY/cryptoKeyVersions/VERSION", signer.ErrReference)
	}
	if len(words) > 2*collections {
		return resource{}, fmt.Errorf("%w: something follows the version", signer.ErrReference)
	}
	var ids [collections]string
	for i := 0; i < len(words); i += 2 {
		if words[i] != collection(i/2) {
			return resource{}, fmt.Errorf("%w: %q stands where %q must (upper and lower case count)", signer.ErrReference, words[i], collection(i/2))
		}
		if i+1 == len(words) || !validID(i/2, words[i+1]) {
			return resource{}, fmt.Errorf("%w: after %q stands no valid name", signer.ErrReference, words[i]+"/")
		}
		ids[i/2] = words[i+1]
	}
	if ids[1] == "" {
		return resource{}, fmt.Errorf("%w: it names no location", signer.ErrReference)
	}
	return resource{ids[0], ids[1], ids[2], ids[3], ids[4]}, nil
}

// validID knows the alphabets: key rings and keys are [a-zA-Z0-9_-]{1,63} (KeyManagementService, CreateKeyRing and
// CreateCryptoKey), versions are numbers from 1, and a project may be one of a domain ("example.com:mdm").
func validID(i int, id string) bool {
	const lower, digits = "abcdefghijklmnopqrstuvwxyz", "0123456789"
	alphabet := [...]string{lower + digits + "-.:", lower + digits + "-", "", "", digits}[i]
	if alphabet == "" {
		alphabet = lower + strings.ToUpper(lower) + digits + "_-"
	}
	if collection(i) == "cryptoKeyVersions" && (len(id) > 10 || strings.HasPrefix(id, "0")) {
		return false
	}
	return id != "" && len(id) <= 63 && strings.Trim(id, alphabet) == ""
}

func (s *settings) setEndpoint(value string) error {
	host, port, err := net.SplitHostPort(value)
	if n, errPort := strconv.ParseUint(port, 10, 16); err != nil || errPort != nil || n == 0 || host == "" {
		return fmt.Errorf("write HOST:PORT")
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		s.loopback = addr.IsLoopback()
	} else if strings.EqualFold(host, "localhost") {
		return fmt.Errorf("write 127.0.0.1 or [::1]: what a name stands for is not known here")
	} else if strings.Trim(strings.ToLower(host), "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" {
		return fmt.Errorf("the host is neither an address nor a name")
	}
	s.endpoint = value
	s.google = strings.HasSuffix(strings.ToLower(host), ".googleapis.com")
	return nil
}

func (s *settings) setRequireHSM(value string) error {
	if value != "yes" {
		return fmt.Errorf("it can only be %q", "yes")
	}
	s.requireHSM = true
	return nil
}

func (s *settings) setProtection(value string) error {
	switch value {
	case "hsm":
	case "software":
		s.protection = kmspb.ProtectionLevel_SOFTWARE
	default:
		return fmt.Errorf("it can be %q or %q", "hsm", "software")
	}
	return nil
}

func (s *settings) setMaxRPS(value string) error {
	rate, err := strconv.ParseFloat(value, 64)
	if err != nil || !(rate >= 0.01 && rate <= 100_000) { // so written, NaN is refused too
		return fmt.Errorf("it is a number from 0.01 to 100000")
	}
	s.policy.MaxRPS = rate
	return nil
}

// setMaxConcurrent knows that the calls share one HTTP/2 connection, of which Google's front ends take 100 streams.
func (s *settings) setMaxConcurrent(value string) error {
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 || n > 100 {
		return fmt.Errorf("it is a number from 1 to 100")
	}
	s.policy.MaxConcurrent = n
	return nil
}

func (s *settings) setTimeout(value string) error {
	d, err := time.ParseDuration(value)
	if err != nil || d < 10*time.Millisecond || d > 10*time.Minute {
		return fmt.Errorf("it is a time from 10ms to 10m, such as 20s")
	}
	s.policy.Total = d
	return nil
}
