//go:build tools

// Package tools names what is built from this module, so that go.mod requires it.
package tools

import _ "k8s.io/cloud-provider-aws/cmd/ecr-credential-provider"
