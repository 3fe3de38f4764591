#!/usr/bin/env bash
# Turns symbols, one a line, into names that no hash of the compiler and no version of ring is in,
# and of very long ones the beginning.
set -euo pipefail
sed -E 's/\.llvm\.[0-9]+$//' | c++filt |
  sed -E 's/\[[0-9a-f]{1,16}\]//g; s/^ring_core_[0-9_]+__/ring_core__/' | cut -c -200
