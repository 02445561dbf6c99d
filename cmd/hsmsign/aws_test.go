package main

import (
	"os"

	"github.com/rogpeppe/go-internal/testscript"

	"hsmsign/server/authn/awsiam/awsiamtest"
)

// cmdSTS: sts starts a double of AWS STS, whose URL is $STS, and sets the AWS credentials of the role signer with the unique id
// AROAEXAMPLEROLE00001. sts recreate replaces the role by another one of the same name.
func cmdSTS(ts *testscript.TestScript, _ bool, args []string) {
	const account, id = "111122223333", "AROAEXAMPLEROLE00001"
	role := awsiamtest.Role(account, "signer", id, "build-1")
	if len(args) > 0 && args[0] == "recreate" {
		found, _ := doubles.Load(ts.MkAbs("sts"))
		role.UserID = "AROAEXAMPLEROLE00002:build-1"
		found.(*awsiamtest.Server).Add(role)
		return
	}
	double := awsiamtest.Start(role)
	ts.Defer(double.Close)
	doubles.Store(ts.MkAbs("sts"), double)
	for name, value := range map[string]string{
		"STS": double.URL, "AWS_ACCESS_KEY_ID": role.AccessKeyID, "AWS_SECRET_ACCESS_KEY": role.SecretAccessKey, "AWS_SESSION_TOKEN": role.SessionToken,
		"AWS_REGION": "eu-west-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull,
	} {
		ts.Setenv(name, value)
	}
}
