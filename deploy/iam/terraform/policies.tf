# The JSON files beside this folder, with what they have as examples filled in. Nothing here needs a provider.

locals {
  role_arn = "arn:${var.partition}:iam::${var.account_id}:role/${var.role_name}"

  repositories = [
    for account in concat([var.account_id], tolist(var.registry_accounts)) : "arn:${var.partition}:ecr:*:${account}:repository/*"
  ]

  policy = replace(
    file("${path.module}/../policy-${var.partition}.json"),
    "arn:${var.partition}:ecr:*:123456789012:repository/*", join("\", \"", local.repositories)
  )

  trust_irsa = replace(replace(replace(replace(
    file("${path.module}/../trust-irsa.json"),
    "123456789012", var.account_id),
    "arn:aws:", "arn:${var.partition}:"),
    "oidc.eks.eu-west-1.amazonaws.com/id/0123456789ABCDEF0123456789ABCDEF", trimprefix(var.oidc_issuer, "https://")),
    "system:serviceaccount:ecr-injector:ecr-injector", "system:serviceaccount:${var.namespace}:${var.service_account}"
  )

  trust_pod_identity = replace(replace(replace(replace(
    file("${path.module}/../trust-pod-identity.json"),
    "arn:aws:eks:eu-west-1:123456789012:cluster/CLUSTER", var.cluster_arn),
    "123456789012", var.account_id),
    "kubernetes-namespace\": \"ecr-injector", "kubernetes-namespace\": \"${var.namespace}"),
    "kubernetes-service-account\": \"ecr-injector", "kubernetes-service-account\": \"${var.service_account}"
  )

  repository_policy = replace(
    file("${path.module}/../repository-policy.json"),
    "arn:aws:iam::123456789012:role/ecr-injector", local.role_arn
  )
}
