#!/usr/bin/env bash
# Installs the clients of registries with which tests/clients tries the docker credential helper,
# from Debian's packages. What is there already stays; what can't be installed is an error: no
# client is skipped.
set -euo pipefail

declare -A packages=(
  [skopeo]=skopeo
  [buildah]=buildah
  [podman]=podman
  [docker]=docker.io
  [docker-credential-ecr-login]=amazon-ecr-credential-helper
  [python3]=python3-docker
)

fail() {
  echo "clients: $*" >&2
  exit 1
}

missing=()
for program in "${!packages[@]}"; do
  found=$(PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin command -v "$program" || true)
  [[ -n $found ]] || missing+=("${packages[$program]}")
done
/usr/bin/python3 -c 'import docker.auth' 2>/dev/null || missing+=(python3-docker)
if ((!${#missing[@]})); then
  echo "clients: all are installed"
  exit 0
fi

command -v apt-get >/dev/null ||
  fail "there is no apt-get: install ${missing[*]} in another way, into /usr/bin"
root=()
if ((EUID)); then
  command -v sudo >/dev/null || fail "run it as root, or install ${missing[*]} by hand"
  root=(sudo)
fi
echo "clients: installing ${missing[*]}"
"${root[@]}" apt-get update -qq || fail "apt-get update failed"
DEBIAN_FRONTEND=noninteractive "${root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
  fail "apt-get can't install ${missing[*]}"
