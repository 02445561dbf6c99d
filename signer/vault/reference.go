package vault

import (
	"cmp"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// The limits of a reference.
const (
	maxConcurrent = 1024
	maxVersion    = 1 << 31
	defaultPort   = "8200"
)

// defaultJWT is where Kubernetes puts the token of a pod's service account.
const defaultJWT = "/var/run/secrets/kubernetes.io/serviceaccount/token" // #nosec G101 -- a path

// lazily compiles an expression at its first use.
func lazily(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}

// The forms of names. That of a key is Vault's own (GenericNameRegex of its framework). Mounts and namespaces accept more
// characters, but every one in use has this form, and none of these needs an escape in a URL.
var (
	hostForm = lazily(`^[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)
	nameForm = lazily(`^[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,250}[A-Za-z0-9_])?$`)
	pathForm = lazily(`^[A-Za-z0-9_-][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*$`)
	roleForm = lazily(`^[\x21-\x7e]{1,256}$`)
)

// maxPath is the longest mount or namespace, in bytes.
const maxPath = 512

func isPath(text string) bool { return len(text) <= maxPath && pathForm().MatchString(text) }

// reference is a parsed key reference.
type reference struct {
	host    string // HOST:PORT
	mount   string // of the engine, without slashes at its ends
	name    string // "": every key of the engine, for List only
	version int    // 0: every version, for List only

	namespace, ca string
	plain         bool
	login         login
	policy        kms.Policy
}

// The ways to a token.
const (
	withToken      = "token"
	withAppRole    = "approle"
	withKubernetes = "kubernetes"
)

// login is how a token is obtained.
type login struct {
	method string // withToken, withAppRole or withKubernetes
	source string // of the token or the secret id; the file of the JWT
	role   string // id of the AppRole, or name of the Kubernetes role
	mount  string // of the method
}

func malformed(format string, args ...any) *fault.Failure {
	return fault.Errorf("%w: %s", signer.ErrReference, fmt.Sprintf(format, args...))
}

// parseReference reads a reference, which overrides the policy. The error wraps ErrReference.
func parseReference(ref signer.Ref, policy kms.Policy) (reference, error) {
	r := reference{policy: policy}
	if err := ref.CheckQuery(kms.Attributes("version", "namespace", "ca", "tls", "token-source", "role-id", "secret-id-source",
		"kubernetes-role", "jwt-file", "auth-mount")...); err != nil {
		return r, err
	}
	rest, ok := strings.CutPrefix(ref.Path, "//")
	host, path, hasPath := strings.Cut(rest, "/")
	if !ok || !hasPath {
		return r, malformed("write vault://HOST/MOUNT/keys/NAME?version=1")
	}
	if err := cmp.Or(r.readHost(host), r.readPath(path), r.readAccess(ref), r.readLogin(ref)); err != nil {
		return r, err
	}
	var err error
	r.policy, err = policy.WithReference(ref, maxConcurrent)
	return r, err
}

func (r *reference) readHost(text string) error {
	host, port, err := net.SplitHostPort(text)
	if err != nil { // no port
		inner, ok := strings.CutPrefix(text, "[")
		if host, port = strings.TrimSuffix(inner, "]"), defaultPort; ok != (host != inner) || ok != strings.Contains(host, ":") {
			host = ""
		}
	}
	number, err := strconv.ParseUint(port, 10, 16)
	address := net.ParseIP(host) != nil
	if err != nil || number == 0 || !address && !hostForm().MatchString(host) {
		return malformed("%q is not of the form HOST or HOST:PORT", text)
	}
	r.host = net.JoinHostPort(strings.ToLower(host), port)
	return nil
}

// readPath reads MOUNT/keys and MOUNT/keys/NAME. A mount may contain slashes, and its last folder may be called "keys".
func (r *reference) readPath(path string) error {
	mount, ok := strings.CutSuffix(path, "/keys")
	if !ok {
		i := strings.LastIndex(path, "/keys/")
		if i < 0 {
			return malformed("%q does not contain /keys/: write vault://HOST/MOUNT/keys/NAME?version=1", path)
		}
		mount, r.name = path[:i], path[i+len("/keys/"):]
		if !nameForm().MatchString(r.name) {
			return malformed("%q is not the name of a key in Vault: letters, digits, \"_\", and \"-\" or \".\" inside", r.name)
		}
	}
	if r.mount = mount; !isPath(mount) {
		return malformed("%q is not the path of a mount, such as \"transit\"", mount)
	}
	return nil
}

func (r *reference) readAccess(ref signer.Ref) error {
	if text, given := ref.Query("version"); given {
		version, err := strconv.ParseInt(text, 10, 64)
		if err != nil || version < 1 || version >= maxVersion || r.name == "" || text != strconv.FormatInt(version, 10) {
			return malformed("version is %q; it must be the number of a version of the key, from 1", text)
		}
		r.version = int(version)
	}
	var given bool
	if r.namespace, given = ref.Query("namespace"); given {
		if r.namespace = strings.TrimSuffix(r.namespace, "/"); !isPath(r.namespace) {
			return malformed("%q is not a namespace, such as \"team/mdm\"", r.namespace)
		}
	}
	tls, given := ref.Query("tls")
	r.plain = tls == "off"
	host, _, _ := net.SplitHostPort(r.host) // which readHost joined
	switch {
	case given && !r.plain:
		return malformed("tls is %q; the only value is off", tls)
	case r.plain && host != "localhost" && !kms.Loopback(host):
		return malformed("tls=off is allowed on loopback only, and the host is %q", host)
	}
	if r.ca, given = ref.Query("ca"); given && (r.ca == "" || r.plain) {
		return malformed("ca is the name of a file with certificates, for https")
	}
	return nil
}

func (r *reference) readLogin(ref signer.Ref) error {
	value := func(name string) string { v, _ := ref.Query(name); return v }
	for _, name := range []string{"token-source", "role-id", "secret-id-source", "kubernetes-role", "jwt-file", "auth-mount"} {
		if v, given := ref.Query(name); given && v == "" {
			return malformed("%s is empty", name)
		}
	}
	tokenSource, roleID, secretID := value("token-source"), value("role-id"), value("secret-id-source")
	kubernetes, jwt, mount := value("kubernetes-role"), value("jwt-file"), value("auth-mount")
	ways := 0
	for _, given := range []bool{tokenSource != "", roleID+secretID != "", kubernetes+jwt != ""} {
		if given {
			ways++
		}
	}
	switch {
	case ways > 1:
		return malformed("token-source, role-id and kubernetes-role exclude each other")
	case (roleID == "") != (secretID == ""):
		return malformed("AppRole needs role-id and secret-id-source")
	case jwt != "" && kubernetes == "":
		return malformed("jwt-file is for a login with kubernetes-role")
	case roleID != "":
		r.login = login{withAppRole, secretID, roleID, cmp.Or(mount, withAppRole)}
	case kubernetes != "":
		r.login = login{withKubernetes, cmp.Or(jwt, defaultJWT), kubernetes, cmp.Or(mount, withKubernetes)}
	case mount != "":
		return malformed("auth-mount is for a login with role-id or kubernetes-role")
	default:
		r.login = login{method: withToken, source: tokenSource}
	}
	if r.login.role != "" && (!roleForm().MatchString(r.login.role) || !isPath(r.login.mount)) {
		return malformed("%q is not a role, or %q is not the path of a login method", r.login.role, r.login.mount)
	}
	return nil
}

// checkComplete returns an error unless the reference names a version of a key.
func (r *reference) checkComplete() error {
	switch {
	case r.name == "":
		return malformed("it names no key").Fix("list the keys with hsmsign key list")
	case r.version == 0:
		return malformed("it names no version").Fix("add version=1 to the reference")
	}
	return nil
}

// url returns the URL of a path of the API: "/v1/sys/health".
func (r *reference) url(path string) string {
	scheme := "https://"
	if r.plain {
		scheme = "http://"
	}
	return scheme + r.host + path
}

// keyPath returns the path of the key in the API.
func (r *reference) keyPath() string { return "/v1/" + r.mount + "/keys/" + r.name }
