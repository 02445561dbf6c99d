package policy

import (
	"regexp"
	"strings"
	"sync"

	"hsmsign/fault"
)

// AWSConfig is an AWS IAM role or user that is a credential, as hsmsign.yaml has it. Both fields are required and must match: the
// ARN is for people, and the unique id is what AWS never uses again, so a role that is created again under the same name is
// another one.
type AWSConfig struct {
	ARN      string `yaml:"arn"`       // arn:aws:iam::ACCOUNT:role/NAME or arn:aws:iam::ACCOUNT:user/NAME
	UniqueID string `yaml:"unique-id"` // AROA... of a role, AIDA... of a user
}

// awsPrefixes are the prefixes of unique ids ("IAM identifiers", IAM user guide), by the kind in the ARN.
var awsPrefixes = map[string]string{"role": "AROA", "user": "AIDA"}

// The forms of an ARN and of a unique id. Names of roles and users have the same characters.
var (
	awsARN = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^(arn:aws(?:-[a-z]+)*:iam::[0-9]{12}:)(role|user)/((?:[!-~]+/)?)([A-Za-z0-9+=,.@_-]{1,64})$`)
	})
	awsUniqueID = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Z0-9]{16,128}$`) })
)

// maxARN is the length of an ARN ("GetCallerIdentity", STS API reference).
const maxARN = 2048

// isSet returns whether the caller has an AWS identity.
func (a AWSConfig) isSet() bool { return a != AWSConfig{} }

// check returns the ARN as Policy.AWS compares it: that of a role without its path, which STS does not know.
func (a AWSConfig) check() (arn string, err error) {
	refused := func(fix, format string, args ...any) (string, error) {
		return "", fault.Usage.Errorf("aws: "+format, args...).Fix(fix)
	}
	const fix = "aws iam get-role --role-name NAME prints both: Arn and RoleId"
	switch {
	case a.ARN == "":
		return refused(fix, "it has no arn")
	case a.UniqueID == "":
		return refused(fix, "it has no unique-id: another role could be created with the same name")
	case strings.ContainsAny(a.ARN+a.UniqueID, "*?"):
		return refused("write the whole ARN and the whole id; each role or user is a credential of its own", "it has a wildcard")
	case strings.HasPrefix(a.ARN, "arn:") && strings.Contains(a.ARN, ":assumed-role/"):
		return refused("write the ARN of the role, arn:aws:iam::ACCOUNT:role/NAME: a session is no identity", "%q is the ARN of a session", fault.Clip(a.ARN, 128))
	}
	parts := awsARN().FindStringSubmatch(a.ARN)
	if parts == nil || len(a.ARN) > maxARN {
		return refused("write arn:aws:iam::ACCOUNT:role/NAME or arn:aws:iam::ACCOUNT:user/NAME", "%q is not the ARN of a role or a user", fault.Clip(a.ARN, 128))
	}
	kind, prefix := parts[2], awsPrefixes[parts[2]]
	if !awsUniqueID().MatchString(a.UniqueID) || !strings.HasPrefix(a.UniqueID, prefix) {
		return refused(fix, "%q is not the unique id of a %s, which begins with %s", fault.Clip(a.UniqueID, 64), kind, prefix)
	}
	if kind == "role" {
		return parts[1] + "role/" + parts[4], nil
	}
	return a.ARN, nil
}

func (p *Policy) addAWS(c *Caller) error {
	if !c.from.AWS.isSet() {
		return nil
	}
	arn, err := c.from.AWS.check()
	if err != nil {
		return err
	}
	id := c.from.AWS.UniqueID
	if other := p.aws[id]; other.caller != nil {
		return oneCaller("the AWS identity "+id, other.caller)
	}
	if c.Person != "" && strings.HasPrefix(id, awsPrefixes["role"]) {
		return fault.Usage.Errorf("aws: a role is no person: whoever may assume it is the caller").Fix("write owners: instead of person:, or the ARN of an IAM user")
	}
	p.aws[id] = awsIdentity{arn, c}
	return nil
}

// awsIdentity is an AWS identity of the configuration.
type awsIdentity struct {
	arn    string
	caller *Caller
}

// awsName returns the name of the credential.
func awsName(uniqueID string) string { return "aws " + uniqueID }

// HasAWS returns whether a caller has an AWS identity.
func (p *Policy) HasAWS() bool { return len(p.aws) > 0 }

// AWS returns the credential that an AWS identity is, as AWS STS has told it: the account, the ARN of the role (without a path) or
// user, and the unique id. All must be those of the configuration. The error is of kind unauthenticated. The caller of AWS compares
// the address with Caller.From.
func (p *Policy) AWS(account, arn, uniqueID string) (Credential, error) {
	found := p.aws[uniqueID]
	if found.caller == nil {
		for _, other := range p.aws {
			if other.arn == arn {
				return refuseAWS("%s has the unique id %s, and not that of caller %s: it was created again", arn, uniqueID, other.caller.Name)
			}
		}
		return refuseAWS("%s with the unique id %s is not that of a caller", arn, uniqueID)
	}
	if part := strings.Split(arn, ":"); found.arn != arn || len(part) != 6 || part[4] != account {
		return refuseAWS("%s in the account %s has the unique id %s, which is that of %s of caller %s", arn, account, uniqueID, found.arn, found.caller.Name)
	}
	return Credential{Caller: found.caller, Name: awsName(uniqueID)}, nil
}

func refuseAWS(format string, args ...any) (Credential, error) {
	for i := range args {
		if text, ok := args[i].(string); ok {
			args[i] = fault.Clip(text, 256)
		}
	}
	return Credential{}, fault.Unauthenticated.Errorf("the AWS identity "+format, args...).Fix("ask whoever writes the configuration")
}
