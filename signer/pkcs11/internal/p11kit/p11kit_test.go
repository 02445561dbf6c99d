package p11kit

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hsmsign/signer"
)

func TestFind(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("etc/changed.module", "# of this machine\n\n module : /opt/changed.so \nmodule: /second.so\n")
	write("etc/gone.module", "module:\n")
	write("etc/critical.module", "critical: yes\n")
	write("etc/twin.module", "module: /opt/twin-a.so\n")
	write("usr/changed.module", "module: /usr/changed.so\n")
	write("usr/gone.module", "module: /usr/gone.so\n")
	write("usr/critical.module", "module: libcritical2.so\n")
	write("usr/other.module", "module: /opt/libTwin.so\n")
	write("usr/remote.module", "remote: |ssh host\n")
	write("usr/absent.module", "module: absent.so\n")
	write("usr/readme.txt", "module: /no.so\n")
	write("lib/x86/libcritical2.so", "")
	p := Config{Folders: []string{filepath.Join(dir, "etc"), filepath.Join(dir, "usr")}, Modules: []string{filepath.Join(dir, "none"), filepath.Join(dir, "lib", "*")}}

	for name, want := range map[string]string{
		"changed": "/opt/changed.so", "CHANGED": "/opt/changed.so", "critical": dir + "/lib/x86/libcritical2.so",
		"critical2": dir + "/lib/x86/libcritical2.so", "other": "/opt/libTwin.so", "twin-a": "/opt/twin-a.so", "absent": dir + "/none/absent.so",
	} {
		if got, err := p.Find(name); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
	for name, want := range map[string]struct {
		family error
		says   string
	}{
		"gone":   {signer.ErrKeyNotFound, "it has: absent; changed; critical; other; twin"},
		"remote": {signer.ErrKeyNotFound, `no module "remote"`},
		"no":     {signer.ErrKeyNotFound, `no module "no"`},
		"twin":   {signer.ErrAmbiguousKey, "/opt/libTwin.so; /opt/twin-a.so"},
	} {
		_, err := p.Find(name)
		if !errors.Is(err, want.family) || !strings.Contains(err.Error(), want.says) {
			t.Errorf("%s: error %v; want %v, %q", name, err, want.family, want.says)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "etc", "folder.module"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := p.Find("changed")
	if !errors.Is(err, signer.ErrUnavailable) || !strings.Contains(err.Error(), "folder.module") {
		t.Errorf("error %v", err)
	}
}
