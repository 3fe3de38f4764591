#!/usr/bin/env bash
# Makes a release, step by step; .github/workflows/release.yml runs these steps, and `dry-run` all
# that needs no GitHub:
#
#   image/release.sh source [TAG]      checks that the sources have one version, and that of the tag
#   image/release.sh packages          installs what the other steps need of Debian or Ubuntu (as root or by sudo)
#   image/release.sh build [ARCH]      builds the binaries and the image of one architecture
#   image/release.sh assemble          makes all files of the release of what `build` made for both, checks and
#                                      lists them: target/release-files
#   image/release.sh login REGISTRY    logs in to REGISTRY as REGISTRY_USER with REGISTRY_PASSWORD
#   image/release.sh publish REGISTRY  pushes image and chart to REGISTRY, as in ghcr.io/ecr-injector
#   image/release.sh sign REGISTRY     signs image, chart and files with cosign, without a key
#   image/release.sh try REGISTRY KUBERNETES
#                                      installs the chart and install.yaml on a new kind cluster, of the Kubernetes
#                                      `oldest` or `newest`, and has Pods created (tests/tools/kind/try.sh)
#   image/release.sh announce          creates the release on GitHub, with its files
#   image/release.sh dry-run           does source, build, assemble and publish of a clean clone, to a registry of
#                                      its own, and runs the image
#
# `assemble` runs the binaries: those of another architecture by qemu-user. PROFILE=quick has `build`
# and `dry-run` build them without optimization, in minutes: for trying the steps, not for a release.
set -euo pipefail
name=release
# shellcheck source=image/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# The home of the project, as the chart has it.
home=$(sed -n 's/^home: //p' charts/ecr-injector/Chart.yaml)
export IMAGE_SOURCE=$home
parts=$target/release-parts files=$target/release-files
architectures=(amd64 arm64)

run() { # a subcommand of release.py, and its arguments
  "${PYTHON:-python3}" image/release.py "$1" --version "$version" "${@:2}"
}

tool() { # a set of tests/tools/build.sh: prints the program
  local variable
  case $1 in helm) variable=${HELM:-} ;; *) variable= ;; esac
  tests/tools/build.sh "$1" >&2
  echo "${variable:-$target/$1/$1}"
}

needs() { # program, what to install
  command -v "$1" >/dev/null || fail "$1 is needed: install $2"
}

packages() {
  local wanted=(musl-tools ca-certificates qemu-user) sudo=()
  [[ $host != amd64 ]] || wanted+=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross)
  [[ $(id -u) == 0 ]] || sudo=(sudo)
  needs apt-get "the packages ${wanted[*]} by your distribution's means"
  "${sudo[@]}" apt-get update -qq
  "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${wanted[@]}"
}

build() {
  [[ -z ${PROFILE:-} || -z ${GITHUB_ACTIONS:-} ]] || fail "PROFILE is $PROFILE: a release has no profile but its own"
  local arch=${1:-$host} output program binary
  output=$parts/linux-$arch
  rm -rf "$output"
  mkdir -p "$output"
  for program in ecr-injector ecr-credentials; do
    binary=$(image/binary.sh --arch "$arch" ${PROFILE:+--profile "$PROFILE"} --messages "$output/$program.messages" "$program")
    cp "$binary" "$output"
  done
  image/build.sh --arch "$arch" --binary "$output/ecr-injector" --output "$output"
  # Only as it is released is it small.
  [[ $arch != "$host" || ${PROFILE:-} ]] || tests/tools/small-binary.sh "$output/ecr-credentials"
}

# The command that runs a binary of the architecture $1 here.
runner() {
  local emulator=qemu-x86_64
  [[ $1 != arm64 ]] || emulator=qemu-aarch64
  if [[ $1 == "$host" ]]; then
    echo
  else
    needs "$emulator" "qemu-user, with which the binaries for $1 are run"
    echo "$emulator"
  fi
}

archives() { # the folder to work in
  local arch program folder shell
  # They are the same for both architectures, so one that runs here writes them.
  mkdir -p "$1/extra/completions"
  program=$parts/linux-$host/ecr-injector
  "$program" man --dir "$1/extra/man"
  for shell in bash:ecr-injector.bash zsh:_ecr-injector fish:ecr-injector.fish \
    elvish:ecr-injector.elv powershell:_ecr-injector.ps1; do
    "$program" completion "${shell%%:*}" >"$1/extra/completions/${shell#*:}"
  done
  cp LICENSE README.md CHANGELOG.md "$1/extra"
  for program in ecr-injector ecr-credentials; do
    for arch in "${architectures[@]}"; do
      folder=$1/$program-$arch
      install -D -m 0755 "$parts/linux-$arch/$program" "$folder/$program"
      if [[ $program == ecr-injector ]]; then
        cp -R "$1/extra/." "$folder"
      else
        cp LICENSE README.md "$folder"
      fi
      archive "$folder" "$1/archive.tar" $(ls "$folder")
      gzip -9 --no-name --stdout "$1/archive.tar" >"$files/$program-$version-linux-$arch.tar.gz"
    done
  done
}

