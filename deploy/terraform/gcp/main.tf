# The vendor key in Cloud KMS, and the one identity that may sign with it; see README.md.

resource "google_project_service" "kms" {
  project            = var.project
  service            = "cloudkms.googleapis.com"
  disable_on_destroy = false
}

resource "google_kms_key_ring" "mdm" {
  project    = var.project
  name       = var.key_ring
  location   = var.location
  depends_on = [google_project_service.kms]
}

# Apple certifies this very key: when it is gone, a new vendor certificate is needed.
resource "google_kms_crypto_key" "vendor" {
  name                       = var.key
  key_ring                   = google_kms_key_ring.mdm.id
  purpose                    = "ASYMMETRIC_SIGN"
  destroy_scheduled_duration = "2592000s" # 30 days to restore it

  version_template {
    algorithm        = "RSA_SIGN_PKCS1_2048_SHA256" # the only one for which Apple issues vendor certificates
    protection_level = var.protection_level
  }

  lifecycle {
    prevent_destroy = true
  }
}

# Only where nothing else signs.
resource "google_service_account" "hsmsign" {
  count        = local.own_account ? 1 : 0
  project      = var.project
  account_id   = var.service_account_id
  display_name = "hsmsign signing agent"
}

# The same two permissions as in role.json.
resource "google_project_iam_custom_role" "signer" {
  project     = var.project
  role_id     = var.role_id
  title       = "hsmsign signer"
  description = "Signs with a key, and reads its public half. Grant it on the vendor key, not on the project."
  permissions = [
    "cloudkms.cryptoKeyVersions.useToSign",
    "cloudkms.cryptoKeyVersions.viewPublicKey",
  ]
}

# On the one key, and nowhere above it.
resource "google_kms_crypto_key_iam_member" "signer" {
  crypto_key_id = google_kms_crypto_key.vendor.id
  role          = google_project_iam_custom_role.signer.id
  member        = local.signer
}

# AsymmetricSign is a DATA_READ operation, which Cloud Audit Logs leaves out unless it is told to.
resource "google_project_iam_audit_config" "kms" {
  project = var.project
  service = "cloudkms.googleapis.com"

  audit_log_config {
    log_type = "DATA_READ"
  }
}

locals {
  own_account  = var.signer == "" && var.gke_project_number == ""
  gke_project  = var.gke_project == "" ? var.project : var.gke_project
  gke_identity = "principal://iam.googleapis.com/projects/${var.gke_project_number}/locations/global/workloadIdentityPools/${local.gke_project}.svc.id.goog/subject/ns/${var.gke_namespace}/sa/${var.gke_service_account}"
  signer       = var.signer != "" ? var.signer : local.own_account ? google_service_account.hsmsign[0].member : local.gke_identity
}
