output "reference" {
  description = "The key reference for hsmsign --key."
  value       = "azurekms://${var.vault}.vault.azure.net/keys/${azurerm_key_vault_key.vendor.name}/${azurerm_key_vault_key.vendor.version}"
}

output "client_id" {
  description = "Client id of the created identity, for the annotation of the service account."
  value       = one(azurerm_user_assigned_identity.hsmsign[*].client_id)
}
