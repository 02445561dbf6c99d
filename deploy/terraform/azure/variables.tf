variable "subscription_id" {
  description = "Subscription that holds the vault."
  type        = string
}

variable "tenant_id" {
  description = "Tenant of Entra ID whose identities may use the vault."
  type        = string
}

variable "resource_group" {
  description = "Resource group of the vault. It must exist."
  type        = string
}

variable "location" {
  description = "Region of the vault."
  type        = string
}

variable "vault" {
  description = "Name of the vault, unique in all of Azure: 3 to 24 small letters, digits and dashes."
  type        = string
}

variable "key" {
  description = "Name of the key."
  type        = string
  default     = "mdm-vendor"
}

variable "key_type" {
  description = "RSA-HSM, or RSA for tests."
  type        = string
  default     = "RSA-HSM"

  validation {
    condition     = contains(["RSA-HSM", "RSA"], var.key_type)
    error_message = "Use RSA-HSM or RSA."
  }
}

variable "signer_principal_id" {
  description = "Object id of an identity that exists and signs. Empty: a managed identity \"hsmsign\" is created."
  type        = string
  default     = ""
}

variable "aks_oidc_issuer" {
  description = "URL of the OIDC issuer of the AKS cluster whose pods sign with the created identity. Empty: no pods."
  type        = string
  default     = ""
}

variable "aks_namespace" {
  description = "Namespace of the Kubernetes service account that signs."
  type        = string
  default     = "hsmsign"
}

variable "aks_service_account" {
  description = "Kubernetes service account that signs."
  type        = string
  default     = "hsmsign"
}

variable "log_analytics_workspace_id" {
  description = "Resource id of the workspace that gets the audit log of the vault. Empty: no log."
  type        = string
  default     = ""
}
