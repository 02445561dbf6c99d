package gcpkms

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"cloud.google.com/go/kms/apiv1/kmspb"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// maxConcurrent: the calls share one HTTP/2 connection, on which Google's front ends accept 100 streams.
const maxConcurrent = 100

// resource is a resource name. The parts that it omits at its end are empty.
type resource struct{ project, location, ring, key, version string }

// String returns the resource name in the form of the service.
func (r resource) String() string {
	var words []string
	for i, id := range []string{r.project, r.location, r.ring, r.key, r.version} {
		if id == "" {
			break
		}
		words = append(words, collections[i].name, id)
	}
	return strings.Join(words, "/")
}

func (r resource) parentOfRings() string {
	return resource{project: r.project, location: r.location}.String()
}

func (r resource) parentOfKeys() string {
	return resource{project: r.project, location: r.location, ring: r.ring}.String()
}

// sameVersion reports whether the name in an answer is that of this version. The service may answer with the id of the
// project if the request has its number.
func (r resource) sameVersion(name string) bool {
	if strings.Trim(r.project, "0123456789") != "" {
		return name == r.String()
	}
	_, asked, _ := strings.Cut(r.String(), "/locations/")
	_, answered, ok := strings.Cut(name, "/locations/")
	return ok && asked == answered
}

// collections are the collections of a resource name with the form of their ids: key rings and keys by the API reference
// (KeyManagementService, CreateKeyRing and CreateCryptoKey), versions are numbers from 1, and a project may belong to a
// domain ("example.com:mdm").
var collections = [...]struct{ name, form string }{
	{"projects", `^[a-z0-9.:-]{1,63}$`},
	{"locations", `^[a-z0-9-]{1,63}$`},
	{"keyRings", `^[a-zA-Z0-9_-]{1,63}$`},
	{"cryptoKeys", `^[a-zA-Z0-9_-]{1,63}$`},
	{"cryptoKeyVersions", `^[1-9][0-9]{0,9}$`},
}

// reference is a parsed key reference.
type reference struct {
	name       resource
	endpoint   string // HOST:PORT; "": Google's
	loopback   bool   // the endpoint is a double on this machine
	google     bool   // the endpoint is a host name of Google
	requireHSM bool
	protection kmspb.ProtectionLevel // of a new key
	policy     kms.Policy
}

// parseReference reads a reference, which overrides the policy. The error wraps ErrReference.
func parseReference(ref signer.Ref, policy kms.Policy) (reference, error) {
	r := reference{policy: policy, protection: kmspb.ProtectionLevel_HSM}
	if err := ref.CheckQuery(kms.Attributes("endpoint", "require-hsm", "protection")...); err != nil {
		return r, err
	}
	name, err := parseResource(ref.Path)
	if err != nil {
		return r, err
	}
	r.name = name
	if endpoint, ok := ref.Query("endpoint"); ok {
		if err := r.readEndpoint(endpoint); err != nil {
			return r, fmt.Errorf("%w: endpoint: %w", signer.ErrReference, err) // the value may contain a password
		}
	}
	required, hasRequired := ref.Query("require-hsm")
	protection, hasProtection := ref.Query("protection")
	switch {
	case hasRequired && required != "yes":
		return r, fmt.Errorf("%w: require-hsm: the only value is yes", signer.ErrReference)
	case hasProtection && protection != "hsm" && protection != "software":
		return r, fmt.Errorf("%w: protection: the values are hsm and software", signer.ErrReference)
	case hasRequired && protection == "software":
		return r, fmt.Errorf("%w: require-hsm=yes and protection=software exclude each other", signer.ErrReference)
	case protection == "software":
		r.protection = kmspb.ProtectionLevel_SOFTWARE
	}
	r.requireHSM = hasRequired
	r.policy, err = r.policy.WithReference(ref, maxConcurrent)
	return r, err
}

// parseResource reads "//projects/P/locations/L[/keyRings/R[/cryptoKeys/K[/cryptoKeyVersions/V]]]".
func parseResource(path string) (resource, error) {
	rest, ok := strings.CutPrefix(path, "//")
	words := strings.Split(rest, "/")
	if !ok || words[0] != collections[0].name {
		return resource{}, fmt.Errorf("%w: write gcpkms://projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY/cryptoKeyVersions/VERSION", signer.ErrReference)
	}
	if len(words) > 2*len(collections) {
		return resource{}, fmt.Errorf("%w: unexpected text after the version", signer.ErrReference)
	}
	var ids [len(collections)]string
	for i := 0; i < len(words); i += 2 {
		collection := collections[i/2]
		if words[i] != collection.name {
			return resource{}, fault.Errorf("%w: found %q, want %q (case-sensitive)", signer.ErrReference, words[i], collection.name).
				Fix("write " + strings.Join(append([]string{collection.name}, words[i+1:]...), "/"))
		}
		if i+1 == len(words) || !regexp.MustCompile(collection.form).MatchString(words[i+1]) {
			return resource{}, fmt.Errorf("%w: no valid name follows %q", signer.ErrReference, words[i]+"/")
		}
		ids[i/2] = words[i+1]
	}
	if ids[1] == "" {
		return resource{}, fmt.Errorf("%w: it names no location", signer.ErrReference)
	}
	return resource{ids[0], ids[1], ids[2], ids[3], ids[4]}, nil
}

func (r *reference) readEndpoint(value string) error {
	host, port, err := net.SplitHostPort(value)
	if n, errPort := strconv.ParseUint(port, 10, 16); err != nil || errPort != nil || n == 0 || host == "" {
		return errors.New("write HOST:PORT")
	}
	if _, err := netip.ParseAddr(host); err == nil {
		r.loopback = kms.Loopback(host)
	} else if strings.EqualFold(host, "localhost") {
		return errors.New("write 127.0.0.1 or [::1]; names are not resolved here")
	} else if strings.Trim(strings.ToLower(host), "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" {
		return errors.New("the host is neither an address nor a name")
	}
	r.endpoint = value
	r.google = strings.HasSuffix(strings.ToLower(host), ".googleapis.com")
	return nil
}
