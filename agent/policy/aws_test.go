package policy

import (
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/ledger/record"
)

const (
	roleARN = "arn:aws:iam::111122223333:role/signer"
	roleID  = "AROAEXAMPLEROLE00001"
	userARN = "arn:aws-us-gov:iam::111122223333:user/teams/mdm/alice"
	userID  = "AIDAEXAMPLEUSER00001"
)

func awsPolicy(t *testing.T, callers map[string]CallerConfig) *Policy {
	t.Helper()
	return testkit.Value(New(callers, map[string]RoleConfig{"signer": signerRole()}, Environment{}))(t)
}

// TestAWS: account, ARN and unique id must all be those of the configuration; the path of a role is not known to STS.
func TestAWS(t *testing.T) {
	p := awsPolicy(t, map[string]CallerConfig{
		"ci":    {Role: "signer", Owners: []string{"ada"}, AWS: AWSConfig{strings.Replace(roleARN, "role/", "role/teams/mdm/", 1), roleID}, From: []string{"10.0.0.0/8"}},
		"alice": {Role: "signer", Person: "alice", AWS: AWSConfig{userARN, userID}},
	})
	for _, tt := range []struct{ account, arn, id, want, refused string }{
		{"111122223333", roleARN, roleID, "ci", ""},
		{"111122223333", userARN, userID, "alice", ""},
		{"111122223333", roleARN, "AROAEXAMPLEROLE00002", "", "has the unique id AROAEXAMPLEROLE00002, and not that of caller ci: it was created again"},
		{"111122223333", "arn:aws:iam::111122223333:role/other", roleID, "", "which is that of " + roleARN + " of caller ci"},
		{"444455556666", roleARN, roleID, "", "in the account 444455556666"},
		{"444455556666", "arn:aws:iam::444455556666:role/signer", roleID, "", "which is that of"},
		{"111122223333", "arn:aws-cn:iam::111122223333:role/signer", roleID, "", "which is that of"},
		{"111122223333", "arn:aws-us-gov:iam::111122223333:user/alice", userID, "", "which is that of"},
		{"444455556666", "arn:aws:iam::444455556666:role/x", "AROAX", "", "is not that of a caller"},
		{"", "", "", "", "is not that of a caller"},
	} {
		found, err := p.AWS(tt.account, tt.arn, tt.id)
		switch {
		case tt.want == "" && (found.Caller != nil || fault.KindOf(err) != fault.Unauthenticated || !strings.Contains(err.Error(), tt.refused)):
			t.Errorf("%s %s %s: %+v, %v", tt.account, tt.arn, tt.id, found, err)
		case tt.want != "" && (err != nil || found.Caller.Name != tt.want || found.Name != "aws "+tt.id):
			t.Errorf("%s %s: %+v, %v", tt.arn, tt.id, found, err)
		}
	}
	if !p.HasAWS() || awsPolicy(t, map[string]CallerConfig{"ada": ada()}).HasAWS() {
		t.Error("HasAWS")
	}
	ci := testkit.Value(p.Caller("ci"))(t)
	if all := ci.Credentials(time.Now()); len(all) != 1 || all[0].Name != "aws "+roleID {
		t.Errorf("%+v", all)
	}
	if text := p.Explain("ci", time.Now()); !strings.Contains(text, "a machine of ada; aws "+roleID+"; from 10.0.0.0/8") {
		t.Error(text)
	}
}

