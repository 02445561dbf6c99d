package softhsmtest

import (
	"context"
	_ "embed" // the source of the module
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// faultSource is C; its head says what a script can do.
//
//go:embed faultmodule/faultmodule.c
var faultSource []byte

// The variables that the module reads.
const (
	faultModuleVariable = "SOFTHSMTEST_FAULT_MODULE"
	faultScriptVariable = "SOFTHSMTEST_FAULT_SCRIPT"
	faultLogVariable    = "SOFTHSMTEST_FAULT_LOG"
)

// FaultModule is a PKCS#11 module that hands its calls on to SoftHSM2, with faults by script and a count of its
// calls. It is a module of its own for each test. Its methods may be used by several goroutines at once.
type FaultModule struct {
	Path string // absolute path of the module

	real, script, log string
}

// BuildFaultModule compiles the module with the C compiler (cc) and sets the variables that it reads until
// the test ends. It ends the test when that fails; a build with cgo needs a C compiler anyway.
func BuildFaultModule(tb testing.TB) *FaultModule {
	tb.Helper()
	dir := tb.TempDir()
	f := &FaultModule{
		Path:   filepath.Join(dir, "faultmodule.so"),
		script: filepath.Join(dir, "script"),
		log:    filepath.Join(dir, "log"),
	}
	var err error
	if f.real, err = FindModule(); err != nil {
		tb.Fatal(err)
	}
	source := filepath.Join(dir, "faultmodule.c")
	if err := os.WriteFile(source, faultSource, 0o600); err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), utilWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, "cc", "-O0", "-Wall", "-shared", "-fPIC", "-fvisibility=hidden", "-o", f.Path, source, "-ldl", "-pthread") // #nosec G204 -- a test's own arguments
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("cc: %v: %s; a C compiler is needed: apt-get install gcc", err, out)
	}
	f.Script(tb)
	for _, variable := range f.Env() {
		name, value, _ := strings.Cut(variable, "=")
		tb.Setenv(name, value)
	}
	return f
}

// Use makes the token's references go through this module, which stands before the one that the token has had.
func (f *FaultModule) Use(t *Token) { t.Module = f.Path }

// Env is what a child process needs beside the token's own variables, to be added to os.Environ.
func (f *FaultModule) Env() []string {
	return []string{faultModuleVariable + "=" + f.real, faultScriptVariable + "=" + f.script, faultLogVariable + "=" + f.log}
}

// Script sets the script, from the next call on; without lines there are no faults. It counts calls anew.
func (f *FaultModule) Script(tb testing.TB, lines ...string) {
	tb.Helper()
	var size int64
	if info, err := os.Stat(f.log); err == nil {
		size = info.Size()
	}
	text := fmt.Sprintf("since %d\n%s\n", size, strings.Join(lines, "\n"))
	// A call that reads at this moment must see the old script or the new one.
	next, err := os.CreateTemp(filepath.Dir(f.script), "script-")
	if err != nil {
		tb.Fatal(err)
	}
	if _, err = next.WriteString(text); err == nil {
		err = next.Close()
	}
	if err == nil {
		err = os.Rename(next.Name(), f.script)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// Calls are the calls of all processes since the module was built, by function.
func (f *FaultModule) Calls(tb testing.TB) map[string]int {
	tb.Helper()
	text, err := os.ReadFile(f.log)
	if err != nil && !os.IsNotExist(err) {
		tb.Fatal(err)
	}
	calls := map[string]int{}
	for _, name := range strings.Fields(strings.NewReplacer("pin wrong\n", "", "pin right\n", "").Replace(string(text))) {
		calls[name]++
	}
	return calls
}
