output "reference" {
  description = "What hsmsign takes as --key."
  value       = "awskms:///${aws_kms_key.vendor.arn}"
}

output "role" {
  description = "ARN of the role that may sign: the annotation eks.amazonaws.com/role-arn of the service account."
  value       = aws_iam_role.signer.arn
}
