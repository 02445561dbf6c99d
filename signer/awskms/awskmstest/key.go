package awskmstest

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The states of a key (KeyState) that the double knows.
const (
	StateEnabled         = "Enabled"
	StateDisabled        = "Disabled"
	StatePendingDeletion = "PendingDeletion"
	StatePendingImport   = "PendingImport"
)

// The usages of a key.
const (
	SignVerify     = "SIGN_VERIFY"
	EncryptDecrypt = "ENCRYPT_DECRYPT"
)

// Key is a key for Add. The zero value is a symmetric key without an alias.
type Key struct {
	Name    string        // its alias, "alias/NAME"; "": no alias
	Private crypto.Signer // *rsa.PrivateKey or *ecdsa.PrivateKey; nil for a symmetric key
	ID      string        // "": a new one
	Regions []string      // nil: that of the server. With several it is a multi-Region key
	State   string        // "": StateEnabled
	Usage   string        // "": SignVerify, or EncryptDecrypt for a symmetric key

	Description string

	arn string // in one region
}

// AddKey imports an enabled RSA signing key into the server's region under a name, which is an alias ("alias/NAME"), or
// "" for no alias. It returns the key's ARN.
func (s *Server) AddKey(name string, private *rsa.PrivateKey) (arn string, err error) {
	return s.Add(Key{Name: name, Private: private})
}

// Add imports a key and returns its ARN in the first of its regions. An alias that exists then names the new key, as
// after UpdateAlias.
func (s *Server) Add(k Key) (arn string, err error) {
	if k.Name != "" && (!strings.HasPrefix(k.Name, "alias/") || len(k.Name) > 256) {
		return "", fmt.Errorf("add %q: the name of a key is its alias, alias/NAME", k.Name)
	}
	if k.Regions == nil {
		k.Regions = []string{s.config.Region}
	}
	if k.State == "" {
		k.State = StateEnabled
	}
	if k.Usage == "" {
		k.Usage = SignVerify
		if k.Private == nil {
			k.Usage = EncryptDecrypt
		}
	}
	if k.ID == "" {
		k.ID = newID(len(k.Regions) > 1)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, region := range k.Regions {
		replica := k
		replica.arn = s.arn(region, "key/"+k.ID)
		s.keys[replica.arn] = &replica
		if k.Name != "" {
			s.aliases[s.arn(region, k.Name)] = replica.arn
		}
	}
	return s.arn(k.Regions[0], "key/"+k.ID), nil
}

// SetState changes the state of the key with this ARN.
func (s *Server) SetState(arn, state string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, ok := s.keys[arn]
	if !ok {
		return fmt.Errorf("set the state of %q: no such key", arn)
	}
	changed := *k
	changed.State = state
	s.keys[arn] = &changed
	return nil
}

func (s *Server) arn(region, resource string) string {
	return "arn:aws:kms:" + region + ":" + s.config.Account + ":" + resource
}

// newID returns a random key id in the form of KMS.
func newID(multiRegion bool) string {
	id := random()
	if multiRegion {
		return "mrk-" + id
	}
	return strings.Join([]string{id[:8], id[8:12], id[12:16], id[16:20], id[20:]}, "-")
}

// find returns a key as KMS finds it: by id, ARN, alias or the ARN of an alias, in the region of the request.
func (s *Server) find(name, region string) (Key, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	arn := name
	switch {
	case name == "":
		return Key{}, fail("ValidationException", "1 validation error detected: Value null at 'keyId' failed to satisfy constraint: Member must not be null")
	case strings.HasPrefix(name, "alias/"):
		arn = s.arn(region, name)
	case !strings.HasPrefix(name, "arn:"):
		arn = s.arn(region, "key/"+name)
	}
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) != 6 {
		return Key{}, fail("ValidationException", "Invalid keyId %s", name)
	}
	if parts[3] != region {
		return Key{}, fail("NotFoundException", "Invalid arn %s", parts[3])
	}
	if strings.HasPrefix(parts[5], "alias/") {
		target, ok := s.aliases[arn]
		if !ok {
			return Key{}, fail("NotFoundException", "Alias %s is not found.", arn)
		}
		arn = target
	}
	k, ok := s.keys[arn]
	if !ok {
		return Key{}, fail("NotFoundException", "Key '%s' does not exist", arn)
	}
	return *k, nil
}

// usable returns an error unless the key is enabled.
func (k *Key) usable() error {
	switch k.State {
	case StateEnabled:
		return nil
	case StateDisabled:
		return fail("DisabledException", "%s is disabled.", k.arn)
	}
	words := map[string]string{StatePendingDeletion: "pending deletion", StatePendingImport: "pending import"}
	return fail("KMSInvalidStateException", "%s is %s.", k.arn, cmp.Or(words[k.State], k.State))
}

// spec returns the KeySpec.
func (k *Key) spec() string {
	switch private := k.Private.(type) {
	case *rsa.PrivateKey:
		return fmt.Sprintf("RSA_%d", private.N.BitLen())
	case *ecdsa.PrivateKey:
		return "ECC_NIST_P" + fmt.Sprint(private.Curve.Params().BitSize)
	}
	return "SYMMETRIC_DEFAULT"
}

// algorithms returns those that the key signs with.
func (k *Key) algorithms() []string {
	switch k.Private.(type) {
	case *rsa.PrivateKey:
		return slices.Sorted(maps.Keys(algorithms()))
	case *ecdsa.PrivateKey:
		return []string{"ECDSA_SHA_256"}
	}
	return nil
}

// scheme is a signing algorithm.
type scheme struct {
	hash crypto.Hash
	pss  bool
}

func algorithms() map[string]scheme {
	return map[string]scheme{
		"RSASSA_PKCS1_V1_5_SHA_256": {crypto.SHA256, false}, "RSASSA_PSS_SHA_256": {crypto.SHA256, true},
		"RSASSA_PKCS1_V1_5_SHA_384": {crypto.SHA384, false}, "RSASSA_PSS_SHA_384": {crypto.SHA384, true},
		"RSASSA_PKCS1_V1_5_SHA_512": {crypto.SHA512, false}, "RSASSA_PSS_SHA_512": {crypto.SHA512, true},
	}
}
