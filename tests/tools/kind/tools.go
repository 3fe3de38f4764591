//go:build tools

// Package tools names what build.sh builds, so that go.mod requires it.
package tools

import _ "sigs.k8s.io/kind"
