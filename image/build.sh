#!/usr/bin/env bash
# Makes the container image without a container engine: an OCI archive of what the Dockerfile makes.
#
#   image/build.sh                    builds the binary, and writes target/image/ecr-injector-VERSION.tar and .digest
#   image/build.sh --binary FILE      takes this static binary
#   image/build.sh --output FOLDER    writes there
#
# IMAGE_SOURCE is the URL of the repository that the label `source` names. Of the same commit, on the same machine, it
# makes the same bytes: what has a time has the commit's, or SOURCE_DATE_EPOCH.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
target=${CARGO_TARGET_DIR:-$root/target}

fail() {
  echo "image: $*" >&2
  exit 1
}

binary="" output=$target/image
while (($#)); do
  case $1 in
    --binary) binary=$(realpath "${2:?image: --binary needs a file}") ;;
    --output) output=$(realpath -m "${2:?image: --output needs a folder}") ;;
    *) fail "there is no option $1: --binary FILE and --output FOLDER are all" ;;
  esac
  shift 2
done

field() { sed -n "s/^$1 = \"\(.*\)\".*/\1/p" Cargo.toml | head -1; }
version=$(field version)

case $(uname -m) in
  x86_64) platform=amd64 triple=x86_64-unknown-linux-musl ;;
  aarch64) platform=arm64 triple=aarch64-unknown-linux-musl ;;
  *) fail "no image is made on $(uname -m): build it on x86_64 or aarch64" ;;
esac

authorities=/etc/ssl/certs/ca-certificates.crt
[[ -s $authorities ]] || fail "there is no $authorities, which goes into the image: install ca-certificates"

if revision=$(git rev-parse HEAD 2>/dev/null); then
  epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
  [[ -z $(git status --porcelain) ]] || revision+=-dirty
else
  revision=unknown epoch=${SOURCE_DATE_EPOCH:-}
  [[ $epoch ]] || fail "this is no git checkout: set SOURCE_DATE_EPOCH to the time that the image is to have"
fi
export SOURCE_DATE_EPOCH=$epoch
created=$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)

# A static binary that names no folder of this machine, and no time but the commit's: mimalloc would have that of its
# compilation in it. The parts in C don't have the commit's either, for which all would be rebuilt each time.
build() {
  local sysroot hash cargo_home=${CARGO_HOME:-$HOME/.cargo} flags
  sysroot=$(rustc --print sysroot)
  if [[ ! -d $sysroot/lib/rustlib/$triple ]]; then
    rustup target add "$triple" >&2 ||
      fail "Rust's target $triple is not there and couldn't be added: install it (rustup target add $triple), or use the Dockerfile"
  fi
  command -v musl-gcc >/dev/null || fail "musl-gcc is needed for the parts in C: install musl-tools"
  hash=$(rustc -vV | sed -n 's/^commit-hash: //p')
  flags=(-Ctarget-feature=+crt-static
    "--remap-path-prefix=$cargo_home=/cargo"
    "--remap-path-prefix=$root=/src"
    "--remap-path-prefix=$sysroot/lib/rustlib/src/rust=/rustc/$hash")
  CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f' && echo "${flags[*]}") \
    env SOURCE_DATE_EPOCH=0 "ECR_INJECTOR_COMMIT=$revision" "ECR_INJECTOR_BUILD_DATE=$created" \
    "CFLAGS_${triple//-/_}=-ffile-prefix-map=$cargo_home=/cargo -ffile-prefix-map=$root=/src" \
    "${CARGO:-cargo}" build --locked --release --bin ecr-injector --target "$triple"
  binary=$target/$triple/release/ecr-injector
}
[[ $binary ]] || build
[[ $(git rev-parse HEAD 2>/dev/null || echo unknown) == "${revision%-dirty}" ]] ||
  fail "the commit is another than when the binary was begun: the image would name the wrong one. Run it again"
[[ -x $binary ]] || fail "there is no executable $binary"

tests/tools/build.sh umoci
umoci=${UMOCI:-$target/umoci/umoci}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
archive() { # folder, file, what of the folder
  tar --create --format ustar --sort name --owner 0 --group 0 --numeric-owner --mtime "@$epoch" --mode u=rwX,go=rX \
    --directory "$1" --file "$2" "${@:3}"
}

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

name=org.opencontainers.image
"$umoci" config --image "$image" --no-history --created "$created" --os linux --architecture "$platform" \
  --config.user 65532:65532 \
  --config.exposedports 8443/tcp --config.exposedports 8080/tcp \
  --config.entrypoint /usr/local/bin/ecr-injector --config.cmd serve \
  --config.label "$name.title=$(field name)" \
  --config.label "$name.description=$(field description)" \
  --config.label "$name.version=$version" \
  --config.label "$name.licenses=$(field license)" \
  --config.label "$name.source=${IMAGE_SOURCE:-}" \
  --config.label "$name.revision=$revision" \
  --config.label "$name.created=$created"
"$umoci" gc --layout "$layout" >/dev/null

archive "$layout" "$work/image.tar" blobs index.json oci-layout
mkdir -p "$output"
file=$output/ecr-injector-$version
mv "$work/image.tar" "$file.tar"
sed 's/.*"digest":"\(sha256:[0-9a-f]*\)".*/\1/' "$layout/index.json" >"$file.digest"
echo "image: ${file#"$root"/}.tar, $(($(stat -c %s "$file.tar") / 1000)) kB, linux/$platform, $(cat "$file.digest")"
