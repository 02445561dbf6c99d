package vaulttest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha1" // #nosec G505 -- Vault offers it
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Key is a key for Add.
type Key struct {
	Name      string
	Mount     string        // "": "transit"
	Namespace string        // "": root
	Private   crypto.Signer // of the next version: *rsa.PrivateKey or *ecdsa.PrivateKey; nil for a symmetric key

	Exportable, PlaintextBackup, Imported bool
}

// key is a key of the engine.
type key struct {
	Key
	versions  []crypto.Signer // version 1 first
	minimum   int             // min_encryption_version
	deletable bool
}

// AddKey imports an RSA key under a name into the mount "transit" and returns its path with the version, as a key
// reference has it: "transit/keys/NAME?version=1".
func (s *Server) AddKey(name string, private *rsa.PrivateKey) (string, error) {
	return s.Add(Key{Name: name, Private: private})
}

// Add imports a key, or a new version of one that exists, and returns its path with the version.
func (s *Server) Add(k Key) (string, error) {
	if k.Mount == "" {
		k.Mount = "transit"
	}
	if k.Name == "" || strings.Contains(k.Name, "/") {
		return "", fmt.Errorf("add %q: the name of a key has no slash", k.Name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	id := keyID(k.Namespace, k.Mount, k.Name)
	if s.keys[id] == nil {
		s.keys[id] = &key{Key: k}
	}
	s.keys[id].versions = append(s.keys[id].versions, k.Private)
	return fmt.Sprintf("%s/keys/%s?version=%d", k.Mount, k.Name, len(s.keys[id].versions)), nil
}

// SetMinimum sets the min_encryption_version of a key in the mount "transit" of the root namespace.
func (s *Server) SetMinimum(name string, version int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.keys[keyID("", "transit", name)]
	if k == nil {
		return fmt.Errorf("set the minimum of %q: no such key", name)
	}
	k.minimum = version
	return nil
}

func keyID(namespace, mount, name string) string { return namespace + "|" + mount + "|" + name }

// read answers as Vault: status 404 without a message for an unknown key.
func (s *Server) read(c call) (map[string]any, error) {
	k := s.keys[keyID(c.namespace, c.mount, c.name)]
	if k == nil {
		return nil, s.missing(c)
	}
	return k.data()
}

// missing is the error for an unknown key: that of an unknown mount if it has no key, except "transit".
func (s *Server) missing(c call) error {
	if c.mount == "transit" {
		return &Error{http.StatusNotFound, ""}
	}
	for id := range s.keys {
		if strings.HasPrefix(id, c.namespace+"|"+c.mount+"|") {
			return &Error{http.StatusNotFound, ""}
		}
	}
	return &Error{http.StatusNotFound, fmt.Sprintf("no handler for route %q. route entry not found.", c.path)}
}

// data returns what Vault shows of a key.
func (k *key) data() (map[string]any, error) {
	versions, keyType := map[string]any{}, "aes256-gcm96"
	for i, private := range k.versions {
		created := time.Now().UTC()
		if private == nil {
			versions[strconv.Itoa(i+1)] = created.Unix()
			continue
		}
		keyType = "ecdsa-p256"
		if own, ok := private.(*rsa.PrivateKey); ok {
			keyType = "rsa-" + strconv.Itoa(own.N.BitLen())
		}
		der, err := x509.MarshalPKIXPublicKey(private.Public())
		if err != nil {
			return nil, err
		}
		text := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
		versions[strconv.Itoa(i+1)] = map[string]any{"name": keyType, "public_key": text, "certificate_chain": "", "creation_time": created.Format(time.RFC3339Nano)}
	}
	return map[string]any{
		"name": k.Name, "type": keyType, "derived": false, "deletion_allowed": k.deletable, "min_available_version": 0, "min_decryption_version": 1,
		"min_encryption_version": k.minimum, "latest_version": len(k.versions), "exportable": k.Exportable, "allow_plaintext_backup": k.PlaintextBackup,
		"supports_encryption": true, "supports_decryption": true, "supports_signing": keyType != "aes256-gcm96", "supports_derivation": false,
		"auto_rotate_period": 0, "imported_key": k.Imported, "keys": versions,
	}, nil
}

func (s *Server) list(c call) (map[string]any, error) {
	names := []string{}
	prefix := c.namespace + "|" + c.mount + "|"
	for _, id := range slices.Sorted(maps.Keys(s.keys)) {
		if name, ok := strings.CutPrefix(id, prefix); ok {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil, s.missing(c)
	}
	return map[string]any{"keys": names}, nil
}

// create creates a key. Like Vault it answers for a key that exists with success and a warning.
func (s *Server) create(c call, answer map[string]any) error {
	id := keyID(c.namespace, c.mount, c.name)
	if s.keys[id] != nil {
		answer["warnings"] = []string{"key " + c.name + " already existed"}
	} else {
		bits, err := strconv.Atoi(strings.TrimPrefix(c.text("type"), "rsa-"))
		if err != nil || !slices.Contains([]int{2048, 3072, 4096}, bits) {
			return &Error{http.StatusBadRequest, "unknown key type " + c.text("type")}
		}
		private, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			return err
		}
		k := &key{Key: Key{Name: c.name, Mount: c.mount, Namespace: c.namespace}, versions: []crypto.Signer{private}}
		k.Exportable, k.PlaintextBackup = string(c.body["exportable"]) == "true", string(c.body["allow_plaintext_backup"]) == "true"
		s.keys[id] = k
	}
	data, err := s.keys[id].data()
	answer["data"] = data
	return err
}

// text returns a string in the body of a request.
func (c call) text(name string) string {
	var text string
	_ = json.Unmarshal(c.body[name], &text) // another type is no text
	return text
}

func (s *Server) sign(c call) (map[string]any, error) {
	k := s.keys[keyID(c.namespace, c.mount, c.name)]
	if k == nil {
		return nil, refusals()[NoKey]
	}
	number := 0
	if text := c.body["key_version"]; text != nil {
		if err := json.Unmarshal(text, &number); err != nil || number < 0 {
			return nil, &Error{http.StatusBadRequest, "requested version for signing is negative"}
		}
	}
	switch {
	case number == 0: // the newest version
		number = len(k.versions)
	case number > len(k.versions):
		return nil, refusals()[NoVersion]
	case number < k.minimum:
		return nil, refusals()[Disabled]
	}
	private, ok := k.versions[number-1].(*rsa.PrivateKey)
	if !ok {
		return nil, refusals()[NoSigning]
	}
	sig, err := c.signature(private)
	if err != nil {
		return nil, err
	}
	return map[string]any{"signature": fmt.Sprintf("vault:v%d:%s", number, base64.StdEncoding.EncodeToString(sig)), "key_version": number}, nil
}

// signature signs the input of a request as its parameters say. The default of Vault is PSS over a message that it hashes.
func (c call) signature(private *rsa.PrivateKey) ([]byte, error) {
	if c.version == "" {
		c.version = "sha2-256"
	}
	hash, ok := map[string]crypto.Hash{"sha1": crypto.SHA1, "sha2-256": crypto.SHA256, "sha2-384": crypto.SHA384, "sha2-512": crypto.SHA512}[c.version]
	if !ok {
		return nil, &Error{http.StatusBadRequest, fmt.Sprintf("invalid hash algorithm %q", c.version)}
	}
	input, err := base64.StdEncoding.DecodeString(c.text("input"))
	if err != nil {
		return nil, &Error{http.StatusBadRequest, "unable to decode input as base64"}
	}
	if string(c.body["prehashed"]) != "true" {
		h := hash.New()
		h.Write(input)
		input = h.Sum(nil)
	}
	var opts crypto.SignerOpts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto, Hash: hash}
	if c.text("signature_algorithm") == "pkcs1v15" {
		opts = hash
	}
	sig, err := private.Sign(rand.Reader, input, opts)
	if err != nil { // a digest of another length
		return nil, &Error{http.StatusInternalServerError, err.Error()}
	}
	return sig, nil
}

// damageSignature returns a signature, changed as the fault says.
func (f Fault) damageSignature(text string) string {
	prefix, encoded := text[:strings.LastIndexByte(text, ':')+1], text[strings.LastIndexByte(text, ':')+1:]
	sig, _ := base64.StdEncoding.DecodeString(encoded) // which sign encoded
	switch f {
	case FlipBit:
		sig[len(sig)/2] ^= 1
	case ShortSignature:
		sig = sig[:len(sig)-1]
	case OtherVersion:
		prefix = "vault:v7:"
	case NoSignature:
		return ""
	}
	return prefix + base64.StdEncoding.EncodeToString(sig)
}
