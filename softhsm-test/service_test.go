package softhsmtest_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"hsmsign/internal/testkit"
	softhsmtest "hsmsign/softhsm-test"
)

// TestServiceDocument runs the blocks of docs/service.md, from an empty store to a service that was stopped, with a token and
// with a key in a file. Only the ports are others, and the path of the module.
func TestServiceDocument(t *testing.T) {
	module := testkit.Value(softhsmtest.FindModule())(t)
	text := string(testkit.Value(os.ReadFile("../docs/service.md"))(t))
	help := string(testkit.Value(exec.Command(filepath.Join(binary, "hsmsign"), "sign", "--help").Output())(t)) // #nosec G204 -- our own program
	for store, ref := range map[string]string{"softhsm": "", "file": "file:vendor.key?passphrase-file=vendor-pass"} {
		t.Run(store, func(t *testing.T) {
			dir := t.TempDir()
			ports := freePorts(t, 2)
			var script strings.Builder
			for _, block := range regexp.MustCompile("(?ms)^```sh( softhsm| agent)?\n(.*?)^```").FindAllStringSubmatch(text, -1) {
				if block[1] == "" || block[1] == " softhsm" && ref == "" || block[1] == " agent" && strings.Contains(help, "--agent") {
					script.WriteString(block[2])
				}
			}
			write(t, dir, map[string][]byte{"vendor-pass": []byte("a passphrase of the vendor\n")})
			commands := strings.NewReplacer(debianModule, module, "8443", ports[0], "9090", ports[1]).Replace(script.String())
			// Whatever fails, no service is left.
			out := runIn(t, dir, "trap 'kill $service 2>/dev/null || true' EXIT; service=\n"+commands, "HSMSIGN_KEY="+ref)
			if strings.Count(string(out), "+ hsmsign ") < 12 || !strings.Contains(string(out), `"ready":true`) || !strings.Contains(string(out), `"caller":"ada"`) {
				t.Errorf("something is missing:\n%s", out)
			}
			log := string(testkit.Value(os.ReadFile(filepath.Join(dir, "service.log")))(t))
			if !strings.Contains(log, `"msg":"stopping: finishing what has begun"`) || strings.Contains(log, "hsmsign_") || strings.Contains(log, `"level":"ERROR"`) {
				t.Errorf("the log: %s", log)
			}
		})
	}
}

// freePorts returns ports that nobody listens on.
func freePorts(t *testing.T, n int) (ports []string) {
	t.Helper()
	for range n {
		l := testkit.Value(net.Listen("tcp", "127.0.0.1:0"))(t)
		defer func() { testkit.OK(t, l.Close()) }()
		ports = append(ports, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	}
	return ports
}
