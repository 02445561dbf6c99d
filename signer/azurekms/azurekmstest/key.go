package azurekmstest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha256" // the hashes of the algorithms
	_ "crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Key is a version of a key, for Add.
type Key struct {
	Name    string
	Version string        // 32 hex digits; "": a new one
	Private crypto.Signer // *rsa.PrivateKey or *ecdsa.PrivateKey; nil for a symmetric key
	HSM     bool
	Ops     []string // key_ops; nil: sign and verify

	Disabled, Exportable bool
	NotBefore, Expires   time.Time // zero: none
}

// AddKey imports an RSA key under a name and returns its path, as a key reference has it: "keys/NAME/VERSION".
func (s *Server) AddKey(name string, private *rsa.PrivateKey) (string, error) {
	return s.Add(Key{Name: name, Private: private})
}

// Add imports a version of a key, which becomes the newest one, and returns its path.
func (s *Server) Add(k Key) (string, error) {
	if k.Name == "" || strings.Trim(strings.ToLower(k.Name), "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return "", fmt.Errorf("add %q: the name of a key has letters, digits and \"-\"", k.Name)
	}
	if k.Version == "" {
		k.Version = hexID()
	}
	if k.Ops == nil {
		k.Ops = []string{"sign", "verify"}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	id := strings.ToLower(k.Name)
	s.keys[id] = append(s.keys[id], &k)
	return "keys/" + k.Name + "/" + k.Version, nil
}

// Change changes the version of a key.
func (s *Server) Change(path string, change func(*Key)) error {
	parts := strings.Split(path, "/")
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(parts) == 3 {
		if k, err := s.find(parts[1], parts[2]); err == nil {
			change(k)
			return nil
		}
	}
	return fmt.Errorf("change %q: no such key", path)
}

// find returns a version; the newest one without a version.
func (s *Server) find(name, version string) (*Key, error) {
	all := s.keys[strings.ToLower(name)]
	for i, k := range slices.Backward(all) {
		if k.Version == version || version == "" && i == len(all)-1 {
			return k, nil
		}
	}
	return nil, &Error{http.StatusNotFound, "KeyNotFound", "", fmt.Sprintf("A key with (name/id) %s/%s was not found in this key vault.", name, version)}
}

// perform executes a request and returns the answer.
func (s *Server) perform(c call) (map[string]any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch c.operation {
	case "ListKeys":
		var ids []string
		for _, name := range slices.Sorted(maps.Keys(s.keys)) {
			ids = append(ids, s.keys[name][0].Name)
		}
		return s.page(c, "keys?", ids)
	case "ListVersions":
		var ids []string
		for _, k := range s.keys[strings.ToLower(c.name)] {
			ids = append(ids, k.Name+"/"+k.Version)
		}
		return s.page(c, "keys/"+c.name+"/versions?", ids)
	case "CreateKey":
		return s.create(c)
	}
	k, err := s.find(c.name, c.version)
	switch {
	case err != nil:
		return nil, err
	case c.operation == "GetKey":
		return s.bundle(k), nil
	}
	return s.sign(c, k)
}

func (s *Server) id(k *Key) string {
	return "https://" + s.Address() + "/keys/" + k.Name + "/" + k.Version
}

// bundle returns what the service shows of a version.
func (s *Server) bundle(k *Key) map[string]any {
	encode := base64.RawURLEncoding.EncodeToString
	jwk := map[string]any{"kid": s.id(k), "kty": "oct-HSM", "key_ops": k.Ops}
	suffix := map[bool]string{true: "-HSM"}[k.HSM]
	switch private := k.Private.(type) {
	case *rsa.PrivateKey:
		jwk["kty"], jwk["n"], jwk["e"] = "RSA"+suffix, encode(private.N.Bytes()), encode(big.NewInt(int64(private.E)).Bytes())
	case *ecdsa.PrivateKey:
		point, _ := private.PublicKey.Bytes() // of a valid key; 0x04, x, y
		size := (len(point) - 1) / 2
		jwk["kty"], jwk["crv"], jwk["x"], jwk["y"] = "EC"+suffix, "P-256", encode(point[1:1+size]), encode(point[1+size:])
	}
	attributes := map[string]any{"enabled": !k.Disabled, "exportable": k.Exportable, "created": time.Now().Unix(), "recoveryLevel": "Recoverable", "recoverableDays": 90}
	if k.HSM {
		attributes["hsmPlatform"] = "2"
	}
	for name, at := range map[string]time.Time{"nbf": k.NotBefore, "exp": k.Expires} {
		if !at.IsZero() {
			attributes[name] = at.Unix()
		}
	}
	return map[string]any{"key": jwk, "attributes": attributes}
}

