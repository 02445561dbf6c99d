# What administrators need for hsmsign key generate, key list and key show. It allows neither signing, nor export, nor deletion.

path "transit/keys" {
  capabilities = ["list"]
}

# required_parameters would apply to reading as well. Without a parameter a key is neither exportable nor RSA.
path "transit/keys/+" {
  capabilities = ["create", "read", "update"]
  allowed_parameters = {
    "type"                   = ["rsa-2048", "rsa-3072", "rsa-4096"]
    "exportable"             = [false]
    "allow_plaintext_backup" = [false]
    "derived"                = [false]
  }
}

path "auth/token/lookup-self" {
  capabilities = ["read"]
}
