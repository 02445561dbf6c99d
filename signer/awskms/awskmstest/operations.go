package awskmstest

import (
	"cmp"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha256" // the hashes of the signing algorithms
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// parameters are the parameters of all operations.
type parameters struct {
	KeyID            string `json:"KeyId"`
	Message          []byte
	MessageType      string
	SigningAlgorithm string
	KeySpec          string
	KeyUsage         string
	Description      string
	AliasName        string
	TargetKeyID      string `json:"TargetKeyId"`
	Limit            int
	Marker           string
}

// perform executes a request and returns the members of the answer.
func (s *Server) perform(c call) (map[string]any, error) {
	var p parameters
	if err := json.Unmarshal(c.body, &p); err != nil {
		return nil, fail("SerializationException", "%v", err)
	}
	switch c.operation {
	case "GetPublicKey":
		return s.getPublicKey(p, c.region)
	case "Sign":
		return s.sign(p, c.region)
	case "DescribeKey":
		k, err := s.find(p.KeyID, c.region)
		if err != nil {
			return nil, err
		}
		return map[string]any{"KeyMetadata": k.metadata()}, nil
	case "CreateKey":
		return s.createKey(p, c.region)
	case "CreateAlias":
		return s.createAlias(p, c.region)
	case "ListKeys":
		return s.listKeys(p, c.region)
	case "ListAliases":
		return s.listAliases(p, c.region)
	}
	return nil, fail("UnknownOperationException", "")
}

func (s *Server) getPublicKey(p parameters, region string) (map[string]any, error) {
	k, err := s.find(p.KeyID, region)
	if err != nil {
		return nil, err
	}
	if k.Private == nil {
		return nil, fail("UnsupportedOperationException", "%s key spec is not supported for GetPublicKey", k.spec())
	}
	if err := k.usable(); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(k.Private.Public())
	if err != nil {
		return nil, err
	}
	answer := map[string]any{"KeyId": k.arn, "PublicKey": der, "KeySpec": k.spec(), "CustomerMasterKeySpec": k.spec(), "KeyUsage": k.Usage}
	if k.Usage == SignVerify {
		answer["SigningAlgorithms"] = k.algorithms()
	} else {
		answer["EncryptionAlgorithms"] = []string{"RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"}
	}
	return answer, nil
}

func (s *Server) sign(p parameters, region string) (map[string]any, error) {
	k, err := s.find(p.KeyID, region)
	if err != nil {
		return nil, err
	}
	if err := k.usable(); err != nil {
		return nil, err
	}
	if k.Usage != SignVerify {
		return nil, fail("InvalidKeyUsageException", "%s key usage is %s which is not valid for Sign.", k.arn, k.Usage)
	}
	scheme, known := algorithms()[p.SigningAlgorithm]
	if !known {
		return nil, fail("ValidationException", "1 validation error detected: Value '%s' at 'signingAlgorithm' failed to satisfy constraint", p.SigningAlgorithm)
	}
	private, isRSA := k.Private.(*rsa.PrivateKey)
	if !isRSA {
		return nil, fail("InvalidKeyUsageException", "Algorithm %s is incompatible with key spec %s.", p.SigningAlgorithm, k.spec())
	}
	digest := p.Message
	switch {
	case len(p.Message) < 1 || len(p.Message) > 4096:
		return nil, fail("ValidationException", "1 validation error detected: Value at 'message' failed to satisfy constraint: Member must have length between 1 and 4096")
	case p.MessageType == "DIGEST" && len(digest) != scheme.hash.Size():
		return nil, fail("ValidationException", "Digest is invalid length for algorithm %s.", p.SigningAlgorithm)
	case p.MessageType == "" || p.MessageType == "RAW":
		h := scheme.hash.New()
		h.Write(p.Message)
		digest = h.Sum(nil)
	case p.MessageType != "DIGEST":
		return nil, fail("ValidationException", "1 validation error detected: Value '%s' at 'messageType' failed to satisfy constraint", p.MessageType)
	}
	var opts crypto.SignerOpts = scheme.hash
	if scheme.pss {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: scheme.hash}
	}
	sig, err := private.Sign(rand.Reader, digest, opts)
	if err != nil {
		return nil, err
	}
	return map[string]any{"KeyId": k.arn, "Signature": sig, "SigningAlgorithm": p.SigningAlgorithm}, nil
}

