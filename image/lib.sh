# shellcheck shell=bash
# Sourced by the scripts of this folder, which set `name` to what their messages begin with: the
# version, the commit and its time, the architectures. Ends in the root of the repository.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
root=$PWD
target=$(realpath -m "${CARGO_TARGET_DIR:-$root/target}")

fail() {
  echo "$name: $*" >&2
  exit 1
}

# The field $1 of the package in Cargo.toml.
field() { sed -n "s/^$1 = \"\(.*\)\".*/\1/p" Cargo.toml | head -1; }
# shellcheck disable=SC2034 # the scripts use it
version=$(field version)

case $(uname -m) in
  x86_64) host=amd64 ;;
  aarch64) host=arm64 ;;
  *) fail "nothing is built on $(uname -m): build it on x86_64 or aarch64" ;;
esac

# Rust's target for the architecture $1.
triple_of() {
  case $1 in
    amd64) echo x86_64-unknown-linux-musl ;;
    arm64) echo aarch64-unknown-linux-musl ;;
    *) fail "there is no architecture $1: amd64 and arm64 are all" ;;
  esac
}

if revision=$(git rev-parse HEAD 2>/dev/null); then
  epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
  [[ -z $(git status --porcelain) ]] || revision+=-dirty
else
  revision=unknown epoch=${SOURCE_DATE_EPOCH:-}
  [[ $epoch ]] || fail "this is no git checkout: set SOURCE_DATE_EPOCH to the time that the build is to have"
fi
export SOURCE_DATE_EPOCH=$epoch
created=$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)

# Writes the archive $2 of what of the folder $1 the other arguments name: the same bytes whoever
# makes it, and when.
archive() {
  tar --create --format ustar --sort name --owner 0 --group 0 --numeric-owner --mtime "@$epoch" \
    --mode u=rwX,go=rX --directory "$1" --file "$2" "${@:3}"
}
