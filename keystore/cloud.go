//go:build !nocloud

package keystore

import (
	"hsmsign/signer"
	"hsmsign/signer/awskms"
	"hsmsign/signer/azurekms"
	"hsmsign/signer/gcpkms"
)

// withCloud is whether this build has the cloud backends. Their SDKs are half of the program and of its start; a host
// that signs with an HSM needs none of them.
const withCloud = true

func cloudBackends(warn func(string)) map[string]signer.Backend {
	return map[string]signer.Backend{
		"awskms":   awskms.Backend(awskms.Options{Warn: warn}),
		"gcpkms":   gcpkms.Backend(gcpkms.Options{Warn: warn}),
		"azurekms": azurekms.Backend(azurekms.Options{}),
	}
}