// metadata returns the KeyMetadata.
func (k *Key) metadata() map[string]any {
	part := strings.Split(k.arn, ":")
	m := map[string]any{
		"AWSAccountId": part[4], "Arn": k.arn, "KeyId": k.ID, "Enabled": k.State == StateEnabled, "KeyState": k.State, "KeyUsage": k.Usage,
		"KeySpec": k.spec(), "CustomerMasterKeySpec": k.spec(), "Origin": "AWS_KMS", "Description": k.Description, "KeyManager": "CUSTOMER",
		"MultiRegion": len(k.Regions) > 1, "CreationDate": time.Now().Unix(),
	}
	if k.Usage == SignVerify {
		m["SigningAlgorithms"] = k.algorithms()
	}
	return m
}

func (s *Server) createKey(p parameters, region string) (map[string]any, error) {
	bits, err := strconv.Atoi(strings.TrimPrefix(p.KeySpec, "RSA_"))
	if err != nil || !slices.Contains([]int{2048, 3072, 4096}, bits) || p.KeyUsage != SignVerify {
		return nil, fail("UnsupportedOperationException", "this double creates RSA signing keys only")
	}
	private, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return nil, err
	}
	arn, err := s.Add(Key{Private: private, Regions: []string{region}, Description: p.Description})
	if err != nil {
		return nil, err
	}
	k, err := s.find(arn, region)
	if err != nil {
		return nil, err
	}
	return map[string]any{"KeyMetadata": k.metadata()}, nil
}

func (s *Server) createAlias(p parameters, region string) (map[string]any, error) {
	if !strings.HasPrefix(p.AliasName, "alias/") || strings.HasPrefix(p.AliasName, "alias/aws/") || len(p.AliasName) > 256 {
		return nil, fail("InvalidAliasNameException", "Alias must start with the prefix \"alias/\", and \"alias/aws/\" is reserved")
	}
	k, err := s.find(p.TargetKeyID, region)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	alias := s.arn(region, p.AliasName)
	if _, taken := s.aliases[alias]; taken {
		return nil, fail("AlreadyExistsException", "An alias with the name %s already exists", alias)
	}
	s.aliases[alias] = k.arn
	return nil, nil // CreateAlias answers with an empty body
}

func (s *Server) listKeys(p parameters, region string) (map[string]any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var arns []string
	for arn := range s.keys {
		if strings.Contains(arn, ":"+region+":") {
			arns = append(arns, arn)
		}
	}
	slices.Sort(arns)
	return page(p, "Keys", arns, func(arn string) map[string]any {
		return map[string]any{"KeyArn": arn, "KeyId": s.keys[arn].ID}
	})
}

func (s *Server) listAliases(p parameters, region string) (map[string]any, error) {
	var only Key
	if p.KeyID != "" {
		var err error
		if only, err = s.find(p.KeyID, region); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var arns []string
	for _, arn := range slices.Sorted(maps.Keys(s.aliases)) {
		if strings.Contains(arn, ":"+region+":") && (only.arn == "" || s.aliases[arn] == only.arn) {
			arns = append(arns, arn)
		}
	}
	return page(p, "Aliases", arns, func(arn string) map[string]any {
		target := s.aliases[arn]
		return map[string]any{"AliasArn": arn, "AliasName": arn[strings.LastIndexByte(arn, ':')+1:], "TargetKeyId": s.keys[target].ID}
	})
}

// page returns one page of a listing. Its marker is the number of entries before it.
func page(p parameters, member string, arns []string, entry func(arn string) map[string]any) (map[string]any, error) {
	from := 0
	if p.Marker != "" {
		n, err := strconv.Atoi(p.Marker)
		if err != nil || n < 0 || n > len(arns) {
			return nil, fail("InvalidMarkerException", "the marker is not valid")
		}
		from = n
	}
	to := min(len(arns), from+cmp.Or(max(p.Limit, 0), 50))
	entries := []map[string]any{}
	for _, arn := range arns[from:to] {
		entries = append(entries, entry(arn))
	}
	answer := map[string]any{member: entries, "Truncated": to < len(arns)}
	if to < len(arns) {
		answer["NextMarker"] = strconv.Itoa(to)
	}
	return answer, nil
}
