package main

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"hsmsign/fault"
	"hsmsign/keystore"
	"hsmsign/signer"
)

// secretsCredential is the prefix of the credentials that the service gets from the folder secrets next to the configuration
// (LoadCredential=secrets:/etc/hsmsign/secrets in the unit of the packages).
const secretsCredential = "credential:secrets_" // #nosec G101 -- where a secret is

// askKey asks for the vendor's key, and opens it.
func (job *setupJob) askKey(ctx context.Context) error {
	job.store = job.keys()
	var modules []string
	for _, path := range slices.Sorted(maps.Keys(keystore.Modules())) {
		modules = append(modules, path+"  PKCS#11 module "+keystore.Modules()[path])
	}
	reference, err := job.answer(ctx, asking{
		flag: "key", question: "vendor key: a PKCS#11 module, the file of a key, or a whole reference (hsmsign help keys)", choices: modules,
		check: func(text *string) error {
			if err := job.reference(ctx, text); err != nil {
				return err
			}
			return job.open(ctx, *text)
		},
	})
	if err != nil {
		return err
	}
	return job.keepSecret(reference)
}

// reference makes a whole reference of an answer: of a module, whose tokens and keys are chosen, or of a file.
func (job *setupJob) reference(ctx context.Context, text *string) error {
	if job.store.IsReference(*text) {
		return nil
	}
	if err := job.absolute(text); err != nil {
		return err
	}
	if err := isFile(*text); err != nil {
		return err
	}
	if ext := filepath.Ext(*text); ext != ".so" && ext != ".dylib" && ext != ".dll" {
		*text = "file:" + signer.Escape(*text, func(c byte) bool { return c <= ' ' || strings.IndexByte("%?&#;", c) >= 0 })
		return nil
	}
	module, err := signer.ParseRef("pkcs11:?module-path=" + signer.Escape(*text, func(c byte) bool { return c <= ' ' || strings.IndexByte("%?&#;", c) >= 0 }))
	if err != nil {
		return err
	}
	token, err := job.chooseToken(ctx, module)
	if err != nil {
		return err
	}
	*text, err = job.chooseKey(ctx, token)
	return err
}

// chooseToken asks for a token of a module.
func (job *setupJob) chooseToken(ctx context.Context, module signer.Ref) (string, error) {
	key, err := job.store.Parse(module.Encode())
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	tokens, err := key.Tokens(ctx)
	if err != nil {
		return "", err
	}
	var choices []string
	for _, t := range tokens {
		if t.Ref != "" {
			choices = append(choices, fmt.Sprintf("%s  %s", t.Ref, orDefault(strings.Join(t.Flags, ", "), t.Error)))
		}
	}
	if len(choices) == 0 {
		return "", fault.Usage.Errorf("the module has no token that is initialized").Fix("initialize one with the tool of its vendor; see docs/pkcs11.md")
	}
	return job.ask(ctx, asking{question: "token", choices: choices})
}

// chooseKey asks where the PIN of a token is, and for a key of the token.
func (job *setupJob) chooseKey(ctx context.Context, token string) (string, error) {
	ref, err := signer.ParseRef(token)
	if err != nil {
		return "", err
	}
	source, err := job.ask(ctx, asking{question: "where the PIN is: file:PATH, or " + secretsCredential + "NAME for the file NAME in " + job.secrets() + "; prompt: type it now", def: "prompt"})
	if err != nil {
		return "", err
	}
	ref = ref.Without("pin-source").With("pin-source", source)
	readable, _ := job.readable(ref)
	key, err := job.store.Parse(readable.Encode())
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	infos, err := key.List(ctx)
	if err != nil {
		return "", err
	}
	var choices []string
	for _, info := range infos {
		if info.Type == "" {
			choices = append(choices, info.Ref+"  "+strings.Join(keyRow(info)[1:5], ", "))
		}
	}
	if len(choices) == 0 {
		return "", fault.Errorf("%w: the token has no private key", signer.ErrKeyNotFound).Fix("make one with hsmsign vendor ceremony, or hsmsign key generate")
	}
	chosen, err := job.ask(ctx, asking{question: "key", choices: choices})
	if err != nil {
		return "", err
	}
	if ref, err = signer.ParseRef(chosen); err != nil {
		return "", err
	}
	return ref.Without("pin-source").With("pin-source", source).Encode(), nil
}

