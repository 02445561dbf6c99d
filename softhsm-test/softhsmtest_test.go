package softhsmtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hsmsign/internal/testkit"
	"hsmsign/signer"
)

// slots returns what softhsm2-util, another program, sees with the token's environment.
func slots(t *testing.T, tok *Token) string {
	t.Helper()
	cmd := exec.Command("softhsm2-util", "--show-slots")
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, confVariable) }), tok.Env()...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func TestToken(t *testing.T) {
	before := os.Getenv(confVariable)
	var dir string
	t.Run("lives", func(t *testing.T) {
		tok := New(t, WithLabel("a label"), WithPIN("4711-4711"))
		dir = tok.Dir
		if got := os.Getenv(confVariable); got != tok.Conf {
			t.Errorf("%s is %q; want %q", confVariable, got, tok.Conf)
		}
		if !filepath.IsAbs(tok.Module) {
			t.Errorf("module %q is not absolute", tok.Module)
		}
		info, err := os.Stat(tok.PINFile)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("PIN file: %v, %v; want mode 0600", info, err)
		}
		if pin, err := os.ReadFile(tok.PINFile); string(pin) != "4711-4711\n" {
			t.Errorf("PIN file contains %q, %v", pin, err)
		}
		if out := slots(t, tok); !strings.Contains(out, "a label") {
			t.Errorf("no token of that label:\n%s", out)
		}
	})
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the folder still exists: %v", err)
	}
	if got := os.Getenv(confVariable); got != before {
		t.Errorf("%s is %q after the test; want %q", confVariable, got, before)
	}
}

// objects counts the objects in a token's folder, which are separate files.
func objects(t *testing.T, tok *Token) int {
	t.Helper()
	files := testkit.Value(filepath.Glob(filepath.Join(tok.Dir, "tokens", "*", "*-*.object")))(t)
	return len(files)
}

func TestImport(t *testing.T) {
	tok := New(t)
	if n := objects(t, tok); n != 0 {
		t.Fatalf("a new token has %d objects", n)
	}
	for want := 2; want <= 4; want += 2 { // a private and a public key each time, even if they exist
		tok.Import(t, testkit.File(t, "golden/vendor.key"), "vendor", []byte{0x01, 0xff})
		if n := objects(t, tok); n != want {
			t.Errorf("%d objects; want %d", n, want)
		}
	}
	if left, err := filepath.Glob(filepath.Join(tok.Dir, "*.pem")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func TestRef(t *testing.T) {
	tests := []struct {
		label, object, dir string
		path, pinSource    string
	}{
		{"mdm", "vendor", "/tmp/x", "token=mdm;object=vendor", "file:/tmp/x/pin"},
		{"my token", "R&D; a+b?", "/tmp/a b&c%d", "token=my%20token;object=R&D%3B%20a+b%3F", "file:/tmp/a b&c%d/pin"},
		{"mdm", "", "/tmp/x", "token=mdm", "file:/tmp/x/pin"},
	}
	for _, tt := range tests {
		tok := &Token{Label: tt.label, Module: tt.dir + "/m.so", PINFile: tt.dir + "/pin"}
		ref, err := signer.ParseRef(tok.Ref(tt.object))
		if err != nil {
			t.Errorf("%q: %v", tok.Ref(tt.object), err)
			continue
		}
		module, _ := ref.Query("module-path")
		source, _ := ref.Query("pin-source")
		got := []string{ref.Path, module, source}
		if diff := cmp.Diff([]string{tt.path, tt.dir + "/m.so", tt.pinSource}, got); diff != "" {
			t.Errorf("%q: (-want +got)\n%s", tok.Ref(tt.object), diff)
		}
	}
}

// recorder is a test that records why it was ended.
type recorder struct {
	testing.TB
	fatal string
}

func (r *recorder) Helper() {}

func (r *recorder) Fatalf(format string, args ...any) {
	r.fatal = fmt.Sprintf(format, args...)
	panic(r)
}

// A missing SoftHSM2 fails the test, with what to install.
func TestMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	r := &recorder{TB: t}
	func() {
		defer func() {
			if p := recover(); p != any(r) {
				t.Fatalf("New did not fail: %v", p)
			}
		}()
		New(r)
	}()
	if !strings.Contains(r.fatal, "apt-get install softhsm2") {
		t.Errorf("failed with %q; want a hint", r.fatal)
	}
}
