//go:build cgo

package pkcs11

import (
	"os"
	"path/filepath"
	"testing"

	"hsmsign/signer"
	softhsmtest "hsmsign/softhsm-test"
)

func TestModuleByName(t *testing.T) {
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
	write("etc/changed.module", "# the machine's own\n\n module : /opt/changed.so \nmodule: /second.so\n")
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
	p := p11kit{configs: []string{filepath.Join(dir, "etc"), filepath.Join(dir, "usr")}, modules: []string{filepath.Join(dir, "none"), filepath.Join(dir, "lib", "*")}}

	for name, want := range map[string]string{
		"changed": "/opt/changed.so", "CHANGED": "/opt/changed.so", "critical": dir + "/lib/x86/libcritical2.so",
		"critical2": dir + "/lib/x86/libcritical2.so", "other": "/opt/libTwin.so", "twin-a": "/opt/twin-a.so", "absent": dir + "/none/absent.so",
	} {
		if got, err := p.find(name); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
	for name, want := range map[string]struct {
		family error
		says   string
	}{
		"gone":   {signer.ErrKeyNotFound, "there: absent; changed; critical; other; twin"},
		"remote": {signer.ErrKeyNotFound, `no module "remote"`},
		"no":     {signer.ErrKeyNotFound, `no module "no"`},
		"twin":   {signer.ErrAmbiguousKey, "/opt/libTwin.so; /opt/twin-a.so"},
	} {
		_, err := p.find(name)
		refused(t, reference{}.fail("open", err, ""), want.family, want.says)
	}
	if err := os.Mkdir(filepath.Join(dir, "etc", "folder.module"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := p.find("changed")
	refused(t, reference{}.fail("open", err, ""), signer.ErrUnavailable, "folder.module")
}

func TestModuleByNameOpens(t *testing.T) {
	_, err := Backend(Options{}).Open(t.Context(), parse(t, "pkcs11:object=k?module-name=no-such-module"), signer.OpenOptions{})
	refused(t, err, signer.ErrKeyNotFound, "no-such-module")
}

func TestAllowedModules(t *testing.T) {
	tok := newToken(t)
	link := filepath.Join(t.TempDir(), "module.so")
	if err := os.Symlink(tok.Module, link); err != nil {
		t.Fatal(err)
	}
	target, err := filepath.EvalSymlinks(tok.Module)
	if err != nil {
		t.Fatal(err)
	}
	byLink := *tok
	byLink.Module = link
	for name, tt := range map[string]struct {
		tok     *softhsmtest.Token
		allowed []string
		family  error
	}{
		"any":                    {tok, nil, nil},
		"the one":                {tok, []string{"/other.so", tok.Module}, nil},
		"its target":             {tok, []string{target}, nil},
		"a link to it":           {&byLink, []string{tok.Module}, nil},
		"allowed by link":        {tok, []string{link}, nil},
		"another":                {tok, []string{"/other.so"}, signer.ErrReference},
		"a link to what is not":  {&byLink, []string{"/other.so"}, signer.ErrReference},
		"none":                   {tok, []string{}, signer.ErrReference},
		"its folder is no match": {tok, []string{filepath.Dir(target)}, signer.ErrReference},
	} {
		b := Backend(Options{AllowedModules: tt.allowed})
		_, listErr := b.List(t.Context(), parse(t, tt.tok.Ref("vendor")))
		key, err := b.Open(t.Context(), parse(t, tt.tok.Ref("vendor")), signer.OpenOptions{})
		if tt.family != nil {
			refused(t, err, tt.family, "allows", target)
			refused(t, listErr, tt.family, "allows", target)
			continue
		}
		if err != nil || listErr != nil {
			t.Errorf("%s: %v, %v", name, err, listErr)
			continue
		}
		if err := key.Close(); err != nil {
			t.Error(err)
		}
	}
}