// TestAWSRefused: an entry that would let in more than one role or user of one account.
func TestAWSRefused(t *testing.T) {
	for _, tt := range []struct{ arn, id, want string }{
		{"", roleID, "it has no arn"},
		{roleARN, "", "it has no unique-id"},
		{"arn:aws:iam::111122223333:role/*", roleID, "it has a wildcard"},
		{roleARN, "AROA*", "it has a wildcard"},
		{"arn:aws:iam::111122223333:role/signe?", roleID, "it has a wildcard"},
		{"arn:aws:sts::111122223333:assumed-role/signer/ada", roleID, "is the ARN of a session"},
		{"arn:aws:iam::111122223333:root", "111122223333", "is not the ARN of a role or a user"},
		{"arn:aws:iam::11112222333:role/signer", roleID, "is not the ARN"},
		{"arn:aws:iam::111122223333:role/", roleID, "is not the ARN"},
		{"arn:aws:iam::111122223333:role/a b", roleID, "is not the ARN"},
		{"arn:aws:iam::111122223333:group/x", roleID, "is not the ARN"},
		{"arn:other:iam::111122223333:role/signer", roleID, "is not the ARN"},
		{roleARN + "\n", roleID, "is not the ARN"},
		{roleARN + strings.Repeat("x", 2048), roleID, "is not the ARN"},
		{roleARN, userID, "is not the unique id of a role, which begins with AROA"},
		{userARN, roleID, "is not the unique id of a user, which begins with AIDA"},
		{userARN, "AKIAEXAMPLEKEY000001", "begins with AIDA"},
		{roleARN, "AROA", "is not the unique id"},
		{roleARN, strings.ToLower(roleID), "is not the unique id"},
		{roleARN, roleID + ":ada", "is not the unique id"},
	} {
		_, err := New(map[string]CallerConfig{"ci": {Role: "signer", Owners: []string{"ada"}, AWS: AWSConfig{tt.arn, tt.id}}}, map[string]RoleConfig{"signer": signerRole()}, Environment{})
		if fault.KindOf(err) != fault.Usage || !strings.HasPrefix(err.Error(), "caller ci: aws: ") || !strings.Contains(err.Error(), tt.want) || fault.Hint(err) == "" {
			t.Errorf("%q, %q: %v", tt.arn, tt.id, err)
		}
	}
	for want, callers := range map[string]map[string]CallerConfig{
		"caller b: the AWS identity " + roleID + " is that of a": {
			"a": {Role: "signer", Owners: []string{"ada"}, AWS: AWSConfig{roleARN, roleID}},
			"b": {Role: "signer", Owners: []string{"ada"}, AWS: AWSConfig{"arn:aws:iam::111122223333:role/b", roleID}},
		},
		"caller ada: aws: a role is no person": {"ada": {Role: "signer", Person: "ada", AWS: AWSConfig{roleARN, roleID}}},
	} {
		if _, err := New(callers, map[string]RoleConfig{"signer": signerRole()}, Environment{}); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v; want %s", err, want)
		}
	}
}

// An approval counts while the approver still has the AWS identity with which it was given.
func TestAWSApproval(t *testing.T) {
	count := func(id string) (have int) {
		p, err := New(map[string]CallerConfig{
			"ci":  {Role: "signer", Owners: []string{"ada"}, UID: []int{1001}},
			"fay": {Role: "approving", Person: "fay", AWS: AWSConfig{ARN: "arn:aws:iam::111122223333:user/fay", UniqueID: id}},
		}, map[string]RoleConfig{
			"signer":    {May: []string{Sign}, Customers: []string{"*"}, PerSecond: 1, PerDay: 1, Approvals: NoApprovals()},
			"approving": {May: []string{Approve}, Customers: []string{"*"}},
		}, Environment{Vendors: []string{""}})
		if err != nil {
			t.Fatal(err)
		}
		have, _ = p.Count(record.Asked{Requester: record.Requester{Caller: "ci", Owners: []string{"ada"}}}, "acme", []record.Approval{{Caller: "fay", Person: "fay", Credential: "aws AIDAEXAMPLEUSER00001"}}, 1)
		return have
	}
	if count("AIDAEXAMPLEUSER00001") != 1 || count("AIDAEXAMPLEUSER00002") != 0 {
		t.Error("an approval by an AWS identity that was replaced counts, or one that was not does not")
	}
}
