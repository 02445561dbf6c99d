package vault

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"strconv"

	"hsmsign/fault"
	"hsmsign/signer"
)

// maxListed is the most keys of an engine, and the most versions, that are listed.
const maxListed = 1000

// List describes the versions of the asymmetric keys that the reference matches.
func (s *session) List(ctx context.Context) ([]signer.KeyInfo, error) {
	if s.name != "" {
		k, err := s.readKey(ctx)
		if err != nil {
			return nil, err
		}
		infos := s.infos(s.name, k)
		if len(infos) == 0 {
			_, err := k.usable(max(s.version, 1))
			return nil, err
		}
		return infos, nil
	}
	names, err := s.names(ctx)
	if err != nil {
		return nil, err
	}
	var infos []signer.KeyInfo
	for _, name := range names {
		k, err := s.readKeyAt(ctx, name)
		switch {
		case errors.Is(err, signer.ErrAuth):
			infos = append(infos, signer.KeyInfo{Ref: s.refOf(name, 0), Store: s.store(), Label: name}) // a key that the token may not read
		case err != nil && !notFound(err): // deleted meanwhile
			return nil, err
		default:
			infos = append(infos, s.infos(name, k)...)
		}
		if len(infos) > maxListed {
			return nil, tooMany("versions")
		}
	}
	return infos, nil
}

// names lists the keys of the engine. If there are none, Vault answers with status 404.
func (s *session) names(ctx context.Context) ([]string, error) {
	var data struct {
		Keys []string `json:"keys"`
	}
	err := s.call(ctx, request{path: "/v1/" + s.mount + "/keys", query: listQuery, decode: func(a answer) error {
		data.Keys = nil
		return dataInto(&data)(a)
	}})
	switch {
	case errors.Is(err, errNothing):
		return nil, nil
	case err != nil:
		return nil, err
	case len(data.Keys) > maxListed:
		return nil, tooMany("keys")
	}
	for _, name := range data.Keys {
		if !nameForm().MatchString(name) { // it becomes part of a URL
			return nil, fmt.Errorf("%w: %q is not the name of a key", errDamaged, fault.Clip(name, maxText))
		}
	}
	return data.Keys, nil
}

func tooMany(what string) error {
	return fault.Errorf("%w: more than %d %s", signer.ErrUnsupported, maxListed, what).Fix("name the key in the reference")
}

func (s *session) store() string { return "Vault " + s.host + " " + s.mount }

// refOf returns the reference of a version; of the key itself if it is 0.
func (s *session) refOf(name string, version int) string {
	ref := s.ref.Without("version")
	if version > 0 {
		ref = ref.With("version", strconv.Itoa(version))
	}
	ref.Path = "//" + s.host + "/" + s.mount + "/keys/" + name
	return ref.String()
}

// infos describes the versions of a key that the reference matches; nothing of a symmetric key.
func (s *session) infos(name string, k keyData) []signer.KeyInfo {
	var infos []signer.KeyInfo
	for _, version := range k.versions() {
		public, err := k.public(version)
		if s.version != 0 && version != s.version || err != nil && bitsOf(k.Type) == 0 {
			continue
		}
		info := signer.KeyInfo{
			Ref: s.refOf(name, version), Store: s.store(), Label: name, ID: strconv.Itoa(version), Bits: bitsOf(k.Type), Properties: k.properties(),
		}
		switch public.(type) {
		case *rsa.PublicKey:
			info.Algorithm, info.Public = "RSA", public
		case *ecdsa.PublicKey:
			info.Algorithm = "EC"
		case ed25519.PublicKey:
			info.Algorithm = "Ed25519"
		}
		infos = append(infos, info)
	}
	return infos
}

// properties returns the protection of a key, with Vault's names.
func (k *keyData) properties() []signer.Property {
	yesNo := map[bool]string{true: "yes", false: "no"}
	return []signer.Property{
		{Name: "type", Value: k.Type},
		{Name: "exportable", Value: yesNo[k.Exportable], Want: "no"},
		{Name: "allow_plaintext_backup", Value: yesNo[k.PlaintextBackup], Want: "no"},
		{Name: "imported_key", Value: yesNo[k.Imported], Want: "no"},
		{Name: "derived", Value: yesNo[k.Derived], Want: "no"},
		{Name: "deletion_allowed", Value: yesNo[k.DeletionAllowed], Want: "no"},
		{Name: "min_encryption_version", Value: strconv.Itoa(k.MinEncryptionVersion)},
		{Name: "latest_version", Value: strconv.Itoa(k.LatestVersion)},
	}
}
