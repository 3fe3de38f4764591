#!/usr/bin/env bash
# Builds programs that the tests and image/build.sh run from their Go modules, once, into target:
#
#   tests/tools/build.sh control-plane helm
#
# A folder beside this script is a module, and its go.mod says which version: a change there, or of how a program is built,
# rebuilds it. KUBEBUILDER_ASSETS names a folder that has the control plane already, HELM a Helm 4 or 3, KUBE_SCORE a kube-score,
# UMOCI a umoci: then that one is used.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
target="${CARGO_TARGET_DIR:-$root/target}"

# The version of module $2 that the folder $1 pins.
version() { sed -n "s|^.*$2 v\([0-9.]*\)\$|\1|p" "$here/$1/go.mod" | head -1; }

# Of the set $1, a line for each program: its name, the folder of its module, its package, what is stamped into it.
programs() {
  case $1 in
  control-plane) control_plane kubernetes ;;
  control-plane-oldest) control_plane kubernetes-oldest ;;
  helm) echo "helm helm helm.sh/helm/v4/cmd/helm" \
    "-X helm.sh/helm/v4/internal/version.version=v$(version helm helm.sh/helm/v4)" ;;
  helm3) helm3 ;;
  kube-score) echo "kube-score kube-score github.com/zegl/kube-score/cmd/kube-score" \
    "-X main.version=$(version kube-score github.com/zegl/kube-score)" ;;
  umoci) echo "umoci umoci github.com/opencontainers/umoci/cmd/umoci" ;;
  crane) echo "crane crane github.com/google/go-containerregistry/cmd/crane" ;;
  kind) echo "kind kind sigs.k8s.io/kind" ;;
  ecr-login) echo "docker-credential-ecr-login ecr-login github.com/awslabs/amazon-ecr-credential-helper/ecr-login/cli/docker-credential-ecr-login" ;;
  kubelet-lab) kubelet_lab ;;
  peers) peers ;;
  actionlint) echo "actionlint actionlint github.com/rhysd/actionlint/cmd/actionlint" \
    "-X github.com/rhysd/actionlint.version=$(version actionlint github.com/rhysd/actionlint)" ;;
  *) return 1 ;;
  esac
}

# The module that is the folder $1; the etcd is the same for all.
control_plane() {
  local program stamp it=k8s.io/component-base/version version
  version=$(version "$1" k8s.io/kubernetes)
  stamp="-X $it.gitVersion=v$version -X $it.gitMajor=${version%%.*} -X $it.gitMinor=$(cut -d. -f2 <<<"$version")"
  echo "etcd etcd go.etcd.io/etcd/server/v3"
  for program in kubectl kube-controller-manager kube-apiserver; do
    echo "$program $1 k8s.io/kubernetes/cmd/$program $stamp"
  done
}

# What does a part of the same, to measure beside us: a sample webhook, a kubelet plugin, a docker helper.
peers() {
  echo "agnhost kubelet k8s.io/kubernetes/test/images/agnhost"
  echo "ecr-credential-provider ecr-credential-provider k8s.io/cloud-provider-aws/cmd/ecr-credential-provider"
  programs ecr-login
}

# What runs Pods: beside the control plane, of the same Kubernetes.
kubelet_lab() {
  local program stamp
  stamp=$(control_plane kubelet | sed -n 's/^kubectl [^ ]* [^ ]* //p')
  for program in kube-scheduler kube-proxy kubelet; do
    echo "$program kubelet k8s.io/kubernetes/cmd/$program $stamp"
  done
  stamp="-X github.com/containerd/containerd/v2/version.Version=v$(version containerd github.com/containerd/containerd/v2)"
  for program in containerd containerd-shim-runc-v2 ctr; do
    echo "$program containerd github.com/containerd/containerd/v2/cmd/$program $stamp"
  done
}

# The build tags of the module that is the folder $1: containerd without the snapshotters that aren't used.
tags() { [[ $1 != containerd ]] || echo no_btrfs,no_zfs,no_devmapper,no_aufs; }

# As it is released: for charts that want a Kubernetes it is the one of its client.
helm3() {
  local stamp minor package
  stamp="-X helm.sh/helm/v3/internal/version.version=v$(version helm3 helm.sh/helm/v3)"
  minor=$(sed -n 's|^.*k8s.io/client-go v0\.\([0-9]*\)\..*$|\1|p' "$here/helm3/go.mod")
  for package in lint/rules chartutil; do
    stamp+=" -X helm.sh/helm/v3/pkg/$package.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/$package.k8sVersionMinor=$minor"
  done
  echo "helm helm3 helm.sh/helm/v3/cmd/helm $stamp"
}

