package awskms

import (
	"fmt"
	"math"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"hsmsign/signer"
	remote "hsmsign/signer/kms"
)

// The bounds of what a reference may set.
const (
	maxRegions    = 8
	maxRPS        = 100_000
	maxConcurrent = 1024
	maxTimeout    = 10 * time.Minute
)

// The forms of names, by the KMS API reference (CreateAlias, DescribeKey) and the IAM user guide.
const (
	keyPattern    = `(?:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|mrk-[0-9a-f]{32})`
	aliasPattern  = `alias/[A-Za-z0-9/_-]{1,250}`
	regionPattern = `[a-z]{2,8}(?:-[a-z]{2,12}){1,3}-[0-9]{1,2}`
)

// lazily compiles an expression when it is first needed: all of them together take longer than a small program's start.
func lazily(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}

var (
	keyForm     = lazily(`^` + keyPattern + `$`)
	aliasForm   = lazily(`^` + aliasPattern + `$`)
	regionForm  = lazily(`^` + regionPattern + `$`)
	arnForm     = lazily(`^arn:aws[a-z-]{0,20}:kms:(` + regionPattern + `):[0-9]{12}:(?:key/` + keyPattern + `|` + aliasPattern + `)$`)
	roleForm    = lazily(`^arn:aws[a-z-]{0,20}:iam::[0-9]{12}:role/[\x21-\x7e]{1,576}$`)
	profileForm = lazily(`^[^\[\]]{1,128}$`)
)

// reference is what a key reference says.
type reference struct {
	id      string   // a key id, "alias/NAME", or an ARN of either; empty means every key, for List only
	regions []string // in order of preference; empty: the SDK's own setting

	profile, endpoint, role string
	policy                  remote.Policy
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", signer.ErrReference, fmt.Sprintf(format, args...))
}

// parseReference reads a reference; what it sets of the policy replaces what is there. The error wraps
// ErrReference.
func parseReference(ref signer.Ref, policy remote.Policy) (reference, error) {
	r := reference{policy: policy}
	if err := ref.CheckQuery("region", "regions", "profile", "endpoint", "role-arn", "max-rps", "max-concurrent", "timeout"); err != nil {
		return r, err
	}
	id, ok := strings.CutPrefix(ref.Path, "///")
	if !ok {
		return r, malformed("write awskms:///KEY with three slashes")
	}
	r.id = id
	if err := r.checkID(); err != nil {
		return r, err
	}
	for _, read := range []func(signer.Ref) error{r.readRegions, r.readAccess, r.readPolicy} {
		if err := read(ref); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (r *reference) checkID() error {
	switch {
	case r.id == "" || keyForm().MatchString(r.id) || aliasForm().MatchString(r.id) || arnRegion(r.id) != "":
		return nil
	case strings.HasPrefix(r.id, "arn:"):
		return malformed("%q is no ARN of a KMS key or alias", r.id)
	case !strings.HasPrefix(r.id, "alias/") && aliasForm().MatchString("alias/"+r.id):
		return malformed("%q is no key id; an alias is written \"alias/%s\"", r.id, r.id)
	}
	return malformed("%q is neither a key id nor an ARN nor \"alias/NAME\"", r.id)
}

// arnRegion is the region that an ARN of a key or an alias names; empty for anything else.
func arnRegion(s string) string {
	if m := arnForm().FindStringSubmatch(s); m != nil {
		return m[1]
	}
	return ""
}

// resource is what follows the account of an ARN ("key/ID", "alias/NAME"), and other names as they are.
func resource(id string) string { return id[strings.LastIndexByte(id, ':')+1:] }

// in is how the key is named in a region: replicas of a multi-Region key differ in nothing but the region of their
// ARN.
func (r *reference) in(region string) string {
	if from := arnRegion(r.id); from != "" {
		return strings.Replace(r.id, ":"+from+":", ":"+region+":", 1)
	}
	return r.id
}

// share is the policy of one region: the time is shared out, so that the last one has some.
func (r *reference) share() remote.Policy {
	policy := r.policy.WithDefaults()
	policy.Total /= time.Duration(max(1, len(r.regions)))
	return policy
}

func (r *reference) readRegions(ref signer.Ref) error {
	one, hasOne := ref.Query("region")
	several, hasSeveral := ref.Query("regions")
	own := arnRegion(r.id)
	switch {
	case hasOne && hasSeveral:
		return malformed("region and regions are both there; one of them is enough")
	case hasOne:
		r.regions = []string{one}
	case hasSeveral:
		r.regions = strings.Split(several, ",")
	case own != "":
		r.regions = []string{own}
	}
	if len(r.regions) > maxRegions {
		return malformed("%d regions; at most %d are taken", len(r.regions), maxRegions)
	}
	for i, region := range r.regions {
		if !regionForm().MatchString(region) {
			return malformed("%q is no region", region)
		}
		if slices.Contains(r.regions[:i], region) {
			return malformed("region %q stands twice", region)
		}
	}
	if own != "" && !slices.Contains(r.regions, own) {
		return malformed("the ARN is of region %q, not of %q", own, strings.Join(r.regions, ","))
	}
	if len(r.regions) > 1 && !strings.HasPrefix(resource(r.id), "alias/") && !strings.Contains(r.id, "mrk-") {
		return malformed("only a multi-Region key (mrk-...) is in several regions")
	}
	return nil
}

func (r *reference) readAccess(ref signer.Ref) error {
	var given bool
	if r.profile, given = ref.Query("profile"); given && !profileForm().MatchString(r.profile) {
		return malformed("%q is no name of a profile", r.profile)
	}
	if r.role, given = ref.Query("role-arn"); given && !roleForm().MatchString(r.role) {
		return malformed("role-arn is %q; it is written arn:aws:iam::ACCOUNT:role/NAME", r.role)
	}
	if r.endpoint, given = ref.Query("endpoint"); given {
		u, err := url.Parse(r.endpoint)
		if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
			return malformed("endpoint is not of the form https://HOST or http://127.0.0.1:PORT")
		}
		if !private(u) {
			return malformed("endpoint %q: plain http is for this machine only", r.endpoint)
		}
	}
	return nil
}

// private says whether nobody on the way can read what goes to u.
func private(u *url.URL) bool {
	host := u.Hostname()
	ip := net.ParseIP(host)
	return u.Scheme == "https" || u.Scheme == "http" && (host == "localhost" || ip != nil && ip.IsLoopback())
}

func (r *reference) readPolicy(ref signer.Ref) error {
	if v, ok := ref.Query("max-rps"); ok {
		n, err := strconv.ParseFloat(v, 64)
		if err != nil || math.IsNaN(n) || n <= 0 || n > maxRPS {
			return malformed("max-rps is %q; it is a number above 0, at most %d", v, maxRPS)
		}
		r.policy.MaxRPS = n
	}
	if v, ok := ref.Query("max-concurrent"); ok {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > maxConcurrent {
			return malformed("max-concurrent is %q; it is a number from 1 to %d", v, maxConcurrent)
		}
		r.policy.MaxConcurrent = n
	}
	if v, ok := ref.Query("timeout"); ok {
		d, err := time.ParseDuration(v)
		if err != nil || d <= 0 || d > maxTimeout {
			return malformed("timeout is %q; it is a time such as \"20s\", at most %v", v, maxTimeout)
		}
		r.policy.Total = d
	}
	return nil
}
