#!/usr/bin/env bash
# Makes the container image without a container engine: an OCI archive of what the Dockerfile makes.
#
#   image/build.sh                    builds the binary, and writes target/image/ecr-injector-VERSION.tar and .digest
#   image/build.sh --binary FILE      takes this static binary
#   image/build.sh --output FOLDER    writes there
#   image/build.sh --arch arm64       of that architecture, with a cross compiler
#
# IMAGE_SOURCE is the URL of the repository that the label `source` names. Of the same commit, on the same machine, it
# makes the same bytes: what has a time has the commit's, or SOURCE_DATE_EPOCH.
set -euo pipefail
name=image
# shellcheck source=image/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

arch=$host binary="" output=$target/image
while (($#)); do
  case $1 in
    --arch) arch=${2:?image: --arch needs an architecture} && shift ;;
    --binary) binary=$(realpath "${2:?image: --binary needs a file}") && shift ;;
    --output) output=$(realpath -m "${2:?image: --output needs a folder}") && shift ;;
    *) fail "there is no option $1: --arch ARCH, --binary FILE and --output FOLDER are all" ;;
  esac
  shift
done
triple_of "$arch" >/dev/null

authorities=/etc/ssl/certs/ca-certificates.crt
[[ -s $authorities ]] || fail "there is no $authorities, which goes into the image: install ca-certificates"

[[ $binary ]] || binary=$(image/binary.sh --arch "$arch" ecr-injector)
[[ $(git rev-parse HEAD 2>/dev/null || echo unknown) == "${revision%-dirty}" ]] ||
  fail "the commit is another than when the binary was begun: the image would name the wrong one. Run it again"
[[ -x $binary ]] || fail "there is no executable $binary"

tests/tools/build.sh umoci
umoci=${UMOCI:-$target/umoci/umoci}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

layout=$work/layout
image=$layout:$version
"$umoci" init --layout "$layout"
"$umoci" new --image "$image"
layer() { # mode, file, its path in the image
  rm -rf "$work/layer"
  install -D -m "$1" "$2" "$work/layer$3"
  archive "$work/layer" "$work/layer.tar" "$(cut -d/ -f2 <<<"$3")"
  "$umoci" raw add-layer --image "$image" --history.created "$created" --history.created_by "COPY $3" "$work/layer.tar"
}
layer 0644 "$authorities" /etc/ssl/certs/ca-certificates.crt
layer 0755 "$binary" /usr/local/bin/ecr-injector

label=org.opencontainers.image
"$umoci" config --image "$image" --no-history --created "$created" --os linux --architecture "$arch" \
  --config.user 65532:65532 \
  --config.exposedports 8443/tcp --config.exposedports 8080/tcp \
  --config.entrypoint /usr/local/bin/ecr-injector --config.cmd serve \
  --config.label "$label.title=$(field name)" \
  --config.label "$label.description=$(field description)" \
  --config.label "$label.version=$version" \
  --config.label "$label.licenses=$(field license)" \
  --config.label "$label.source=${IMAGE_SOURCE:-}" \
  --config.label "$label.revision=$revision" \
  --config.label "$label.created=$created"
"$umoci" gc --layout "$layout" >/dev/null

archive "$layout" "$work/image.tar" blobs index.json oci-layout
mkdir -p "$output"
file=$output/ecr-injector-$version
mv "$work/image.tar" "$file.tar"
sed 's/.*"digest":"\(sha256:[0-9a-f]*\)".*/\1/' "$layout/index.json" >"$file.digest"
echo "image: ${file#"$root"/}.tar, $(($(stat -c %s "$file.tar") / 1000)) kB, linux/$arch, $(cat "$file.digest")"
