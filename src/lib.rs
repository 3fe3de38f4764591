//! `ecr-injector`: a mutating admission webhook that makes private Amazon ECR images pull on any Kubernetes cluster.
