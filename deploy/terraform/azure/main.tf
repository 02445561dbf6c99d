# The vendor key in Azure Key Vault, and the one identity that may sign with it.

data "azurerm_client_config" "current" {}

locals {
  role         = jsondecode(file("${path.module}/role.json"))
  principal_id = var.signer_principal_id != "" ? var.signer_principal_id : azurerm_user_assigned_identity.hsmsign[0].principal_id
}

resource "azurerm_key_vault" "mdm" {
  name                       = var.vault
  resource_group_name        = var.resource_group
  location                   = var.location
  tenant_id                  = var.tenant_id
  sku_name                   = var.key_type == "RSA-HSM" ? "premium" : "standard"
  rbac_authorization_enabled = true
  purge_protection_enabled   = true
  soft_delete_retention_days = 90
}

# Creating the key needs a role that Terraform's own identity gets on the vault.
resource "azurerm_role_assignment" "officer" {
  scope                = azurerm_key_vault.mdm.id
  role_definition_name = "Key Vault Crypto Officer"
  principal_id         = data.azurerm_client_config.current.object_id
}

# Apple certifies this very version: when it is gone, a new vendor certificate is needed. There is no rotation policy.
resource "azurerm_key_vault_key" "vendor" {
  name         = var.key
  key_vault_id = azurerm_key_vault.mdm.id
  key_type     = var.key_type
  key_size     = 2048 # the only size for which Apple issues vendor certificates
  key_opts     = ["sign", "verify"]
  depends_on   = [azurerm_role_assignment.officer]

  lifecycle {
    prevent_destroy = true
  }
}

resource "azurerm_user_assigned_identity" "hsmsign" {
  count               = var.signer_principal_id == "" ? 1 : 0
  name                = "hsmsign"
  resource_group_name = var.resource_group
  location            = var.location
}

resource "azurerm_federated_identity_credential" "pods" {
  count               = var.signer_principal_id == "" && var.aks_oidc_issuer != "" ? 1 : 0
  name                = "hsmsign-pods"
  resource_group_name = var.resource_group
  parent_id           = azurerm_user_assigned_identity.hsmsign[0].id
  issuer              = var.aks_oidc_issuer
  audience            = ["api://AzureADTokenExchange"]
  subject             = "system:serviceaccount:${var.aks_namespace}:${var.aks_service_account}"
}

resource "azurerm_role_definition" "signer" {
  name        = local.role.Name
  description = local.role.Description
  scope       = "/subscriptions/${var.subscription_id}"

  permissions {
    data_actions = local.role.DataActions
  }
}

# On the key, not on the vault: the identity cannot sign with another key.
resource "azurerm_role_assignment" "signer" {
  scope              = azurerm_key_vault_key.vendor.resource_versionless_id
  role_definition_id = azurerm_role_definition.signer.role_definition_resource_id
  principal_id       = local.principal_id
}

resource "azurerm_monitor_diagnostic_setting" "audit" {
  count                      = var.log_analytics_workspace_id != "" ? 1 : 0
  name                       = "hsmsign"
  target_resource_id         = azurerm_key_vault.mdm.id
  log_analytics_workspace_id = var.log_analytics_workspace_id

  enabled_log {
    category = "AuditEvent"
  }
}
