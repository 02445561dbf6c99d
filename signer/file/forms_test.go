package file

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/youmark/pkcs8"
	"software.sslmate.com/src/go-pkcs12"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/signer"
)

// TestSamples opens the committed files, made by OpenSSL 3.0 with flags that other versions do not all have.
func TestSamples(t *testing.T) {
	for _, name := range []string{"pkcs1.pem", "pbes2-aes256.pem", "pbes2-aes128-sha512.der", "pbes2-des3-sha1.pem",
		"rfc1421.pem", "scrypt.pem", "modern.p12", "legacy-3des.p12", "legacy-rc2.p12"} {
		t.Run(name, func(t *testing.T) {
			opens(t, env(passphrase), "file:"+private(t, name), &sampleKey(t).PublicKey)
			_, err := open(t, env("wrong"), "file:"+private(t, name))
			if encrypted := name != "pkcs1.pem"; errors.Is(err, signer.ErrAuth) != encrypted {
				t.Errorf("with a wrong passphrase: %v", err)
			}
		})
	}
}

// TestOpenSSL opens what the OpenSSL of this machine writes, in every form that all its versions know.
func TestOpenSSL(t *testing.T) {
	t.Chdir(t.TempDir())
	openssl := func(args ...string) { testkit.OpenSSL(t, ".", nil, args...) }
	openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "key.pem")
	openssl("req", "-x509", "-new", "-key", "key.pem", "-subj", "/CN=sample", "-out", "cert.pem")
	openssl("pkey", "-in", "key.pem", "-pubout", "-outform", "DER", "-out", "public.der")
	pass := "pass:" + passphrase
	forms := map[string][]string{
		"pkcs8.der":     {"pkcs8", "-topk8", "-nocrypt", "-in", "key.pem", "-outform", "DER"},
		"pkcs1.der":     {"rsa", "-in", "key.pem", "-outform", "DER"},
		"aes128.pem":    {"pkcs8", "-topk8", "-v2", "aes-128-cbc", "-in", "key.pem", "-passout", pass},
		"aes192.pem":    {"pkcs8", "-topk8", "-v2", "aes-192-cbc", "-in", "key.pem", "-passout", pass},
		"aes256.der":    {"pkcs8", "-topk8", "-v2", "aes-256-cbc", "-in", "key.pem", "-passout", pass, "-outform", "DER"},
		"des3.pem":      {"pkcs8", "-topk8", "-v2", "des3", "-in", "key.pem", "-passout", pass},
		"sha1.pem":      {"pkcs8", "-topk8", "-v2prf", "hmacWithSHA1", "-in", "key.pem", "-passout", pass},
		"sha384.pem":    {"pkcs8", "-topk8", "-v2prf", "hmacWithSHA384", "-in", "key.pem", "-passout", pass},
		"old-3des.pem":  {"rsa", "-traditional", "-des3", "-in", "key.pem", "-passout", pass},
		"old-128.pem":   {"rsa", "-traditional", "-aes128", "-in", "key.pem", "-passout", pass},
		"old-192.pem":   {"rsa", "-traditional", "-aes192", "-in", "key.pem", "-passout", pass},
		"old-256.pem":   {"rsa", "-traditional", "-aes256", "-in", "key.pem", "-passout", pass},
		"scrypt.pem":    {"pkcs8", "-topk8", "-scrypt", "-in", "key.pem", "-passout", pass},
		"iter.pem":      {"pkcs8", "-topk8", "-iter", "600000", "-in", "key.pem", "-passout", pass},
		"default.p12":   {"pkcs12", "-export", "-inkey", "key.pem", "-in", "cert.pem", "-passout", pass},
		"keylength.p12": {"pkcs12", "-export", "-keypbe", "AES-256-CBC", "-certpbe", "NONE", "-inkey", "key.pem", "-in", "cert.pem", "-passout", pass},
	}
	want := testkit.Value(x509.ParsePKIXPublicKey(testkit.Value(os.ReadFile("public.der"))(t)))(t)
	forms["key.pem"] = nil
	for name, args := range forms {
		t.Run(name, func(t *testing.T) {
			if args != nil {
				openssl(append(args, "-out", name)...)
			}
			testkit.OK(t, os.Chmod(name, 0o600))
			opens(t, env(passphrase), "file:"+name, want.(*rsa.PublicKey))
		})
	}
}