# The chart, with the digest of the image in its values, and packed with the time of the commit.
chart() { # the folder to work in, the digest
  local chart=$1/ecr-injector
  cp -R charts/ecr-injector "$chart"
  cp LICENSE "$chart"
  replace() { # file, what stands there once, what is to stand there
    [[ $(grep -c -- "$2" "$chart/$1") == 1 ]] || fail "charts/ecr-injector/$1 has not exactly one line $2"
    sed -i "s#$2#$3#" "$chart/$1"
  }
  replace values.yaml '^  digest: ""$' "  digest: \"$2\""
  replace README.md '^| `image.digest` | `""` |' "| \`image.digest\` | \`\"$2\"\` |"
  replace Chart.yaml "^\( *image: .*:$version\)\$" "\\1@$2"
  find "$chart" -exec touch --no-dereference --date "@$epoch" {} +
  "$helm" package "$chart" --destination "$files" >/dev/null
}

manifest() {
  {
    echo "# ecr-injector $version, rendered from its chart: kubectl apply --server-side -f install.yaml"
    # Without what its head says of deploy/.
    sed '/^apiVersion/,$!d' deploy/namespace.yaml
    "$helm" template ecr-injector "$files/ecr-injector-$version.tgz" --namespace ecr-injector --skip-tests
  } >"$files/install.yaml"
}

assemble() {
  local arch digest images=() options=()
  helm=$(tool helm)
  rm -rf "$files"
  mkdir -p "$files"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  for arch in "${architectures[@]}"; do
    [[ -f $parts/linux-$arch/ecr-credentials ]] || fail "there is no ${parts#"$root/"}/linux-$arch: build it first"
    # What a workflow hands from job to job loses its mode.
    chmod +x "$parts/linux-$arch"/ecr-{injector,credentials}
    images+=("$parts/linux-$arch/ecr-injector-$version.tar")
    options+=(--run "$arch=$(runner "$arch")")
  done
  digest=$(run index --folder "$files" --epoch "$epoch" "${images[@]}")
  archives "$work"
  chart "$work" "$digest"
  manifest
  run sbom --folder "$files" --created "$created" --parts "$parts"
  run krew --folder "$files"
  run checksums --folder "$files"
  run table --folder "$files" | tee "$target/release-table.txt"
  run check --folder "$files" --commit "$revision" "${options[@]}"
}

# crane writes docker's configuration, which helm and cosign read too.
login() {
  local registry=${1:?release: login needs a registry, as in ghcr.io/ecr-injector} crane
  crane=$(tool crane)
  : "${REGISTRY_USER:?release: login needs REGISTRY_USER}"
  printf %s "${REGISTRY_PASSWORD:?release: login needs REGISTRY_PASSWORD}" |
    "$crane" auth login "${registry%%/*}" --username "$REGISTRY_USER" --password-stdin
}

# A pushed image is compared with the digest that chart and manifest name.
publish() {
  local registry=${1:?release: publish needs a registry, as in ghcr.io/ecr-injector} layout digest pushed plain=()
  helm=$(tool helm)
  crane=$(tool crane)
  [[ $registry != 127.0.0.1:* ]] || plain=(--plain-http)
  digest=$(run digest --folder "$files")
  layout=$(mktemp -d)
  tar --extract --file "$files/ecr-injector-$version-image.tar" --directory "$layout"
  "$crane" push "$layout" "$registry/ecr-injector:$version"
  rm -rf "$layout"
  pushed=$("$crane" digest "$registry/ecr-injector:$version")
  [[ $pushed == "$digest" ]] || fail "$registry/ecr-injector:$version is $pushed, and $digest was pushed"
  "$helm" push "$files/ecr-injector-$version.tgz" "oci://$registry/charts" "${plain[@]}"
  chart_digest=$("$crane" digest "$registry/charts/ecr-injector:$version")
  if [[ ${GITHUB_OUTPUT:-} ]]; then
    printf 'image=%s\nchart=%s\n' "$digest" "$chart_digest" >>"$GITHUB_OUTPUT"
  fi
  echo "release: pushed $registry/ecr-injector@$digest and $registry/charts/ecr-injector@$chart_digest"
}

