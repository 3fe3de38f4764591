variable "cluster_arn" {
  description = "The EKS cluster: arn:aws:eks:REGION:ACCOUNT:cluster/NAME."
  type        = string
}

variable "account_id" {
  description = "The account of the role, and of registries that it may pull from."
  type        = string
}

variable "partition" {
  description = "aws, aws-cn, aws-us-gov, aws-eusc, aws-iso, aws-iso-b, aws-iso-e or aws-iso-f."
  type        = string
  default     = "aws"
}

variable "pod_identity" {
  description = "EKS Pod Identity in the place of IRSA."
  type        = bool
  default     = false
}

variable "oidc_issuer" {
  description = "For IRSA: the issuer of the cluster's OIDC provider, which has to be there (aws_iam_openid_connect_provider)."
  type        = string
  default     = ""
}

variable "role_name" {
  description = "What the role and its policy are called."
  type        = string
  default     = "ecr-injector"
}

variable "namespace" {
  description = "The namespace that the chart is released to."
  type        = string
  default     = "ecr-injector"
}

variable "service_account" {
  description = "The ServiceAccount that the chart renders."
  type        = string
  default     = "ecr-injector"
}

variable "registry_accounts" {
  description = "Other accounts whose registries the role may pull from. Their repositories have to allow it too."
  type        = set(string)
  default     = []
}

variable "repositories" {
  description = "Repositories of one of registry_accounts, that of the provider aws.registries: their policies are set to let the role pull."
  type        = set(string)
  default     = []
}
