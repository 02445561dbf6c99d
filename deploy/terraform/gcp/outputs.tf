output "key_reference" {
  description = "What hsmsign takes as --key. Terraform makes version 1."
  value       = "gcpkms://${google_kms_crypto_key.vendor.id}/cryptoKeyVersions/1?require-hsm=yes"
}

output "signer" {
  description = "The identity that may sign."
  value       = local.signer
}
