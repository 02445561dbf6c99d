# The vendor's signing key, its alias, and the role that hsmsign signs with; see README.md.
#
# The key never leaves KMS. Terraform refuses to destroy it: a vendor key that is deleted is gone for good, and with it
# the vendor certificate.

data "aws_caller_identity" "current" {}

data "aws_partition" "current" {}

data "aws_region" "current" {}

locals {
  partition = data.aws_partition.current.partition
  role_arn  = "arn:${local.partition}:iam::${var.account}:role/${var.role}"

  # The policies are the JSON files beside this one, with the example's account, role, partition, provider and service account replaced.
  key_policy = replace(
    replace(
      replace(file("${path.module}/key-policy.json"), "arn:aws:iam::111122223333:role/hsmsign", local.role_arn),
      "arn:aws:", "arn:${local.partition}:"
    ),
    "111122223333", var.account
  )
  irsa_policy = replace(
    replace(
      replace(
        replace(file("${path.module}/trust-irsa.json"), "oidc.eks.eu-west-1.amazonaws.com/id/EXAMPLED539D4633E53DE1B71EXAMPLE", var.oidc_provider),
        "system:serviceaccount:hsmsign:hsmsign", "system:serviceaccount:${var.namespace}:${var.service_account}"
      ),
      "arn:aws:", "arn:${local.partition}:"
    ),
    "111122223333", var.account
  )
}

resource "aws_iam_role" "signer" {
  name               = var.role
  assume_role_policy = var.trust_policy == "" ? local.irsa_policy : var.trust_policy

  lifecycle {
    precondition {
      condition     = data.aws_caller_identity.current.account_id == var.account
      error_message = "The credentials are those of another account than var.account."
    }
  }
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

    precondition {
      condition     = data.aws_region.current.name == var.region
      error_message = "The provider is for another region than var.region."
    }
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
