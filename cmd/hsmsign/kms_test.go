package main

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"sync"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/rogpeppe/go-internal/testscript"

	"hsmsign/signer/awskms/awskmstest"
	"hsmsign/signer/gcpkms/gcpkmstest"
)

// doubles are the doubles of the scripts, by their folders: scripts run at the same time.
var doubles sync.Map

// goldenKey reads vendor.key.
func goldenKey(ts *testscript.TestScript) *rsa.PrivateKey {
	block, _ := pem.Decode([]byte(ts.ReadFile("vendor.key")))
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	ts.Check(err)
	return key.(*rsa.PrivateKey)
}

// cmdAWSKMS: awskms starts a double with vendor.key as alias/vendor; $AWSKMS is its reference, $AWSKMS_ARN the key's ARN.
// awskms fault NAME... queues faults of Sign; awskms log FILE writes its CloudTrail log.
func cmdAWSKMS(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) == 0 {
		server, err := awskmstest.NewServer(awskmstest.Config{})
		ts.Check(err)
		ts.Defer(func() { _ = server.Close() })
		arn, err := server.AddKey("alias/vendor", goldenKey(ts))
		ts.Check(err)
		doubles.Store(ts.MkAbs("aws"), server)
		for name, value := range map[string]string{
			"AWS_ACCESS_KEY_ID": awskmstest.AccessKeyID, "AWS_SECRET_ACCESS_KEY": awskmstest.SecretAccessKey, "AWS_EC2_METADATA_DISABLED": "true",
			"AWS_CONFIG_FILE": ts.MkAbs("absent"), "AWS_SHARED_CREDENTIALS_FILE": ts.MkAbs("absent"), "AWSKMS_ARN": arn,
			"AWSKMS": "awskms:///alias/vendor?endpoint=" + server.Endpoint() + "&region=" + server.Region(),
		} {
			ts.Setenv(name, value)
		}
		return
	}
	found, _ := doubles.Load(ts.MkAbs("aws"))
	server := found.(*awskmstest.Server)
	if args[0] == "log" {
		ts.Check(os.WriteFile(ts.MkAbs(args[1]), server.CloudTrail(), 0o600))
		return
	}
	for _, name := range args[1:] {
		ts.Check(server.Script("Sign", awskmstest.Fault(name)))
	}
}

// cmdGCPKMS is cmdAWSKMS for Google's double.
func cmdGCPKMS(ts *testscript.TestScript, _ bool, args []string) {
	const version = "projects/p/locations/europe-west1/keyRings/mdm/cryptoKeys/vendor/cryptoKeyVersions/1"
	if len(args) == 0 {
		server, err := gcpkmstest.NewServer(gcpkmstest.Config{})
		ts.Check(err)
		ts.Defer(func() { _ = server.Close() })
		_, err = server.Add(gcpkmstest.Key{Name: version, Private: goldenKey(ts), Algorithm: kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256})
		ts.Check(err)
		doubles.Store(ts.MkAbs("gcp"), server)
		ts.Setenv("GCPKMS", "gcpkms://"+version+"?endpoint="+server.Endpoint())
		return
	}
	found, _ := doubles.Load(ts.MkAbs("gcp"))
	server := found.(*gcpkmstest.Server)
	if args[0] == "log" {
		ts.Check(os.WriteFile(ts.MkAbs(args[1]), server.AuditLog(), 0o600))
		return
	}
	for _, name := range args[1:] {
		ts.Check(server.Script("AsymmetricSign", gcpkmstest.Fault(name)))
	}
}
