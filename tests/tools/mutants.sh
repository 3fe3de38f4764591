#!/usr/bin/env bash
# Runs cargo-mutants, which changes the code in one place at a time and expects a test to fail for
# it:
#
#   tests/tools/mutants.sh diff BASE [ARGUMENT...]   all changes since BASE, committed or not
#   tests/tools/mutants.sh run [ARGUMENT...]         as the arguments say
#   tests/tools/mutants.sh pure [ARGUMENT...]        every pure room
#   tests/tools/mutants.sh list-pure                 only lists the files of the pure rooms
#
# An ARGUMENT goes to `cargo mutants`: --list, --shard 0/8, --file src/image.rs. Settings are in
# .cargo/mutants.toml.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# Dependencies are built once, and stay for the next run.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}/mutants"

fail() {
  echo "mutants: $*" >&2
  exit 1
}

# Lists the files of the pure rooms as tests/rooms.rs has them: a file belongs to the room with the
# longest name that its own name starts with. Unit tests in files of their own are left out.
pure_files() {
  local plan
  plan=$(grep -lE '^const ROOMS:' tests/rooms.rs tests/*/rooms.rs 2>/dev/null | head -1) || true
  [[ -n $plan ]] || fail "no rooms.rs under tests has the list ROOMS"
  {
    sed -nE 's/^ *\("([a-z0-9_\/]+)", (Pure|Acts)\),.*$/\1 \2/p' "$plan"
    find src -name '*.rs' | sort
  } |
    awk '
      NF == 2 { kind[$1] = $2; next }
      /\/tests\.rs$/ { next }
      {
        name = $0; sub(/^src\//, "", name); sub(/\.rs$/, "", name)
        for (room = name; !(room in kind) && room ~ /\//; ) sub(/\/[^\/]*$/, "", room)
        if (kind[room] == "Pure" && name != "lib") print $0
      }'
}

case ${1:-} in
diff)
  base=${2:?the commit to compare with}
  shift 2
  git rev-parse --quiet --verify "$base^{commit}" >/dev/null ||
    fail "there is no commit $base; set BASE"
  diff=$(mktemp)
  trap 'rm -f "$diff"' EXIT
  # From where the branch began, so that what is new on the base doesn't count as a change.
  git diff --no-color --no-ext-diff "$(git merge-base "$base" HEAD)" -- src >"$diff"
  [[ -s $diff ]] || { echo "mutants: nothing in src differs from $base" && exit 0; }
  cargo mutants --in-diff "$diff" "$@"
  ;;
pure)
  shift
  mapfile -t files < <(pure_files)
  ((${#files[@]} >= 10)) || fail "only ${#files[@]} files of pure rooms were found"
  cargo mutants "${files[@]/#/--file=}" "$@"
  ;;
run)
  shift
  cargo mutants "$@"
  ;;
list-pure) pure_files ;;
*) fail "the first argument is diff, run, pure or list-pure; see $0" ;;
esac
