package azurekms

import (
	"cmp"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

const maxConcurrent = 1024

// lazily compiles an expression at its first use.
func lazily(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}

// The forms of names ("About keys, secrets, and certificates", Key Vault documentation). A version is 32 hex digits.
var (
	vaultForm    = lazily(`^[a-z0-9](?:[a-z0-9-]{1,22}[a-z0-9])$`)
	nameForm     = lazily(`^[0-9A-Za-z-]{1,127}$`)
	versionForm  = lazily(`^[0-9a-f]{32}$`)
	clientIDForm = lazily(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
)

// site is a domain of vaults.
type site struct {
	suffix string
	hsm    bool                // of Managed HSM
	cloud  cloud.Configuration // where its tokens come from; empty: AZURE_AUTHORITY_HOST, or the public cloud
}

// sites returns the domains of all clouds ("Azure Key Vault basic concepts" and "Managed HSM", Azure documentation).
func sites() []site {
	return []site{
		{".vault.azure.net", false, cloud.Configuration{}}, {".managedhsm.azure.net", true, cloud.Configuration{}},
		{".vault.azure.cn", false, cloud.AzureChina}, {".managedhsm.azure.cn", true, cloud.AzureChina},
		{".vault.usgovcloudapi.net", false, cloud.AzureGovernment}, {".managedhsm.usgovcloudapi.net", true, cloud.AzureGovernment},
	}
}

// The credentials.
const (
	byEnvironment = "environment"
	byWorkload    = "workload"
	byManaged     = "managed"
	byCLI         = "cli"
)

// reference is a parsed key reference.
type reference struct {
	host    string // of the vault; HOST:PORT of a double
	site    site
	double  bool   // the host is on loopback
	name    string // "": every key of the vault, for List only
	version string // "": every version, for List, and for Generate, which does not choose it

	credentialKind, clientID, ca string
	requireHSM, software         bool
	policy                       kms.Policy
}

func malformed(format string, args ...any) *fault.Failure {
	return fault.Errorf("%w: %s", signer.ErrReference, fmt.Sprintf(format, args...))
}

// parseReference reads a reference, which overrides the policy. The error wraps ErrReference.
func parseReference(ref signer.Ref, policy kms.Policy) (reference, error) {
	r := reference{policy: policy}
	if err := ref.CheckQuery(kms.Attributes("credential", "client-id", "require-hsm", "protection", "ca")...); err != nil {
		return r, err
	}
	rest, ok := strings.CutPrefix(ref.Path, "//")
	parts := strings.Split(rest, "/")
	if !ok || len(parts) < 2 || len(parts) > 4 || parts[1] != "keys" {
		return r, malformed("write azurekms://VAULT.vault.azure.net/keys/NAME/VERSION")
	}
	parts = append(parts, "", "")
	r.name, r.version = parts[2], parts[3]
	if err := cmp.Or(r.readHost(parts[0]), r.checkNames(rest), r.readQuery(ref)); err != nil {
		return r, err
	}
	var err error
	r.policy, err = policy.WithReference(ref, maxConcurrent)
	return r, err
}

func (r *reference) readHost(text string) error {
	r.host = strings.ToLower(text)
	for _, s := range sites() {
		if vault, ok := strings.CutSuffix(r.host, s.suffix); ok && vaultForm().MatchString(vault) {
			r.site = s
			return nil
		}
	}
	host, port, err := net.SplitHostPort(r.host)
	number, errPort := strconv.ParseUint(port, 10, 16)
	if err != nil || errPort != nil || number == 0 || !kms.Loopback(host) {
		return malformed("%q is not the host of a vault: VAULT.vault.azure.net, HSM.managedhsm.azure.net, or theirs in azure.cn and usgovcloudapi.net", text)
	}
	r.double = true
	return nil
}

func (r *reference) checkNames(path string) error {
	switch {
	case strings.HasSuffix(path, "/"):
		return malformed("it ends with a slash")
	case r.name != "" && !nameForm().MatchString(r.name):
		return malformed("%q is not the name of a key: 1 to 127 letters, digits and \"-\"", r.name)
	case r.version != "" && !versionForm().MatchString(r.version):
		return malformed("%q is not a version: 32 digits and small letters a to f", r.version)
	}
	return nil
}

func (r *reference) readQuery(ref signer.Ref) error {
	var given bool
	if r.credentialKind, given = ref.Query("credential"); given {
		switch r.credentialKind {
		case byEnvironment, byWorkload, byManaged, byCLI:
		default:
			return malformed("credential is %q; it is environment, workload, managed or cli", r.credentialKind)
		}
	}
	if r.clientID, given = ref.Query("client-id"); given {
		if !clientIDForm().MatchString(r.clientID) || r.credentialKind != byManaged {
			return malformed("client-id is %q; write credential=managed and the client id of the identity, a UUID in small letters", r.clientID)
		}
	}
	if text, given := ref.Query("require-hsm"); given {
		if r.requireHSM = text == "yes"; !r.requireHSM {
			return malformed("require-hsm is %q; the only value is yes", text)
		}
	}
	if text, given := ref.Query("protection"); given {
		if r.software = text == "software"; !r.software && text != "hsm" {
			return malformed("protection is %q; it is hsm or software", text)
		}
	}
	if r.software && (r.requireHSM || r.site.hsm) {
		return malformed("protection=software contradicts require-hsm or a Managed HSM")
	}
	if r.ca, given = ref.Query("ca"); given && (r.ca == "" || !r.double) {
		return malformed("ca is the name of a file with the certificate of a double, on loopback only")
	}
	return nil
}

// url returns the URL of the vault.
func (r *reference) url() string { return "https://" + r.host }

// sameKey reports whether the id in an answer is that of this version: "https://HOST/keys/NAME/VERSION".
func (r *reference) sameKey(id string) bool {
	return strings.EqualFold(id, r.url()+"/keys/"+r.name+"/"+r.version)
}

// service returns the name of the service, for people.
func (r *reference) service() string {
	if r.site.hsm {
		return "Azure Managed HSM"
	}
	return "Azure Key Vault"
}