# By the identity of the workflow that runs this (cosign's "keyless"), logged in the transparency log.
sign() {
  local registry=${1:?release: sign needs a registry, as in ghcr.io/ecr-injector} arch file crane it
  crane=$(tool crane)
  needs cosign "cosign 3 (https://docs.sigstore.dev/cosign/system_config/installation)"
  for it in ecr-injector charts/ecr-injector; do
    cosign sign --yes "$registry/$it@$("$crane" digest "$registry/$it:$version")"
  done
  for arch in "${architectures[@]}"; do
    cosign attest --yes --type spdxjson --predicate "$files/ecr-injector-$version-linux-$arch.spdx.json" \
      "$registry/ecr-injector@$("$crane" digest --platform "linux/$arch" "$registry/ecr-injector:$version")"
  done
  for file in "$files"/*; do
    [[ $file == *.sigstore.json ]] || cosign sign-blob --yes --bundle "$file.sigstore.json" "$file"
  done
}

announce() {
  local options=()
  needs gh "GitHub's command line (https://cli.github.com)"
  [[ $version != *-* ]] || options=(--prerelease)
  # The section of this version.
  awk -v heading="## [$version]" 'index($0, "## [") == 1 {inside = index($0, heading) == 1; next} inside' \
    CHANGELOG.md >"$target/release-notes.md"
  gh release create "v$version" --verify-tag --title "v$version" --notes-file "$target/release-notes.md" \
    "${options[@]}" "$files"/*
}

dry_run() {
  local clone=$target/release-clone started=$SECONDS arch port
  [[ $host == amd64 ]] || fail "dry-run cross-compiles from x86_64 alone; build and assemble work here too"
  needs musl-gcc "musl-tools (make release-packages)"
  needs aarch64-linux-gnu-gcc "gcc-aarch64-linux-gnu and libc6-dev-arm64-cross (make release-packages)"
  needs qemu-aarch64 "qemu-user (make release-packages)"
  [[ -z $(git status --porcelain) ]] || echo "release: what isn't committed is no part of a dry run" >&2
  rm -rf "$clone"
  git clone --quiet --no-hardlinks . "$clone"
  cd "$clone"
  export CARGO_TARGET_DIR=$target
  image/release.sh source
  for arch in "${architectures[@]}"; do
    image/release.sh build "$arch"
  done
  image/release.sh assemble
  local_registry
  image/release.sh publish "127.0.0.1:$port"
  pulled
  checks_find_mistakes
  echo "release: the image of $host serves"
  ECR_INJECTOR_IMAGE=$parts/linux-$host/ecr-injector-$version.tar \
    "${CARGO:-cargo}" test --locked --quiet --test image -- ${PROFILE:+--skip image_is_small --skip image_takes_little_memory}
  echo "release: the dry run took $(((SECONDS - started) / 60)) min"
}

# Serves a registry until this script ends, and sets its port.
local_registry() {
  crane=$(tool crane)
  work=$(mktemp -d)
  "$crane" registry serve --address 127.0.0.1:0 >"$work/log" 2>&1 &
  trap 'kill '$!'; rm -rf "$work"' EXIT
  for _ in $(seq 50); do
    port=$(sed -n 's/.*serving on port \([0-9]*\).*/\1/p' "$work/log")
    [[ -z $port ]] || return 0
    sleep 0.2
  done
  fail "the registry of the dry run doesn't start: $(cat "$work/log")"
}

# As a user would: the chart by its version, the image that it names by its digest.
pulled() {
  local helm image
  helm=$(tool helm)
  "$helm" pull "oci://127.0.0.1:$port/charts/ecr-injector" --version "$version" --plain-http --destination "$work"
  cmp "$work/ecr-injector-$version.tgz" "$files/ecr-injector-$version.tgz"
  image=$("$helm" template x "$work/ecr-injector-$version.tgz" --set "image.registry=127.0.0.1:$port" \
    --set image.repository=ecr-injector | sed -n 's/^ *image: *"\{0,1\}\([^"]*\)"\{0,1\}$/\1/p' | sort -u)
  for arch in "${architectures[@]}"; do
    "$crane" pull --platform "linux/$arch" "$image" "$work/$arch.tar"
  done
  echo "release: chart and image can be pulled: $image"
}

# What a check is worth that nothing fails: spoils a copy of the files, and expects the fault.
checks_find_mistakes() {
  spoiled binaries "ecr-injector is for the ELF machine 183, and 62 was expected" \
    cp "ecr-injector-$version-linux-arm64.tar.gz" "ecr-injector-$version-linux-amd64.tar.gz"
  spoiled sboms "ecr-injector-$version-linux-arm64.spdx.json lacks rustls " \
    sed -i 's/"name": "rustls"/"name": "rustls-of-another"/' "ecr-injector-$version-linux-arm64.spdx.json"
  spoiled sboms "ecr-credentials-$version-linux-amd64.spdx.json has rustls-of-another " \
    sed -i 's/"name": "rustls"/"name": "rustls-of-another"/' "ecr-credentials-$version-linux-amd64.spdx.json"
  spoiled manifest "install.yaml has the image" sed -i 's/@sha256:/@sha256:0/' install.yaml
  echo "release: the checks find what is spoiled"
}

spoiled() { # group of checks, the fault, the command that spoils
  local found
  rm -rf "$work/files"
  cp -R "$files" "$work/files"
  (cd "$work/files" && "${@:3}")
  if found=$(run check --folder "$work/files" --only "$1" 2>&1); then
    fail "the checks of $1 don't find: ${*:3}"
  fi
  [[ $found == *"$2"* ]] || fail "the checks of $1 find another fault than '$2': $found"
}

case ${1:-} in
  source) run source --tag "${2:-}" ;;
  packages | build | assemble | login | publish | sign | announce) "$@" ;;
  try) tests/tools/kind/try.sh "${@:2}" ;;
  dry-run) dry_run ;;
  *) fail "name a step: source, packages, build, assemble, login, publish, sign, try, announce or dry-run" ;;
esac
