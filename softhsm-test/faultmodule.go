package softhsmtest

import (
	"context"
	_ "embed" // the source of the module
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// faultSource is C; its first comment describes scripts.
//
//go:embed faultmodule/faultmodule.c
var faultSource []byte

// The variables that the module reads.
const (
	faultModuleVariable = "SOFTHSMTEST_FAULT_MODULE"
	faultScriptVariable = "SOFTHSMTEST_FAULT_SCRIPT"
	faultLogVariable    = "SOFTHSMTEST_FAULT_LOG"
)

// FaultModule is a PKCS#11 module that forwards its calls to SoftHSM2, with scripted faults, and counts them. Each test
// gets a separate module. Its methods are safe for concurrent use.
type FaultModule struct {
	Path string // absolute path of the module

	real, script, log string
}

// compiled returns the module, compiled once in a process.
var compiled = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "faultmodule-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	source, module := filepath.Join(dir, "faultmodule.c"), filepath.Join(dir, "faultmodule.so")
	if err := os.WriteFile(source, faultSource, 0o600); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), utilWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, "cc", "-O1", "-Wall", "-shared", "-fPIC", "-fvisibility=hidden", "-o", module, source, "-ldl", "-pthread") // #nosec G204 -- a test's own arguments
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("cc: %w: %s; a C compiler is needed: apt-get install gcc", err, out)
	}
	return os.ReadFile(module) // #nosec G304 -- in a temporary folder of this function
})

// BuildFaultModule compiles the module with the C compiler (cc) and sets the variables that it reads until the test ends.
// It ends the test if that fails; a build with cgo needs a C compiler anyway.
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
	module, err := compiled()
	if err == nil {
		err = os.WriteFile(f.Path, module, 0o600)
	}
	if err != nil {
		tb.Fatal(err)
	}
	f.Script(tb)
	for _, variable := range f.Env() {
		name, value, _ := strings.Cut(variable, "=")
		tb.Setenv(name, value)
	}
	return f
}

// Use makes the token's references name this module, which forwards to SoftHSM2.
func (f *FaultModule) Use(t *Token) { t.Module = f.Path }

// Env returns the variables that a child process needs in addition to those of the token and os.Environ.
func (f *FaultModule) Env() []string {
	return []string{faultModuleVariable + "=" + f.real, faultScriptVariable + "=" + f.script, faultLogVariable + "=" + f.log}
}

// Script sets the script from the next call on, and numbers calls from 1 again; without lines there are no faults.
func (f *FaultModule) Script(tb testing.TB, lines ...string) {
	tb.Helper()
	var size int64
	if info, err := os.Stat(f.log); err == nil {
		size = info.Size()
	}
	text := fmt.Sprintf("since %d\n%s\n", size, strings.Join(lines, "\n"))
	// A call at this moment must read the old script or the new one.
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

// Calls returns the number of calls of all processes since the module was built, by function.
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
