#!/usr/bin/env bash
# Builds Helm from its Go module, once, into target/helm. The version is that of the go.mod beside this script; a change of it
# builds anew. HELM, when set, names a Helm 4 that is there already: then nothing is built.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
out="${CARGO_TARGET_DIR:-$root/target}/helm"

if [[ -n "${HELM:-}" ]]; then
  version=$("$HELM" version --template '{{.Version}}' 2>/dev/null) || version="nothing that runs"
  [[ "$version" == v4.* ]] || {
    echo "helm: HELM is $HELM, which is $version; name a Helm 4, or unset the variable to build it from source" >&2
    exit 1
  }
  echo "helm: using $HELM"
  exit 0
fi

command -v go >/dev/null || {
  echo "helm: Go is needed to build Helm (https://go.dev/doc/install), or set HELM to a Helm 4" >&2
  exit 1
}

want=$(cat "$here/go.mod" "$here/go.sum" "$here/build.sh" | sha256sum | cut -d' ' -f1)
if [[ -x "$out/helm" && -f "$out/built" && "$(cat "$out/built")" == "$want" ]]; then
  echo "helm: up to date in $out"
  exit 0
fi
mkdir -p "$out"
rm -f "$out/built"

version=$(sed -n 's|^.*helm.sh/helm/v4 v\([0-9.]*\)$|\1|p' "$here/go.mod" | head -1)
stamp="-X helm.sh/helm/v4/internal/version.version=v$version"

# A line that grows, so that a first build does not look hung. The binary appears whole or not at all.
started=$SECONDS ticks=0
printf 'helm: building Helm %s, once; about 2 minutes on two cores ' "$version"
(cd "$here" && CGO_ENABLED=0 GOFLAGS=-mod=readonly \
  go build -trimpath -ldflags "-s -w $stamp" -o "$out/.helm.part" helm.sh/helm/v4/cmd/helm) >"$out/helm.log" 2>&1 &
pid=$!
while kill -0 "$pid" 2>/dev/null; do
  sleep 1
  ticks=$((ticks + 1))
  ((ticks % 10)) || printf '.'
done
if ! wait "$pid"; then
  printf ' failed\n'
  tail -n 40 "$out/helm.log" >&2
  echo "helm: building it failed; the whole log is $out/helm.log" >&2
  exit 1
fi
mv "$out/.helm.part" "$out/helm"
echo "$want" >"$out/built"
printf ' %d s\n' $((SECONDS - started))
