#!/usr/bin/env bash
# Fails unless ring is the one TLS provider in the tree: two make rustls panic at run time, and the others need more
# than a C compiler to build.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

for unwanted in aws-lc-rs aws-lc-sys openssl-sys native-tls; do
  # `cargo tree -i` fails for a package that is nowhere in the tree: that is what is wanted here.
  if tree=$(cargo tree --locked -e normal,build -i "$unwanted" 2>/dev/null) && [[ -n "$tree" ]]; then
    echo "one-tls-provider: $unwanted is in the tree:" >&2
    echo "$tree" >&2
    exit 1
  fi
done
cargo tree --locked -e normal,build -i ring >/dev/null || {
  echo "one-tls-provider: ring is not in the tree" >&2
  exit 1
}
echo "one-tls-provider: ring, and no other"
