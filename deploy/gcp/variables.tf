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
