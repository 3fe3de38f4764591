#!/usr/bin/env bash
# Runs cargo-mutants, which changes the code in one place at a time and expects a test to fail for
# it:
#
#   tests/tools/mutants.sh diff BASE [ARGUMENT...]   all changes since BASE, committed or not
#   tests/tools/mutants.sh run [ARGUMENT...]         as the arguments say
#   tests/tools/mutants.sh pure [ARGUMENT...]        every pure room, as a crate of their own
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

# Lists the files that tests/**/rooms.rs has in its list PURE. A folder's own file is named like the
# folder, and `lib` has no code.
pure_files() {
  local plan name
  plan=$(grep -lE '^const PURE:' tests/rooms.rs tests/*/rooms.rs 2>/dev/null | head -1) || true
  [[ -n $plan ]] || fail "no rooms.rs under tests has the list PURE"
  while read -r name; do
    if [[ -f src/$name.rs ]]; then
      echo "src/$name.rs"
    elif [[ -f src/$name/mod.rs ]]; then
      echo "src/$name/mod.rs"
    else
      fail "$plan lists $name, which has no file"
    fi
  done < <(sed -n '/^const PURE:/,/^];/s/^ *"\([a-z0-9_/]*\)",$/\1/p' "$plan" | grep -vx lib)
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
  listed=$(pure_files)
  mapfile -t files <<<"$listed"
  ((${#files[@]} >= 10)) || fail "only ${#files[@]} files of pure rooms were found"
  # The crate of these alone is built five times as fast. Tests that measure how time grows are left
  # out: they take longer than all others together.
  crate=$CARGO_TARGET_DIR/pure
  "$PWD/tests/tools/pure-crate.py" "$crate"
  PROPTEST_CASES=${PROPTEST_CASES:-64} CARGO_TARGET_DIR=$crate/target \
    cargo mutants --dir "$crate" --output "$CARGO_TARGET_DIR" "${files[@]/#/--file=}" "$@" -- -- \
    --skip alias_bomb_is_an_error --skip long_line_without_spaces_is_read_in_linear_time \
    --skip aliases_are_checked_in_linear_time
  ;;
run)
  shift
  cargo mutants "$@"
  ;;
list-pure) pure_files ;;
*) fail "the first argument is diff, run, pure or list-pure; see $0" ;;
esac