// page returns one page of a listing. Its token is the number of entries before it.
func (s *Server) page(c call, path string, ids []string) (map[string]any, error) {
	from := 0
	if c.skip != "" {
		n, err := strconv.Atoi(c.skip)
		if err != nil || n < 0 || n > len(ids) {
			return nil, &Error{http.StatusBadRequest, "BadParameter", "", "the skip token is not valid"}
		}
		from = n
	}
	to := min(len(ids), from+s.config.PageSize)
	entries := []map[string]any{}
	for _, id := range ids[from:to] {
		entries = append(entries, map[string]any{"kid": "https://" + s.Address() + "/keys/" + id, "attributes": map[string]any{"enabled": true}})
	}
	answer := map[string]any{"value": entries, "nextLink": nil}
	if to < len(ids) {
		answer["nextLink"] = fmt.Sprintf("https://%s/%sapi-version=7.4&$skiptoken=%d", s.Address(), path, to)
	}
	return answer, nil
}

// create creates a version of a key, as the service does also for a key that exists.
func (s *Server) create(c call) (map[string]any, error) {
	var p struct {
		Kty        string          `json:"kty"`
		KeySize    int             `json:"key_size"`
		KeyOps     []string        `json:"key_ops"`
		Attributes map[string]bool `json:"attributes"`
	}
	if err := json.Unmarshal(c.body, &p); err != nil || p.Kty != "RSA" && p.Kty != "RSA-HSM" || !slices.Contains([]int{2048, 3072, 4096}, p.KeySize) {
		return nil, &Error{http.StatusBadRequest, "BadParameter", "", "this double creates RSA keys only"}
	}
	private, err := rsa.GenerateKey(rand.Reader, p.KeySize)
	if err != nil {
		return nil, err
	}
	k := &Key{Name: c.name, Version: hexID(), Private: private, HSM: p.Kty == "RSA-HSM", Ops: p.KeyOps, Exportable: p.Attributes["exportable"]}
	id := strings.ToLower(c.name)
	s.keys[id] = append(s.keys[id], k)
	return s.bundle(k), nil
}

func (s *Server) sign(c call, k *Key) (map[string]any, error) {
	var p struct{ Alg, Value string }
	hash, ok := crypto.Hash(0), false
	if err := json.Unmarshal(c.body, &p); err == nil {
		hash, ok = map[string]crypto.Hash{"RS256": crypto.SHA256, "RS384": crypto.SHA384, "RS512": crypto.SHA512}[p.Alg]
	}
	digest, err := base64.RawURLEncoding.DecodeString(p.Value)
	private, isRSA := k.Private.(*rsa.PrivateKey)
	now := time.Now()
	switch {
	case k.Disabled, !k.Expires.IsZero() && now.After(k.Expires), now.Before(k.NotBefore):
		return nil, refusals()[Disabled]
	case !isRSA || !slices.Contains(k.Ops, "sign"):
		return nil, refusals()[BadParameter]
	case !ok || err != nil || len(digest) != hash.Size():
		return nil, &Error{http.StatusBadRequest, "BadParameter", "", "the algorithm or the length of the value is not valid"}
	}
	sig, err := rsa.SignPKCS1v15(nil, private, hash, digest)
	if err != nil {
		return nil, err
	}
	return map[string]any{"kid": s.id(k), "value": base64.RawURLEncoding.EncodeToString(sig)}, nil
}