// TestOldPEMPassphrase: some wrong passphrases result in valid padding; all of them are ErrAuth.
func TestOldPEMPassphrase(t *testing.T) {
	ref := "file:" + private(t, "rfc1421.pem")
	for i := range 1000 {
		if _, err := open(t, env(fmt.Sprint("wrong ", i)), ref); !errors.Is(err, signer.ErrAuth) {
			t.Fatalf("passphrase %d: %v", i, err)
		}
	}
	var warned []string
	opts := env(passphrase)
	opts.Warn = func(m string) { warned = append(warned, m) }
	opens(t, opts, ref, &sampleKey(t).PublicKey)
	if len(warned) != 1 || !strings.Contains(warned[0], "hsmsign key convert") {
		t.Errorf("warnings: %q", warned)
	}
}

// TestPEMAround: the key is found among certificates, comments and Windows line ends.
func TestPEMAround(t *testing.T) {
	key, cert := sample(t, "pkcs1.pem"), sample(t, "certificate.pem")
	for name, data := range map[string][]byte{
		"certificate first": append(bytes.Clone(cert), key...),
		"certificate last":  append(bytes.Clone(key), cert...),
		"comment":           append([]byte("Bag Attributes\n    friendlyName: vendor\n"), key...),
		"CRLF":              bytes.ReplaceAll(key, []byte("\n"), []byte("\r\n")),
	} {
		opens(t, Options{}, "file:"+write(t, name+".pem", data), &sampleKey(t).PublicKey)
	}
}

