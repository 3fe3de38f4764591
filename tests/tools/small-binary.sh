#!/usr/bin/env bash
# Builds the small binary as it is released, and checks what nodes need of it: that it is static, small, and runs where
# there is nothing but a CA bundle.
#
#   tests/tools/small-binary.sh           builds, and checks
#   tests/tools/small-binary.sh FILE      checks this binary
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
target=${CARGO_TARGET_DIR:-$PWD/target}
max_bytes=6000000

fail() {
  echo "small-binary: $*" >&2
  exit 1
}

case $(uname -m) in
  x86_64) triple=x86_64-unknown-linux-musl ;;
  aarch64) triple=aarch64-unknown-linux-musl ;;
  *) fail "nothing is built on $(uname -m)" ;;
esac

build() {
  if [[ ! -d $(rustc --print sysroot)/lib/rustlib/$triple ]]; then
    rustup target add "$triple" >&2 || fail "Rust's target $triple couldn't be added: install it (rustup target add $triple)"
  fi
  # The parts in C call nothing that differs between the two libraries, so another compiler does as well.
  local compiler
  compiler=$(command -v musl-gcc || command -v gcc) || fail "a C compiler is needed: install musl-tools"
  # As it may be loaded anywhere, each pointer in it has a relocation, and these are a tenth of it unless packed.
  env "CC_${triple//-/_}=$compiler" "${CARGO:-cargo}" rustc --locked --profile small --bin ecr-credentials \
    --target "$triple" -- -C link-arg=-Wl,-z,pack-relative-relocs
  binary=$target/$triple/small/ecr-credentials
}
binary=${1:-}
[[ $binary ]] || build
[[ -x $binary ]] || fail "there is no executable $binary"

headers=$(readelf --program-headers --wide "$binary")
[[ $headers != *INTERP* ]] || fail "$binary needs a loader"
dynamic=$(readelf --dynamic --wide "$binary")
[[ $dynamic != *NEEDED* ]] || fail "$binary needs a library"
size=$(stat --format %s "$binary")
((size <= max_bytes)) || fail "$binary has $size bytes, and $max_bytes are the most"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
install -D "$binary" "$work/ecr-credential-provider"
request() {
  printf '{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderRequest","image":"%s"}' "$1"
}
expect() { # command..., with standard input
  local answer
  answer=$("$@" 2>"$work/notes") || fail "$* fails: $(cat "$work/notes")"
  [[ $answer == *'"cacheDuration":"600s"}' ]] || fail "$* answers $answer"
}
request docker.io/library/x | expect env -i "$work/ecr-credential-provider"
request docker.io/library/x | expect env -i "$binary" credential-provider get-credentials

# Where there is no /dev, no /proc, no passwd and no resolver's configuration.
authorities=/etc/ssl/certs/ca-certificates.crt
root=$work/root
install -D "$binary" "$root/ecr-credential-provider"
[[ ! -s $authorities ]] || install -D -m 0644 "$authorities" "$root$authorities"
if [[ $(id -u) == 0 ]]; then
  enter=("$(command -v chroot)" "$root")
else
  enter=("$(command -v unshare)" --user --map-root-user "$(PATH=$PATH:/usr/sbin command -v chroot)" "$root")
fi
request docker.io/library/x | expect env -i "${enter[@]}" /ecr-credential-provider
keys=(AWS_ACCESS_KEY_ID=AKIAFAKE AWS_SECRET_ACCESS_KEY=fake AWS_ENDPOINT_URL_ECR=https://127.0.0.1:1)
if request 210987654321.dkr.ecr.eu-west-1.amazonaws.com/a |
  env -i "${keys[@]}" "${enter[@]}" /ecr-credential-provider >"$work/answer" 2>"$work/notes"; then
  fail "there is an answer where nobody could give one"
fi
grep -q "can't be reached: Connection refused" "$work/notes" || fail "$(cat "$work/notes")"
[[ $(wc -l <"$work/notes") == 1 ]] || fail "more than a line: $(cat "$work/notes")"

printf 'small-binary: %s: %.1f MB, static, runs in an empty root\n' "$binary" "$((size / 100000))e-1"
