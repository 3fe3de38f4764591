//go:build tools

// Package tools names what build.sh builds, so that go.mod requires it.
package tools

import _ "github.com/opencontainers/umoci/cmd/umoci"
