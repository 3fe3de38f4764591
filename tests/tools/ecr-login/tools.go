//go:build tools

// Package tools names what is built from this module, so that go.mod requires it.
package tools

import _ "github.com/awslabs/amazon-ecr-credential-helper/ecr-login/cli/docker-credential-ecr-login"
