variable "project" {
  description = "Project ID that holds the key."
  type        = string
}

variable "location" {
  description = "Location of the key ring. Not every location has Cloud HSM."
  type        = string
  default     = "europe-west1"
}

variable "key_ring" {
  description = "Name of the key ring. A key ring cannot be deleted."
  type        = string
  default     = "mdm"
}

variable "key" {
  description = "Name of the key. A name cannot be used again."
  type        = string
  default     = "vendor"
}

variable "algorithm" {
  description = "Apple takes RSASSA-PKCS1-v1_5 with SHA-256."
  type        = string
  default     = "RSA_SIGN_PKCS1_2048_SHA256"

  validation {
    condition     = can(regex("^RSA_SIGN_PKCS1_(2048|3072|4096)_SHA256$", var.algorithm))
    error_message = "Use RSA_SIGN_PKCS1_2048_SHA256, RSA_SIGN_PKCS1_3072_SHA256 or RSA_SIGN_PKCS1_4096_SHA256."
  }
}

variable "protection_level" {
  description = "HSM, or SOFTWARE for tests."
  type        = string
  default     = "HSM"

  validation {
    condition     = contains(["HSM", "SOFTWARE"], var.protection_level)
    error_message = "Use HSM or SOFTWARE."
  }
}

variable "gke_project_number" {
  description = "Project number of the GKE cluster's project, which must be var.project. Empty: the service account signs."
  type        = string
  default     = ""
}

variable "gke_namespace" {
  description = "Namespace of the Kubernetes service account that signs."
  type        = string
  default     = "hsmsign"
}

variable "gke_service_account" {
  description = "Kubernetes service account that signs."
  type        = string
  default     = "hsmsign"
}
