# The role that ecr-injector mints with, from the policies beside this folder. README.md says how it is used.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source                = "hashicorp/aws"
      version               = ">= 5.33"
      configuration_aliases = [aws.registries]
    }
  }
}

resource "aws_iam_policy" "pull" {
  name        = var.role_name
  description = "ECR tokens and pulls, for ecr-injector"
  policy      = local.policy
}

resource "aws_iam_role" "this" {
  name               = var.role_name
  assume_role_policy = var.pod_identity ? local.trust_pod_identity : local.trust_irsa

  lifecycle {
    precondition {
      condition     = var.pod_identity || var.oidc_issuer != ""
      error_message = "IRSA needs oidc_issuer; for EKS Pod Identity set pod_identity."
    }
  }
}

resource "aws_iam_role_policy_attachment" "pull" {
  role       = aws_iam_role.this.name
  policy_arn = aws_iam_policy.pull.arn
}

# With IRSA the chart's value aws.roleArn ties the ServiceAccount to the role; with Pod Identity this does.
resource "aws_eks_pod_identity_association" "this" {
  count = var.pod_identity ? 1 : 0

  cluster_name    = element(split("/", var.cluster_arn), 1)
  namespace       = var.namespace
  service_account = var.service_account
  role_arn        = aws_iam_role.this.arn
}

# A repository names the role, which has to be there by then: IAM refuses a principal that it doesn't know.
resource "aws_ecr_repository_policy" "pull" {
  for_each = var.repositories
  provider = aws.registries

  repository = each.value
  policy     = local.repository_policy
  depends_on = [aws_iam_role.this]
}

output "role_arn" {
  description = "With IRSA: the chart's value aws.roleArn."
  value       = aws_iam_role.this.arn
}
