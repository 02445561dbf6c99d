//go:build !nocloud

package main

import (
	"hsmsign/signer"
	"hsmsign/signer/awskms"
	"hsmsign/signer/gcpkms"
)

// withCloud is whether this build can sign with a cloud's KMS. A host that signs with an HSM needs none of the SDKs,
// which are half of the program and of its start: the tag nocloud leaves them out.
const withCloud = true

func cloudBackends(warn func(string)) map[string]signer.Backend {
	return map[string]signer.Backend{
		"awskms": awskms.Backend(awskms.Options{Warn: warn}),
		"gcpkms": gcpkms.Backend(gcpkms.Options{Warn: warn}),
	}
}
