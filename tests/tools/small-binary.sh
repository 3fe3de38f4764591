#!/usr/bin/env bash
# Builds the small binary as it is released, and checks what nodes need of it: that it is static and small, takes little
# memory, and runs where there is nothing but a CA bundle.
#
#   tests/tools/small-binary.sh           builds, and checks
#   tests/tools/small-binary.sh FILE      checks this binary
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
max_bytes=6000000
# The peak of a run that needs no AWS, and of one that reads all authorities and then finds nobody: 1572 and 3556 when
# this was written. With the functions that are called beside each other (image/ecr-credentials.order, made again by
# `make order`) both are less the better that file fits the code; without it the first is 2700.
max_kilobytes=2000
max_kilobytes_asking=4000
# Of a run that asks AWS three times: a directory of certificates, or memory that is asked for and given back for each
# value, is hundreds. 119 and 3 when this was written.
max_calls=150
max_opens=12

fail() {
  echo "small-binary: $*" >&2
  exit 1
}

binary=${1:-}
[[ $binary ]] || binary=$(image/binary.sh ecr-credentials)
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

# A peak has that of whoever starts the program in it: GNU time is small.
[[ -x /usr/bin/time ]] || fail "GNU time is needed to measure memory (Debian: apt-get install time)"
peak() { # limit, command..., with standard input
  local limit=$1 used
  shift
  env -i /usr/bin/time --quiet --format %M --output "$work/peak" "$@" >"$work/answer" 2>"$work/notes" || true
  used=$(tail -n 1 "$work/peak")
  ((used <= limit)) || fail "a run takes $used KB of memory, and $limit are the most: make order puts what it calls together"
  printf 'small-binary: a run takes %s KB\n' "$used"
}
keys=(AWS_ACCESS_KEY_ID=AKIAFAKE AWS_SECRET_ACCESS_KEY=fake AWS_ENDPOINT_URL_ECR=https://127.0.0.1:1)
request docker.io/library/x | peak "$max_kilobytes" "$work/ecr-credential-provider"
request 210987654321.dkr.ecr.eu-west-1.amazonaws.com/a |
  peak "$max_kilobytes_asking" env "${keys[@]}" "$work/ecr-credential-provider" --cache-dir none
grep -q "can't be reached: Connection refused" "$work/notes" || fail "$(cat "$work/notes")"

command -v strace >/dev/null || fail "strace is needed to count system calls (Debian: apt-get install strace)"
request 210987654321.dkr.ecr.eu-west-1.amazonaws.com/a |
  env -i "${keys[@]}" "$(command -v strace)" -f -qq -o "$work/calls" \
    "$work/ecr-credential-provider" --cache-dir none >"$work/answer" 2>"$work/notes" || true
grep -q "can't be reached: Connection refused" "$work/notes" || fail "$(cat "$work/notes")"
calls=$(grep -cv '<unfinished' "$work/calls")
opens=$(grep -cE ' open(at)?\(' "$work/calls")
((calls <= max_calls)) || fail "a run makes $calls system calls, and $max_calls are the most: strace -c counts them"
((opens <= max_opens)) || fail "a run opens $opens files, and $max_opens are the most"
printf 'small-binary: a run makes %s system calls, and opens %s files\n' "$calls" "$opens"

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
if request 210987654321.dkr.ecr.eu-west-1.amazonaws.com/a |
  env -i "${keys[@]}" "${enter[@]}" /ecr-credential-provider >"$work/answer" 2>"$work/notes"; then
  fail "there is an answer where nobody could give one"
fi
grep -q "can't be reached: Connection refused" "$work/notes" || fail "$(cat "$work/notes")"
[[ $(wc -l <"$work/notes") == 1 ]] || fail "more than a line: $(cat "$work/notes")"

printf 'small-binary: %s: %.1f MB, static, runs in an empty root\n' "$binary" "$((size / 100000))e-1"