func TestRefusals(t *testing.T) {
	key := sample(t, "pkcs1.pem")
	block, _ := pem.Decode(key)
	joined := append(bytes.TrimSuffix(bytes.Clone(key), []byte("\n")), key...)
	tampered := bytes.Clone(block.Bytes)
	tampered[len(tampered)/2] ^= 1
	tests := []struct {
		name string
		data []byte
		want error
		text string // in the error
		fix  string // in the hint
	}{
		{"EC, SEC 1", sample(t, "ec-sec1.pem"), signer.ErrBadKey, "an EC key; Apple accepts RSA only", ""},
		{"EC, PKCS#8", sample(t, "ec.pem"), signer.ErrBadKey, "an EC key (P-256); Apple accepts RSA only", ""},
		{"Ed25519", sample(t, "ed25519.pem"), signer.ErrBadKey, "an Ed25519 key; Apple accepts RSA only", ""},
		{"RSA-PSS", sample(t, "rsa-pss.pem"), signer.ErrBadKey, "unknown algorithm", ""},
		{"RSA-1024", sample(t, "rsa1024.pem"), signer.ErrBadKey, "RSA of 1024 bits", ""},
		{"RSA-8704", pkcs1OfSize(t, 8704), signer.ErrBadKey, "RSA of more than 8192 bits", ""},
		{"RSA-8704 in PKCS#8", inPKCS8(t, pkcs1OfSize(t, 8704)), signer.ErrBadKey, "RSA of more than 8192 bits", ""},
		{"RSA of 8200 bits", pkcs1OfSize(t, 8200), signer.ErrBadKey, "", ""},
		{"certificate", sample(t, "certificate.pem"), signer.ErrBadKey, "this is a certificate, not", ""},
		{"certificate request", sample(t, "request.pem"), signer.ErrBadKey, "this is a certificate signing request, not", ""},
		{"public key", sample(t, "public.pem"), signer.ErrBadKey, "this is a public key, not", ""},
		{"certificate, DER", decoded(t, "certificate.pem"), signer.ErrBadKey, "this is a certificate, not", ""},
		{"certificate request, DER", decoded(t, "request.pem"), signer.ErrBadKey, "this is a certificate signing request, not", ""},
		{"public key, DER", decoded(t, "public.pem"), signer.ErrBadKey, "this is a public key, not", ""},
		{"PKCS#1 public key, DER", decoded(t, "public-pkcs1.pem"), signer.ErrBadKey, "this is a public key, not", ""},
		{"old PEM, DES", bytes.Replace(sample(t, "rfc1421.pem"), []byte("AES-128-CBC"), []byte("DES-CBC"), 1), signer.ErrBadKey, `encrypted with "DES-CBC"`, "openssl pkcs8 -topk8 -v2 aes-256-cbc -in "},
		{"old PEM, short IV", bytes.Replace(sample(t, "rfc1421.pem"), []byte("4540D32B"), nil, 1), signer.ErrBadKey, "IV", "name an RSA key"},
		{"old PEM, no DEK-Info", bytes.Replace(sample(t, "rfc1421.pem"), []byte("DEK-Info"), []byte("X"), 1), signer.ErrBadKey, `encrypted with ""`, "openssl"},
		{"PBES1", sample(t, "pbes1.pem"), signer.ErrBadKey, "only PBES2", "openssl pkcs8 -topk8 -v2 aes-256-cbc -in "},
		{"OpenSSH", sample(t, "openssh.pem"), signer.ErrBadKey, "the format of OpenSSH", "ssh-keygen"},
		{"PKCS#12 without a certificate", sample(t, "no-certificate.p12"), signer.ErrBadKey, "certificate missing", "openssl pkcs12 -in "},
		{"two keys", append(bytes.Clone(key), key...), signer.ErrAmbiguousKey, `"RSA PRIVATE KEY" in line 1, "RSA PRIVATE KEY" in line 28`, ""},
		{"two keys of different kinds", append(bytes.Clone(key), sample(t, "scrypt.pem")...), signer.ErrAmbiguousKey, `"ENCRYPTED PRIVATE KEY" in line 28`, ""},
		{"two keys run together", joined, signer.ErrBadKey, "damaged PEM", ""},
		{"cut short", key[:len(key)/2], signer.ErrBadKey, "damaged PEM", "name an RSA key"},
		{"one bit flipped", tampered, signer.ErrBadKey, "", ""},
		{"empty", nil, signer.ErrBadKey, "an empty file, not a private key in PKCS#8, PKCS#1 or PKCS#12", ""},
		{"text", []byte("hello\n"), signer.ErrBadKey, "text without a PEM block, not a private key in PKCS#8, PKCS#1 or PKCS#12", ""},
		{"JKS", []byte("\xfe\xed\xfe\xed\x00\x00\x00\x02"), signer.ErrBadKey, "a Java keystore", "keytool -importkeystore"},
		{"DER with something after it", append(bytes.Clone(block.Bytes), 0), signer.ErrBadKey, "binary data", ""},
		{"too large", bytes.Repeat([]byte("#"), maxFile+1), signer.ErrBadKey, "larger than 65536 bytes", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := open(t, env(passphrase), "file:"+write(t, "vendor.key", tt.data))
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v, want %v with %q", err, tt.want, tt.text)
			}
			if !strings.Contains(fault.Hint(err), tt.fix) {
				t.Errorf("fix %q, want %q", fault.Hint(err), tt.fix)
			}
		})
	}

	dir := t.TempDir()
	for path, want := range map[string]error{dir: signer.ErrBadKey, filepath.Join(dir, "missing"): signer.ErrKeyNotFound} {
		if _, err := open(t, Options{}, "file:"+path); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
}

func decoded(t *testing.T, name string) []byte {
	t.Helper()
	block, _ := pem.Decode(sample(t, name))
	return block.Bytes
}

// pkcs1OfSize returns an RSAPrivateKey whose numbers have a size and no meaning.
func pkcs1OfSize(t *testing.T, bits uint) []byte {
	t.Helper()
	n := new(big.Int).SetBit(big.NewInt(1), int(bits)-1, 1)    // #nosec G115 -- a few thousand
	half := new(big.Int).SetBit(big.NewInt(1), int(bits)/2, 1) // #nosec G115 -- the same
	return testkit.Value(asn1.Marshal(struct {
		Version                  int
		N, E, D, P, Q, DP, DQ, I *big.Int
	}{0, n, big.NewInt(65537), n, half, half, half, half, half}))(t)
}

