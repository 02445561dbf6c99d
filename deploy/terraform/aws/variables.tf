variable "account" {
  type        = string
  description = "Id of the account of key and role. Credentials of another account are refused."

  validation {
    condition     = can(regex("^[0-9]{12}$", var.account))
    error_message = "The id of an account has 12 digits."
  }
}

variable "region" {
  type        = string
  description = "Region of the key. A provider for another region is refused."
}

variable "alias" {
  type        = string
  default     = "mdm-vendor"
  description = "Name of the alias, without \"alias/\"."
}

variable "role" {
  type        = string
  default     = "hsmsign"
  description = "Name of the role that may sign."
}

variable "oidc_provider" {
  type        = string
  default     = ""
  description = "OIDC provider of the EKS cluster that may assume the role, without https://: oidc.eks.REGION.amazonaws.com/id/ID. Replaced in trust-irsa.json."
}

variable "namespace" {
  type        = string
  default     = "hsmsign"
  description = "Kubernetes namespace of the service account that may assume the role."
}

variable "service_account" {
  type        = string
  default     = "hsmsign"
  description = "Kubernetes service account that may assume the role."
}

variable "trust_policy" {
  type        = string
  default     = ""
  description = "Trust policy of the role in JSON, for EC2, ECS or EKS Pod Identity. It replaces trust-irsa.json."

  validation {
    condition     = (var.trust_policy == "") != (var.oidc_provider == "")
    error_message = "Set either oidc_provider or trust_policy."
  }
}

variable "multi_region" {
  type        = bool
  default     = false
  description = "Make a multi-Region key, which aws_kms_replica_key can copy. It cannot be changed later."
}
