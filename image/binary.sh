#!/usr/bin/env bash
# Builds a static binary, and prints its path:
#
#   image/binary.sh [--arch amd64|arm64] [--profile PROFILE] [--messages FILE] [--symbols] BINARY
#
# BINARY is ecr-injector or ecr-credentials. It names no folder of this machine, and no time but the
# commit's. For the architecture that this machine hasn't got, gcc's cross compiler compiles the parts
# in C and links. PROFILE is another than that of releases. FILE gets cargo's messages, which name each
# crate that was compiled. With --symbols the names of functions stay in it.
set -euo pipefail
name=binary
# shellcheck source=image/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

arch=$host binary="" profile="" messages=/dev/null symbols=""
while (($#)); do
  case $1 in
    --arch) arch=${2:?binary: --arch needs an architecture} && shift ;;
    --profile) profile=${2:?binary: --profile needs a profile of Cargo.toml} && shift ;;
    --messages) messages=$(realpath -m "${2:?binary: --messages needs a file}") && shift ;;
    --symbols) symbols=1 ;;
    ecr-injector | ecr-credentials) binary=$1 ;;
    *) fail "there is no option and no binary $1: --arch ARCH, --profile PROFILE, --messages FILE, --symbols, ecr-injector and ecr-credentials are all" ;;
  esac
  shift
done
triple=$(triple_of "$arch")
# As it may be loaded anywhere, each pointer in it has a relocation, and these are a tenth of it unless
# packed. Names have all their types, so that one of image/*.order is one function.
flags=(-Clink-arg=-Wl,-z,pack-relative-relocs -Csymbol-mangling-version=v0)
case $binary in
  ecr-injector) profile=${profile:-release} ;;
  # Nothing is unwound where a panic ends the program, so it has no index of the tables for that; most
  # of the tables themselves are still there.
  ecr-credentials)
    profile=${profile:-small}
    flags+=(-Clink-arg=-Wl,--no-eh-frame-hdr -Cforce-unwind-tables=no)
    ;;
  *) fail "name the binary to build: ecr-injector or ecr-credentials" ;;
esac
export LINK_ORDER=$root/image/$binary.order LINK_SYMBOLS=$symbols
# Cargo doesn't know of the files that the linker reads, so their digest has it link again.
digest=$(cat image/binary.sh image/linker.sh image/names.sh "$LINK_ORDER" | sha256sum)
last=(-- "-Clinker=$root/image/linker.sh" -Clinker-flavor=gcc --cfg "linked_by=\"${digest%% *}$symbols\"")

sysroot=$(rustc --print sysroot)
if [[ ! -d $sysroot/lib/rustlib/$triple ]]; then
  rustup target add "$triple" >&2 ||
    fail "Rust's target $triple is not there and couldn't be added: install it (rustup target add $triple), or use the Dockerfile"
fi

# The C compiler. The one of another architecture also links; for this one the usual one does, as musl's
# makes a program that needs musl's loader.
if [[ $arch == "$host" ]]; then
  # ecr-credentials calls nothing that differs between the two C libraries.
  compiler=$(command -v musl-gcc || { [[ $binary == ecr-injector ]] || command -v gcc; }) ||
    fail "musl-gcc is needed for the parts in C: install musl-tools"
else
  machine=${triple%%-*}
  compiler=$(command -v "$machine-linux-gnu-gcc") ||
    fail "$machine-linux-gnu-gcc is needed for $arch (Debian: apt-get install" \
      "gcc-${machine/_/-}-linux-gnu libc6-dev-$arch-cross)"
  export LINK_CC=$compiler
fi

# mimalloc would have the time of its compilation in it. The parts in C don't have the commit's
# either, for which all would be rebuilt each time.
cargo_home=${CARGO_HOME:-$HOME/.cargo}
hash=$(rustc -vV | sed -n 's/^commit-hash: //p')
flags+=(-Ctarget-feature=+crt-static
  "--remap-path-prefix=$cargo_home=/cargo"
  "--remap-path-prefix=$root=/src"
  "--remap-path-prefix=$sysroot/lib/rustlib/src/rust=/rustc/$hash")
# Each place that logs or may panic has its path, which needs no folder of the registry.
for folder in "$cargo_home"/registry/src/*; do
  flags+=("--remap-path-prefix=$folder=/cargo")
done
# In a folder of its own: build scripts are compiled for this machine, here with another environment
# than by any other build, and each would have the other compile half of the dependencies again.
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f' && echo "${flags[*]}") \
  env SOURCE_DATE_EPOCH=0 "ECR_INJECTOR_COMMIT=$revision" "ECR_INJECTOR_BUILD_DATE=$created" \
  "CC_${triple//-/_}=$compiler" \
  "CFLAGS_${triple//-/_}=-ffile-prefix-map=$cargo_home=/cargo -ffile-prefix-map=$root=/src" \
  "${CARGO:-cargo}" rustc --locked --profile "$profile" --bin "$binary" --target "$triple" --target-dir "$target/static" \
  --message-format json-render-diagnostics "${last[@]}" >"$messages"
echo "$target/static/$triple/$profile/$binary"
