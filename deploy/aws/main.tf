# The vendor's signing key, its alias, and the role that hsmsign signs with.
#
#   terraform init && terraform apply -var region=eu-west-1 -var oidc_provider=oidc.eks.eu-west-1.amazonaws.com/id/...
#
# The key never leaves KMS. Terraform refuses to destroy it: a vendor key that is deleted is gone for good, and with it
# the vendor certificate.

terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0, < 7.0"
    }
  }
}

variable "region" {
  type        = string
  description = "Region of the key."
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

variable "account" {
  type        = string
  default     = ""
  description = "Id of the account of key and role; by default the account of the credentials."
}

variable "oidc_provider" {
  type        = string
  default     = ""
  description = "OIDC provider of the EKS cluster that may assume the role, without https://: oidc.eks.REGION.amazonaws.com/id/ID. Replaced in trust-irsa.json."
}

variable "service_account" {
  type        = string
  default     = "system:serviceaccount:mdm:hsmsign"
  description = "Kubernetes service account that may assume the role: system:serviceaccount:NAMESPACE:NAME."
}

variable "trust_policy_file" {
  type        = string
  default     = ""
  description = "Trust policy of the role, for EC2, ECS or EKS Pod Identity. It replaces trust-irsa.json."

  validation {
    condition     = (var.trust_policy_file == "") != (var.oidc_provider == "")
    error_message = "Set either oidc_provider or trust_policy_file."
  }
}

variable "multi_region" {
  type        = bool
  default     = false
  description = "Make a multi-Region key, which aws_kms_replica_key can copy. It cannot be changed later."
}

provider "aws" {
  region = var.region
}

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

locals {
  account  = var.account != "" ? var.account : data.aws_caller_identity.current.account_id
  role_arn = "arn:${data.aws_partition.current.partition}:iam::${local.account}:role/${var.role}"

  # The policies are the JSON files beside this one, with the example's account, role and partition replaced.
  key_policy = replace(
    replace(
      replace(file("${path.module}/key-policy.json"), "arn:aws:iam::111122223333:role/hsmsign", local.role_arn),
      "arn:aws:", "arn:${data.aws_partition.current.partition}:"
    ),
    "111122223333", local.account
  )
  irsa_policy = replace(
    replace(
      replace(
        replace(file("${path.module}/trust-irsa.json"), "oidc.eks.eu-west-1.amazonaws.com/id/EXAMPLED539D4633E53DE1B71EXAMPLE", var.oidc_provider),
        "system:serviceaccount:mdm:hsmsign", var.service_account
      ),
      "arn:aws:", "arn:${data.aws_partition.current.partition}:"
    ),
    "111122223333", local.account
  )
}

resource "aws_iam_role" "signer" {
  name               = var.role
  assume_role_policy = var.trust_policy_file == "" ? local.irsa_policy : file(var.trust_policy_file)
}

resource "aws_kms_key" "vendor" {
  description              = "hsmsign: MDM vendor signing key"
  customer_master_key_spec = "RSA_2048"
  key_usage                = "SIGN_VERIFY"
  multi_region             = var.multi_region
  deletion_window_in_days  = 30
  policy                   = local.key_policy

  # KMS refuses a policy that names a role which does not exist yet.
  depends_on = [aws_iam_role.signer]

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_kms_alias" "vendor" {
  name          = "alias/${var.alias}"
  target_key_id = aws_kms_key.vendor.key_id
}

resource "aws_iam_role_policy" "signer" {
  name = "sign-for-apple"
  role = aws_iam_role.signer.id
  policy = replace(
    file("${path.module}/iam-policy.json"),
    "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
    aws_kms_key.vendor.arn
  )
}

output "reference" {
  description = "What hsmsign takes as --key."
  value       = "awskms:///${aws_kms_key.vendor.arn}"
}
