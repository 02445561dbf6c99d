# What hsmsign needs to sign with one key in the transit engine. "transit" is the mount, "mdm-vendor" the key.

path "transit/keys/mdm-vendor" {
  capabilities = ["read"]
}

# The hash is a part of the path: this allows SHA-256 only. The parameters allow PKCS #1 v1.5 over a digest only. The list of
# versions is empty, which allows any: Vault does not find a number of a request in a list. min_encryption_version of the
# key limits its versions.
path "transit/sign/mdm-vendor/sha2-256" {
  capabilities        = ["update"]
  required_parameters = ["input", "prehashed", "signature_algorithm", "key_version"]
  allowed_parameters = {
    "input"               = []
    "prehashed"           = [true]
    "signature_algorithm" = ["pkcs1v15"]
    "key_version"         = []
  }
}

# The default policy has these two. They are here for tokens without it.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}