// secrets is the folder whose files the service gets as credentials.
func (job *setupJob) secrets() string { return filepath.Join(job.dir, "secrets") }

// open opens the key. A reference that asks for the PIN is accepted if a person is there: what is typed is kept in a file.
func (job *setupJob) open(ctx context.Context, reference string) error {
	ref, err := signer.ParseRef(reference)
	if err != nil {
		return err
	}
	if path, ok := relativePath(ref); ok {
		return fault.Usage.Errorf("the path %q is relative", path).Fix("write absolute paths: the service runs elsewhere")
	}
	if source, _ := ref.Query("pin-source"); source == "prompt" && job.silent {
		return fault.Usage.Errorf("pin-source=prompt: a service has nobody to ask").Fix("write pin-source=file:PATH or pin-source=" + secretsCredential + "NAME")
	}
	readable, _ := job.readable(ref)
	tested := readable.Encode()
	key, err := job.store.Parse(tested)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	opened, err := key.Open(ctx, signer.OpenOptions{})
	if err != nil {
		return err
	}
	job.tested = tested
	return opened.Close()
}

// relativePath returns a relative path that a reference names, if there is one.
func relativePath(ref signer.Ref) (string, bool) {
	var paths []string
	if ref.Scheme == "file" {
		paths = append(paths, strings.TrimPrefix(ref.Path, "//"))
	}
	if path, ok := ref.Query("passphrase-file"); ok && !strings.HasPrefix(path, "credential:") {
		paths = append(paths, path)
	}
	if source, ok := ref.Query("pin-source"); ok {
		if path, ok := strings.CutPrefix(source, "file:"); ok {
			paths = append(paths, strings.TrimPrefix(path, "//"))
		}
	}
	for _, path := range paths {
		if !filepath.IsAbs(path) {
			return path, true
		}
	}
	return "", false
}

// keepSecret puts the reference into the configuration. A PIN or passphrase that was typed gets a file, which the reference names.
func (job *setupJob) keepSecret(reference string) error {
	ref, err := signer.ParseRef(reference)
	if err != nil {
		return err
	}
	switch {
	case job.typed == nil:
	case ref.Scheme == "pkcs11" && job.service != nil && isFolder(job.secrets()):
		job.secret = filepath.Join(job.secrets(), "pin")
		ref = ref.Without("pin-source").With("pin-source", secretsCredential+"pin")
	case ref.Scheme == "pkcs11":
		job.secret = filepath.Join(job.dir, "pin")
		ref = ref.Without("pin-source").With("pin-source", "file:"+job.secret)
	default:
		job.secret = filepath.Join(job.dir, "passphrase")
		ref = ref.With("passphrase-file", job.secret)
	}
	if module, ok := ref.Query("module-path"); ok {
		job.config.Modules = []string{module}
	} else if _, named := ref.Query("module-name"); !named {
		job.config.Modules = []string{}
	}
	job.config.Key = ref.Encode()
	if job.secret == "" {
		return nil
	}
	return notThere(job.secret)
}

// askCertificates asks for the vendor's chain, which must be complete and match the key.
func (job *setupJob) askCertificates(ctx context.Context) error {
	for {
		if err := job.askChain(ctx); err != nil {
			return err
		}
		err := job.matchKey(ctx)
		if err == nil || job.silent || job.has("cert") || final(err) {
			return err
		}
		job.p.con.Fail(err)
	}
}

func (job *setupJob) askChain(ctx context.Context) (err error) {
	c := job.config
	if c.Cert, err = job.answer(ctx, asking{flag: "cert", question: "vendor certificate, or the bundle of vendor import (PEM, DER)", check: job.absolute}); err != nil {
		return err
	}
	if c.Chain, err = job.files(ctx, "chain", "files with certificates above it, if it is not the bundle, separated by \""+string(filepath.ListSeparator)+"\""); err != nil {
		return err
	}
	c.TrustRoot, err = job.files(ctx, "trust-root", "trusted roots besides Apple's, for a test PKI only")
	return err
}
