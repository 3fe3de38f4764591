#!/usr/bin/env bash
# Builds kube-apiserver, etcd, kube-controller-manager and kubectl from their Go modules, once, into
# target/control-plane/bin. The versions are those of the go.mod files beside this script; a change of them builds anew.
# KUBEBUILDER_ASSETS, when set, names a folder that already has the four: then nothing is built.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
out="${CARGO_TARGET_DIR:-$root/target}/control-plane"
commands=(etcd kubectl kube-controller-manager kube-apiserver)

if [[ -n "${KUBEBUILDER_ASSETS:-}" ]]; then
  for command in "${commands[@]}"; do
    [[ -x "$KUBEBUILDER_ASSETS/$command" ]] || {
      echo "control-plane: KUBEBUILDER_ASSETS is $KUBEBUILDER_ASSETS, which has no executable $command;" \
        "add it there, or unset the variable to build all four from source" >&2
      exit 1
    }
  done
  echo "control-plane: using $KUBEBUILDER_ASSETS"
  exit 0
fi

command -v go >/dev/null || {
  echo "control-plane: Go is needed to build kube-apiserver and etcd (https://go.dev/doc/install)," \
    "or set KUBEBUILDER_ASSETS to a folder that has ${commands[*]}" >&2
  exit 1
}

want=$(cat "$here"/*/go.mod "$here"/*/go.sum "$here/build.sh" | sha256sum | cut -d' ' -f1)
if [[ -f "$out/built" && "$(cat "$out/built")" == "$want" ]]; then
  echo "control-plane: up to date in $out/bin"
  exit 0
fi
mkdir -p "$out/bin"
rm -f "$out/built"

version() { sed -n "s|^.*$2 v\([0-9.]*\)\$|\1|p" "$here/$1/go.mod" | head -1; }
kubernetes=$(version kubernetes 'k8s.io/kubernetes')
stamp="-X k8s.io/component-base/version.gitVersion=v$kubernetes"
stamp+=" -X k8s.io/component-base/version.gitMajor=${kubernetes%%.*}"
stamp+=" -X k8s.io/component-base/version.gitMinor=$(cut -d. -f2 <<<"$kubernetes")"

# A line every ten seconds, so that a first build does not look hung. The binary appears whole or not at all.
build() { # name, module folder, package
  local started=$SECONDS pid ticks=0
  [[ -x "$out/bin/$1" && -f "$out/bin/.$1.$want" ]] && return
  printf 'control-plane: building %s ' "$1"
  (cd "$here/$2" && CGO_ENABLED=0 GOFLAGS=-mod=readonly \
    go build -trimpath -ldflags "-s -w $stamp" -o "$out/bin/.$1.part" "$3") >"$out/$1.log" 2>&1 &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    sleep 1
    ticks=$((ticks + 1))
    ((ticks % 10)) || printf '.'
  done
  if ! wait "$pid"; then
    printf ' failed\n'
    tail -n 40 "$out/$1.log" >&2
    echo "control-plane: building $1 failed; the whole log is $out/$1.log" >&2
    exit 1
  fi
  mv "$out/bin/.$1.part" "$out/bin/$1"
  touch "$out/bin/.$1.$want"
  printf ' %d s\n' $((SECONDS - started))
}

echo "control-plane: Kubernetes $kubernetes, once; about 6 minutes on two cores (kube-apiserver is most of it)"
build etcd etcd go.etcd.io/etcd/server/v3
build kubectl kubernetes k8s.io/kubernetes/cmd/kubectl
build kube-controller-manager kubernetes k8s.io/kubernetes/cmd/kube-controller-manager
build kube-apiserver kubernetes k8s.io/kubernetes/cmd/kube-apiserver
echo "$want" >"$out/built"
echo "control-plane: ready in $out/bin"
