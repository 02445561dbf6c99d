//go:build !nocloud

package main

import (
	"crypto"

	"hsmsign/signer"
	"hsmsign/signer/awskms"
	"hsmsign/signer/gcpkms"
)

// withCloud is whether this build can sign with a cloud's KMS. A host that signs with an HSM needs none of the SDKs,
// which are half of the program and of its start: the tag nocloud leaves them out.
const withCloud = true

func cloudBackends(warn func(string), pub crypto.PublicKey) map[string]signer.Backend {
	return map[string]signer.Backend{
		"awskms": awskms.Backend(awskms.Options{Warn: warn, PublicKey: pub}),
		"gcpkms": gcpkms.Backend(gcpkms.Options{Warn: warn, PublicKey: pub}),
	}
}
