#!/usr/bin/env bash
# Builds umoci, which writes container images without a container engine, from its Go module, once, into target/umoci. The
# version is that of the go.mod beside this script; a change of it builds anew. UMOCI, when set, names a umoci that is there
# already: then nothing is built.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
out="${CARGO_TARGET_DIR:-$root/target}/umoci"

if [[ -n "${UMOCI:-}" ]]; then
  "$UMOCI" --version >/dev/null 2>&1 || {
    echo "umoci: UMOCI is $UMOCI, which does not run; name a umoci, or unset the variable to build it from source" >&2
    exit 1
  }
  echo "umoci: using $UMOCI"
  exit 0
fi

command -v go >/dev/null || {
  echo "umoci: Go is needed to build umoci (https://go.dev/doc/install), or set UMOCI to a umoci" >&2
  exit 1
}

want=$(cat "$here/go.mod" "$here/go.sum" "$here/build.sh" | sha256sum | cut -d' ' -f1)
if [[ -x "$out/umoci" && -f "$out/built" && "$(cat "$out/built")" == "$want" ]]; then
  echo "umoci: up to date in $out"
  exit 0
fi
mkdir -p "$out"
rm -f "$out/built"

# The binary appears whole or not at all.
version=$(sed -n 's|^.*github.com/opencontainers/umoci v\([0-9.]*\)$|\1|p' "$here/go.mod" | head -1)
started=$SECONDS
printf 'umoci: building umoci %s, once; about half a minute on two cores …' "$version"
if ! (cd "$here" && CGO_ENABLED=0 GOFLAGS=-mod=readonly \
  go build -trimpath -ldflags "-s -w" -o "$out/.umoci.part" github.com/opencontainers/umoci/cmd/umoci) >"$out/umoci.log" 2>&1; then
  printf ' failed\n'
  tail -n 40 "$out/umoci.log" >&2
  echo "umoci: building it failed; the whole log is $out/umoci.log" >&2
  exit 1
fi
mv "$out/.umoci.part" "$out/umoci"
echo "$want" >"$out/built"
printf ' %d s\n' $((SECONDS - started))
