variable "project" {
  description = "Project ID that holds the key."
  type        = string
}

variable "location" {
  description = "Location (region) of the key ring. Not every location has Cloud HSM."
  type        = string
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

variable "protection_level" {
  description = "HSM, or SOFTWARE for tests."
  type        = string
  default     = "HSM"

  validation {
    condition     = contains(["HSM", "SOFTWARE"], var.protection_level)
    error_message = "Use HSM or SOFTWARE."
  }
}

variable "role_id" {
  description = "Id of the custom role with the two permissions."
  type        = string
  default     = "hsmsignSigner"
}

variable "signer" {
  description = "IAM member that signs, such as serviceAccount:NAME@PROJECT.iam.gserviceaccount.com. Empty: that of gke_project_number, or a new service account."
  type        = string
  default     = ""

  validation {
    condition     = var.signer == "" || var.gke_project_number == ""
    error_message = "Set either signer or gke_project_number."
  }
}

variable "service_account_id" {
  description = "Id of the service account that is made if neither signer nor gke_project_number is set."
  type        = string
  default     = "hsmsign"
}

variable "gke_project_number" {
  description = "Number of the GKE cluster's project. The Kubernetes service account signs."
  type        = string
  default     = ""

  validation {
    condition     = var.gke_project_number == "" || can(regex("^[0-9]+$", var.gke_project_number))
    error_message = "The number of a project has digits only."
  }
}

variable "gke_project" {
  description = "Id of the GKE cluster's project. Empty: that of the key."
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
