package awskms

import (
	"cmp"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"hsmsign/fault"
	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// The limits of a reference.
const (
	maxRegions    = 8
	maxConcurrent = 1024
)

// The forms of names, by the KMS API reference (CreateAlias, DescribeKey) and the IAM user guide.
const (
	keyPattern    = `(?:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|mrk-[0-9a-f]{32})`
	aliasPattern  = `alias/[A-Za-z0-9/_-]{1,250}`
	regionPattern = `[a-z]{2,8}(?:-[a-z]{2,12}){1,3}-[0-9]{1,2}`
)

// lazily compiles an expression at its first use: all of them together take longer than the start of a small program.
func lazily(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}

var (
	keyForm     = lazily(`^` + keyPattern + `$`)
	aliasForm   = lazily(`^` + aliasPattern + `$`)
	regionForm  = lazily(`^` + regionPattern + `$`)
	arnForm     = lazily(`^arn:aws[a-z-]{0,20}:kms:(` + regionPattern + `):[0-9]{12}:(?:key/` + keyPattern + `|` + aliasPattern + `)$`)
	roleForm    = lazily(`^arn:aws[a-z-]{0,20}:iam::[0-9]{12}:role/[\x21-\x7e]{1,576}$`)
	hostForm    = lazily(`^(?:[a-z0-9-]+\.)?kms(?:-fips)?\.(` + regionPattern + `)\.(?:vpce\.)?(?:amazonaws\.com|api\.aws)`)
	notFoundARN = lazily(`:kms:(` + regionPattern + `):`)
	profileForm = lazily(`^[^\[\]]{1,128}$`)
)

// reference is a parsed key reference.
type reference struct {
	id      string   // a key id, "alias/NAME", or an ARN of either; "": every key, for List only
	regions []string // in order of preference; empty: that of the SDK's configuration

	profile, endpoint, role string
	policy                  kms.Policy
}

func malformed(format string, args ...any) *fault.Failure {
	return fault.Errorf("%w: %s", signer.ErrReference, fmt.Sprintf(format, args...))
}

// parseReference reads a reference, which overrides the policy. The error wraps ErrReference.
func parseReference(ref signer.Ref, policy kms.Policy) (reference, error) {
	r := reference{policy: policy}
	if err := ref.CheckQuery(kms.Attributes("region", "regions", "profile", "endpoint", "role-arn")...); err != nil {
		return r, err
	}
	id, ok := strings.CutPrefix(ref.Path, "///")
	if !ok {
		return r, malformed("write awskms:///KEY with three slashes").Fix(otherForm(ref.Path))
	}
	r.id = id
	if err := cmp.Or(r.checkID(), r.readRegions(ref), r.readAccess(ref)); err != nil {
		return r, err
	}
	var err error
	r.policy, err = policy.WithReference(ref, maxConcurrent)
	return r, err
}

// otherForm returns how to write a reference of step ("key-id=ID;region=REGION") or cosign ("//HOST/KEY"); "" if it is
// neither.
func otherForm(path string) string {
	if _, rest, ok := strings.Cut(path, "key-id="); ok {
		id, _, _ := strings.Cut(rest, ";")
		return "write awskms:///" + id + "?region=REGION"
	}
	if host, key, ok := strings.Cut(strings.TrimPrefix(path, "//"), "/"); ok && strings.HasPrefix(path, "//") {
		return "write awskms:///" + key + "?endpoint=https://" + host
	}
	return ""
}

func (r *reference) checkID() error {
	switch {
	case r.id == "" || keyForm().MatchString(r.id) || aliasForm().MatchString(r.id) || arnRegion(r.id) != "":
		return nil
	case strings.HasPrefix(r.id, "arn:"):
		return malformed("%q is not an ARN of a KMS key or alias", r.id)
	case !strings.HasPrefix(r.id, "alias/") && aliasForm().MatchString("alias/"+r.id):
		return malformed("%q is not a key id; an alias is written \"alias/%s\"", r.id, r.id)
	}
	return malformed("%q is neither a key id nor an ARN nor \"alias/NAME\"", r.id)
}

// arnRegion returns the region in an ARN of a key or an alias, and "" for anything else.
func arnRegion(s string) string {
	if m := arnForm().FindStringSubmatch(s); m != nil {
		return m[1]
	}
	return ""
}

// resource returns the part of an ARN after the account ("key/ID", "alias/NAME"), and other names unchanged.
func resource(id string) string { return id[strings.LastIndexByte(id, ':')+1:] }

// idIn returns the name of the key in a region: the ARNs of the replicas of a multi-Region key differ in the region
// only.
func (r *reference) idIn(region string) string {
	if from := arnRegion(r.id); from != "" {
		return strings.Replace(r.id, ":"+from+":", ":"+region+":", 1)
	}
	return r.id
}

// regionPolicy returns the policy of one region. The regions share the time, so that some is left for the last one.
func (r *reference) regionPolicy() kms.Policy {
	policy := r.policy.WithDefaults()
	policy.Timeout /= time.Duration(max(1, len(r.regions)))
	return policy
}

func (r *reference) readRegions(ref signer.Ref) error {
	one, hasOne := ref.Query("region")
	several, hasSeveral := ref.Query("regions")
	own := arnRegion(r.id)
	switch {
	case hasOne && hasSeveral:
		return malformed("region and regions exclude each other")
	case hasOne:
		r.regions = []string{one}
	case hasSeveral:
		r.regions = strings.Split(several, ",")
	case own != "":
		r.regions = []string{own}
	}
	if len(r.regions) > maxRegions {
		return malformed("%d regions; at most %d are allowed", len(r.regions), maxRegions)
	}
	for i, region := range r.regions {
		if !regionForm().MatchString(region) {
			return malformed("%q is not a region", region)
		}
		if slices.Contains(r.regions[:i], region) {
			return malformed("region %q is repeated", region)
		}
	}
	if own != "" && !slices.Contains(r.regions, own) {
		return malformed("the region of the ARN is %q, not %q", own, strings.Join(r.regions, ","))
	}
	if len(r.regions) > 1 && !strings.HasPrefix(resource(r.id), "alias/") && !strings.Contains(r.id, "mrk-") {
		return malformed("only a multi-Region key (mrk-...) is in several regions")
	}
	return nil
}

func (r *reference) readAccess(ref signer.Ref) error {
	var given bool
	if r.profile, given = ref.Query("profile"); given && !profileForm().MatchString(r.profile) {
		return malformed("%q is not a valid name of a profile", r.profile)
	}
	if r.role, given = ref.Query("role-arn"); given && !roleForm().MatchString(r.role) {
		return malformed("role-arn is %q; write arn:aws:iam::ACCOUNT:role/NAME", r.role)
	}
	if r.endpoint, given = ref.Query("endpoint"); given {
		u, err := url.Parse(r.endpoint)
		if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
			return malformed("endpoint is not of the form https://HOST or http://127.0.0.1:PORT")
		}
		if !private(u) {
			return malformed("endpoint %q: %v", r.endpoint, errPlain)
		}
		if m := hostForm().FindStringSubmatch(strings.ToLower(u.Hostname())); m != nil {
			if len(r.regions) == 0 {
				r.regions = m[1:]
			}
			if !slices.Equal(r.regions, m[1:]) {
				return malformed("the endpoint is in region %q, not %q", m[1], strings.Join(r.regions, ","))
			}
		}
	}
	return nil
}

// private reports whether requests to u are encrypted or stay on this machine.
func private(u *url.URL) bool {
	return u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || kms.Loopback(u.Hostname()))
}