func inPKCS8(t *testing.T, pkcs1 []byte) []byte {
	t.Helper()
	return testkit.Value(asn1.Marshal(struct {
		Version   int
		Algorithm pkix.AlgorithmIdentifier
		Key       []byte
	}{Algorithm: pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, Parameters: asn1.NullRawValue}, Key: pkcs1}))(t)
}

// TestModulusSize checks sizes for which no key can be generated quickly.
func TestModulusSize(t *testing.T) {
	for bits, want := range map[uint]error{2047: signer.ErrBadKey, 2048: nil, 8192: nil, 8193: signer.ErrBadKey} {
		key := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), bits-1)}}
		if _, err := asRSA(key); !errors.Is(err, want) {
			t.Errorf("%d bits: %v, want %v", bits, err, want)
		}
	}
}

// TestOtherEncoder reads the output of a second implementation of PBES2.
func TestOtherEncoder(t *testing.T) {
	private := testkit.GoldenKey(t)
	for name, opts := range map[string]*pkcs8.Opts{
		"PBKDF2": pkcs8.DefaultOpts,
		"scrypt": {Cipher: pkcs8.TripleDESCBC, KDFOpts: pkcs8.ScryptOpts{SaltSize: 16, CostParameter: 1 << 10, BlockSize: 8, ParallelizationParameter: 2}},
	} {
		der := testkit.Value(pkcs8.MarshalPrivateKey(private, []byte(passphrase), opts))(t)
		opens(t, env(passphrase), "file:"+write(t, name+".der", der), &private.PublicKey)
	}
}

// TestHostilePKCS8: a file whose key derivation takes hours is refused before the prompt for a passphrase.
func TestHostilePKCS8(t *testing.T) {
	var (
		pbkdf2OID = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
		scryptOID = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11591, 4, 11}
		salt      = []byte("saltsalt")
	)
	tests := []struct {
		name   string
		kdf    asn1.ObjectIdentifier
		params any
		want   error
	}{
		{"maximum PBKDF2", pbkdf2OID, pbkdf2Params{Salt: salt, Iterations: maxIterations}, signer.ErrAuth},
		{"too much PBKDF2", pbkdf2OID, pbkdf2Params{Salt: salt, Iterations: maxIterations + 1}, signer.ErrBadKey},
		{"no PBKDF2", pbkdf2OID, pbkdf2Params{Salt: salt}, signer.ErrBadKey},
		{"negative PBKDF2", pbkdf2OID, pbkdf2Params{Salt: salt, Iterations: -1}, signer.ErrBadKey},
		{"maximum scrypt", scryptOID, scryptParams{Salt: salt, N: 1 << 18, R: 8, P: 1}, signer.ErrAuth},
		{"too much scrypt memory", scryptOID, scryptParams{Salt: salt, N: 1 << 19, R: 8, P: 1}, signer.ErrBadKey},
		{"too much scrypt work", scryptOID, scryptParams{Salt: salt, N: 1 << 17, R: 8, P: 3}, signer.ErrBadKey},
		{"scrypt that overflows", scryptOID, scryptParams{Salt: salt, N: 1 << 62, R: 8, P: 8}, signer.ErrBadKey},
		{"scrypt that overflows three times", scryptOID, scryptParams{Salt: salt, N: 1 << 21, R: 1 << 21, P: 1 << 21}, signer.ErrBadKey},
		{"negative scrypt", scryptOID, scryptParams{Salt: salt, N: 1 << 14, R: -8, P: -1}, signer.ErrBadKey},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := write(t, "x.der", pbes2File(t, tt.kdf, tt.params, aes256, make([]byte, 16), make([]byte, 64)))
			// There is no passphrase: ErrAuth means that the limits were passed.
			if _, err := open(t, Options{}, "file:"+path); !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
		})
	}
	for name, tt := range map[string]struct {
		cipher   asn1.ObjectIdentifier
		iv, data int
	}{
		"IV": {aes256, 15, 64}, "no IV": {aes256, 0, 64}, "ragged": {aes256, 16, 63}, "empty": {aes256, 16, 0},
		"DES": {asn1.ObjectIdentifier{1, 3, 14, 3, 2, 7}, 8, 64}, "unknown cipher": {asn1.ObjectIdentifier{1, 2, 3}, 16, 64},
	} {
		path := write(t, "x.der", pbes2File(t, pbkdf2OID, pbkdf2Params{Salt: salt, Iterations: 1}, tt.cipher, make([]byte, tt.iv), make([]byte, tt.data)))
		if _, err := open(t, env(passphrase), "file:"+path); !errors.Is(err, signer.ErrBadKey) {
			t.Errorf("%s: error %v, want ErrBadKey", name, err)
		}
	}
}