# What to expect of the set $1, and what to set if there is one already.
about() {
  case $1 in
  control-plane) echo "Kubernetes $(version kubernetes k8s.io/kubernetes), about 6 minutes on two cores (kube-apiserver is most of it)" ;;
  control-plane-oldest) echo "Kubernetes $(version kubernetes-oldest k8s.io/kubernetes), about 6 minutes on two cores" ;;
  helm) echo "Helm $(version helm helm.sh/helm/v4), about 2 minutes on two cores" ;;
  helm3) echo "Helm $(version helm3 helm.sh/helm/v3), about 2 minutes on two cores" ;;
  kube-score) echo "kube-score $(version kube-score github.com/zegl/kube-score)" ;;
  umoci) echo "umoci $(version umoci github.com/opencontainers/umoci), which writes images without a container engine" ;;
  crane) echo "crane $(version crane github.com/google/go-containerregistry), a client of registries" ;;
  kind) echo "kind $(version kind sigs.k8s.io/kind), which makes clusters in containers" ;;
  ecr-login) echo "amazon-ecr-credential-helper $(version ecr-login github.com/awslabs/amazon-ecr-credential-helper/ecr-login)" ;;
  kubelet-lab) echo "the kubelet, kube-scheduler and kube-proxy of Kubernetes $(version kubelet k8s.io/kubernetes) and containerd" \
    "$(version containerd github.com/containerd/containerd/v2), about 5 minutes on two cores" ;;
  peers) echo "agnhost, cloud-provider-aws $(version ecr-credential-provider k8s.io/cloud-provider-aws)," \
    "amazon-ecr-credential-helper $(version ecr-login github.com/awslabs/amazon-ecr-credential-helper/ecr-login), about 5 minutes on two cores" ;;
  actionlint) echo "actionlint $(version actionlint github.com/rhysd/actionlint), which checks the workflows" ;;
  esac
}

# Whether the set $1 is there already, elsewhere, and says so; ends if what is named can't be used.
elsewhere() {
  local name module package stamp it
  if [[ $1 == control-plane && -n "${KUBEBUILDER_ASSETS:-}" ]]; then
    while read -r name module package stamp; do
      [[ -x "$KUBEBUILDER_ASSETS/$name" ]] || fail "KUBEBUILDER_ASSETS is $KUBEBUILDER_ASSETS, which has no executable $name;" \
        "add it there, or unset the variable to build all four from source"
    done < <(programs "$1")
    echo "$set: using $KUBEBUILDER_ASSETS"
  elif [[ $1 == helm && -n "${HELM:-}" ]]; then
    it=$("$HELM" version --template '{{.Version}}' 2>/dev/null) || it=
    [[ $it == v[34].* ]] || fail "HELM is $HELM, which is ${it:-no Helm that runs}; name a Helm 4 or 3, or unset the variable to build it from source"
    echo "$set: using $HELM, $it"
  elif [[ $1 == kube-score && -n "${KUBE_SCORE:-}" ]]; then
    it=$("$KUBE_SCORE" version 2>/dev/null) || fail "KUBE_SCORE is $KUBE_SCORE, which doesn't run; name one, or unset the variable to build it from source"
    echo "$set: using $KUBE_SCORE, $it"
  elif [[ $1 == umoci && -n "${UMOCI:-}" ]]; then
    it=$("$UMOCI" --version 2>/dev/null) || fail "UMOCI is $UMOCI, which doesn't run; name one, or unset the variable to build it from source"
    echo "$set: using $UMOCI, $it"
  else
    return 1
  fi
}

fail() {
  echo "$set: $*" >&2
  exit 1
}

hash_of() { # module's folder, package, stamp
  { cat "$here/$1/go.mod" "$here/$1/go.sum" && echo "${*:2}" && tags "$1"; } | sha256sum | cut -d' ' -f1
}

# A line that grows, so that a first build does not look hung. The program appears whole or not at all.
build() { # folder to build into, name, module's folder, package, stamp
  local out=$1 name=$2 started=$SECONDS pid ticks=0
  printf '%s: building %s ' "$set" "$name"
  (cd "$here/$3" && CGO_ENABLED=0 GOFLAGS=-mod=readonly \
    go build -trimpath -tags "$(tags "$3")" -ldflags "-s -w $5" -o "$out/.$name.part" "$4") >"$out/$name.log" 2>&1 &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    sleep 1
    ticks=$((ticks + 1))
    ((ticks % 10)) || printf '.'
  done
  if ! wait "$pid"; then
    printf ' failed\n'
    tail -n 40 "$out/$name.log" >&2
    fail "building $name failed; the whole log is $out/$name.log"
  fi
  mv "$out/.$name.part" "$out/$name"
  printf ' %d s\n' $((SECONDS - started))
}

for set in "$@"; do
  programs "$set" >/dev/null || fail "there is no such set of programs; see $0"
  elsewhere "$set" && continue
  out="$target/$set"
  [[ $set == control-plane* ]] && out+=/bin
  stale=()
  while read -r name module package stamp; do
    want=$(hash_of "$module" "$package" "$stamp")
    [[ -x "$out/$name" && "$(cat "$out/.$name.built" 2>/dev/null)" == "$want" ]] || stale+=("$want $name $module $package $stamp")
  done < <(programs "$set")
  if ((!${#stale[@]})); then
    echo "$set: up to date in ${out#"$root/"}"
    continue
  fi
  command -v go >/dev/null || fail "Go is needed to build it (https://go.dev/doc/install)," \
    "or set KUBEBUILDER_ASSETS to a folder that has the control plane, HELM to a Helm, and KUBE_SCORE to a kube-score"
  echo "$set: $(about "$set"), once"
  mkdir -p "$out"
  for program in "${stale[@]}"; do
    read -r want name module package stamp <<<"$program"
    rm -f "$out/.$name.built"
    build "$out" "$name" "$module" "$package" "$stamp"
    echo "$want" >"$out/.$name.built"
  done
  echo "$set: ready in ${out#"$root/"}"
done
