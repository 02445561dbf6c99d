package awskms

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hsmsign/internal/signerkit"
	"hsmsign/internal/testkit"
	"hsmsign/signer/awskms/awskmstest"
)

func quick() Options { return Options{Policy: signerkit.Policy()} }

// environment removes everything that the SDK would find on this machine, and sets the double's credentials.
func environment(tb testing.TB) {
	tb.Helper()
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "AWS_") {
			tb.Setenv(name, "")
		}
	}
	absent := filepath.Join(tb.TempDir(), "absent")
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": awskmstest.AccessKeyID, "AWS_SECRET_ACCESS_KEY": awskmstest.SecretAccessKey,
		"AWS_CONFIG_FILE": absent, "AWS_SHARED_CREDENTIALS_FILE": absent, "AWS_EC2_METADATA_DISABLED": "true",
	} {
		tb.Setenv(name, value)
	}
}

// start starts a double with the golden key under alias/Vendor, and returns a reference to the key.
func start(tb testing.TB, config awskmstest.Config) (*awskmstest.Server, string) {
	tb.Helper()
	environment(tb)
	server := testkit.Value(awskmstest.NewServer(config))(tb)
	tb.Cleanup(func() { _ = server.Close() })
	testkit.Value(server.Add(awskmstest.Key{Name: "alias/Vendor", Private: testkit.GoldenKey(tb)}))(tb)
	return server, at(server, "alias/Vendor")
}

// at returns a reference to a key on the double.
func at(server *awskmstest.Server, id string) string {
	return "awskms:///" + id + "?endpoint=" + server.Endpoint() + "&region=" + server.Region()
}