var aes256 = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}

// pbes2File returns an EncryptedPrivateKeyInfo.
func pbes2File(t *testing.T, kdf asn1.ObjectIdentifier, params any, cipher asn1.ObjectIdentifier, iv, data []byte) []byte {
	t.Helper()
	algorithm := func(oid asn1.ObjectIdentifier, params any) pkix.AlgorithmIdentifier {
		der := testkit.Value(asn1.Marshal(params))(t)
		return pkix.AlgorithmIdentifier{Algorithm: oid, Parameters: asn1.RawValue{FullBytes: der}}
	}
	return testkit.Value(asn1.Marshal(encryptedInfo{
		Algorithm: algorithm(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}, pbes2Params{
			KDF:    algorithm(kdf, params),
			Cipher: algorithm(cipher, iv),
		}),
		Data: data,
	}))(t)
}

// TestHostilePKCS12: the limit applies to every iteration count in a PKCS#12 file.
func TestHostilePKCS12(t *testing.T) {
	cert := testkit.Value(x509.ParseCertificate(decoded(t, "certificate.pem")))(t)
	for name, encoder := range map[string]*pkcs12.Encoder{"2023": pkcs12.Modern2023, "2026": pkcs12.Modern2026, "3DES": pkcs12.LegacyDES, "RC2": pkcs12.LegacyRC2} {
		t.Run(name, func(t *testing.T) {
			good := testkit.Value(encoder.WithIterations(100_000).Encode(sampleKey(t), cert, nil, passphrase))(t)
			opens(t, env(passphrase), "file:"+write(t, "x.p12", good), &sampleKey(t).PublicKey)
			places := 0
			for i := range good {
				rest, ok := bytes.CutPrefix(good[i:], []byte{2, 3, 0x01, 0x86, 0xa0}) // INTEGER 100000
				if !ok {
					continue
				}
				places++
				hostile := append(append(bytes.Clone(good[:i]), 2, 3, 0x4c, 0x4b, 0x41), rest...) // INTEGER 5000001
				_, err := open(t, Options{}, "file:"+write(t, "x.p12", hostile))
				if !errors.Is(err, signer.ErrBadKey) || !strings.Contains(err.Error(), "5000001 iterations") {
					t.Errorf("at byte %d: %v", i, err)
				}
			}
			if places != 3 { // MacData, the certificates' bag, the key's bag
				t.Errorf("%d places, want 3", places)
			}
		})
	}
}

// FuzzParse: any content is refused with a family, or it is a key of an accepted size whose signature verifies. There is
// no passphrase, so nothing is derived from one.
func FuzzParse(f *testing.F) {
	testkit.Seeds(f, "FuzzParse", 9)
	for _, name := range []string{"pkcs1.pem", "scrypt.pem", "legacy-3des.p12", "ec.pem"} {
		f.Add(sample(f, name))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var s session
		block, err := s.keyBlock(data)
		var key *rsa.PrivateKey
		if err == nil {
			key, err = s.parse(t.Context(), block)
		}
		if err != nil {
			if !errors.Is(err, signer.ErrBadKey) && !errors.Is(err, signer.ErrAmbiguousKey) && !errors.Is(err, signer.ErrAuth) {
				t.Fatalf("%v has no family", err)
			}
			return
		}
		if bits := key.N.BitLen(); bits < minBits || bits > maxBits {
			t.Fatalf("RSA of %d bits", bits)
		}
		digest := make([]byte, 32)
		sig, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest)
		if err == nil {
			err = rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, digest, sig)
		}
		if err != nil {
			t.Errorf("a key that does not sign is accepted: %v", err)
		}
	})
}
