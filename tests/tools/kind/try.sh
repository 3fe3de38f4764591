#!/usr/bin/env bash
# Tries what was released on a new kind cluster, and removes the cluster:
#
#   tests/tools/kind/try.sh REGISTRY oldest|newest
#
# The chart of this version is installed from the registry as README says, and tested; then
# install.yaml (target/release-files). The image is what both name, by its digest. There is no AWS:
# Pods get the reference, and the webhook's warning that no token could be had. nodes.txt has the
# image of each Kubernetes. It needs docker and kubectl.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
target=${CARGO_TARGET_DIR:-$PWD/target}
version=$(sed -n 's/^version = "\(.*\)".*/\1/p' Cargo.toml | head -1)
registry=${1:?try: name the registry, as in ghcr.io/ecr-injector}
kubernetes=${2:?try: name the Kubernetes, oldest or newest}

fail() {
  echo "try: $*" >&2
  exit 1
}

node=$(sed -n "s/^$kubernetes //p" tests/tools/kind/nodes.txt)
[[ $node ]] || fail "tests/tools/kind/nodes.txt has no Kubernetes $kubernetes"
for program in docker kubectl; do
  command -v "$program" >/dev/null || fail "$program is needed"
done
manifest=$target/release-files/install.yaml
[[ -f $manifest ]] || fail "there is no $manifest: make release-assemble writes it"
tests/tools/build.sh kind helm
kind=$target/kind/kind helm=${HELM:-$target/helm/helm}

cluster=ecr-injector-$kubernetes
image=123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/app:1
KUBECONFIG=$(mktemp)
export KUBECONFIG
trap '"$kind" delete cluster --name "$cluster"; rm -f "$KUBECONFIG"' EXIT
"$kind" create cluster --name "$cluster" --image "$node" --wait 180s

ready() {
  kubectl --namespace ecr-injector rollout status deployment ecr-injector --timeout 180s && return
  kubectl --namespace ecr-injector describe pods
  kubectl --namespace ecr-injector logs deployment/ecr-injector --all-pods
  fail "ecr-injector doesn't get ready on $node"
}

# What is admitted: nothing is stored, so nothing asks AWS.
admitted() { # namespace
  kubectl --namespace "$1" run app --image "$image" --dry-run=server --output 'jsonpath={.spec.imagePullSecrets[*].name}'
}

injects() {
  local secrets=
  # The API server hears of the CA bundle a little after the Pods are ready.
  for _ in $(seq 30); do
    secrets=$(admitted team-a)
    [[ $secrets != ecr-pull-secret ]] || break
    sleep 1
  done
  [[ $secrets == ecr-pull-secret ]] || fail "a Pod in an opted-in namespace gets the pull secrets '$secrets'"
  secrets=$(admitted default)
  [[ -z $secrets ]] || fail "a Pod in a namespace that is not opted in gets the pull secrets '$secrets'"
}

runs() {
  local answer
  answer=$(kubectl --namespace ecr-injector exec deployment/ecr-injector -- ecr-injector version)
  [[ $answer == "ecr-injector $version"$'\n'* ]] || fail "what runs is another version: $answer"
}

kubectl create namespace team-a
kubectl label namespace team-a ecr-injector.dev/inject=enabled

"$helm" install ecr-injector "oci://$registry/charts/ecr-injector" --version "$version" \
  --namespace ecr-injector --create-namespace --set test.mint=false --set "test.image=$image"
ready
injects
runs
"$helm" test ecr-injector --namespace ecr-injector --logs
"$helm" uninstall ecr-injector --namespace ecr-injector --wait
[[ -z $(admitted team-a) ]] || fail "a Pod gets a pull secret after the chart is uninstalled"
kubectl delete namespace ecr-injector

kubectl apply --server-side -f "$manifest"
ready
injects
runs
kubectl delete -f "$manifest"
echo "try: chart and install.yaml of $version work on $node"
