#!/usr/bin/env bash
# Runs the fuzz targets (fuzz/), one after the other:
#
#   tests/tools/fuzz.sh run [TARGET...]        each for FUZZ_SECONDS (60); fails if one finds anything
#   tests/tools/fuzz.sh minimize [TARGET...]   writes what is worth keeping into fuzz/corpus
#   tests/tools/fuzz.sh list                   only lists the targets
#
# Inputs that reach new code are kept in target/fuzz/corpus for the next run; findings are in
# target/fuzz/artifacts. The names of further settings are in the function `settings`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

settings() {
  # How long each target runs, in seconds.
  seconds=${FUZZ_SECONDS:-60}
  # A sanitizer of rustc, which takes a nightly toolchain: address. There is no `unsafe` code here,
  # so that without one the same checks run twice as often.
  sanitizer=${FUZZ_SANITIZER:-none}
  # The toolchain; empty for the one that everything is built with.
  toolchain=${FUZZ_TOOLCHAIN:-}
  # The longest input, in bytes.
  longest=${FUZZ_MAX_LENGTH:-4096}
  # The most that the files of one corpus in the tree may have, in bytes.
  budget=${FUZZ_CORPUS_BYTES:-24000}
}

settings
root=$PWD
work=${CARGO_TARGET_DIR:-$root/target}/fuzz
export CARGO_TARGET_DIR=$work/build/${toolchain:-pinned}-$sanitizer

fail() {
  echo "fuzz: $*" >&2
  exit 1
}

targets() {
  for file in fuzz/targets/*.rs; do
    basename "$file" .rs
  done
}

# Builds the targets. The dependencies are those of a release: to the lock file, only what the fuzzer
# needs is added; and no crate is compiled otherwise because it is fuzzed (--no-cfg-fuzzing).
build() {
  if [[ -n $toolchain ]] && ! rustc "+$toolchain" --version >/dev/null 2>&1; then
    rustup toolchain install --profile minimal "$toolchain"
  fi
  cp Cargo.lock fuzz/Cargo.lock
  cargo ${toolchain:+"+$toolchain"} fuzz build --fuzz-dir fuzz --no-cfg-fuzzing --sanitizer "$sanitizer"
}

# The program of the target $1.
program() {
  local host
  host=$(rustc -vV | sed -n 's/^host: //p')
  echo "$CARGO_TARGET_DIR/$host/release/$1"
}

# Runs the target $1 and prints a line about it.
run() {
  local name=$1 log=$work/$1.log code=0 user
  mkdir -p "$work/corpus/$name" "$work/artifacts/$name"
  local arguments=(
    "$work/corpus/$name" "fuzz/corpus/$name"
    "-dict=fuzz/dictionaries/$name.dict" "-artifact_prefix=$work/artifacts/$name/"
    "-max_total_time=$seconds" "-max_len=$longest" -timeout=10 -rss_limit_mb=2048
    -print_final_stats=1 -use_value_profile=1
  )
  local TIMEFORMAT=%U
  user=$( { time "$(program "$name")" "${arguments[@]}" >"$log" 2>&1 || code=$?; echo "$code" >"$work/code"; } 2>&1)
  code=$(<"$work/code")
  figure() { sed -n "s/^stat::$1: *//p" "$log" | tail -1; }
  printf '%-12s %8s CPU-s %11s inputs %7s/s  cover %s, corpus %s files: ' "$name" "$user" \
    "$(figure number_of_executed_units)" "$(figure average_exec_per_sec)" \
    "$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -1)" \
    "$(find "$work/corpus/$name" -type f | wc -l)"
  if ((code != 0)); then
    echo "FOUND SOMETHING, exit code $code; the end of $log:"
    grep -av '^#\|^stat::\|DE: ' "$log" | tail -25
    return 1
  fi
  echo ok
}

# Keeps the fewest inputs that reach all that the inputs so far reach, the smallest first, up to the
# budget.
minimize() {
  local name=$1 merged=$work/merged/$1 total=0 size file
  rm -rf "$merged"
  mkdir -p "$merged" "$work/corpus/$name" "fuzz/corpus/$name"
  "$(program "$name")" -set_cover_merge=1 -max_len="$longest" "$merged" "fuzz/corpus/$name" \
    "$work/corpus/$name" >"$work/$name.merge.log" 2>&1 || fail "$name: see $work/$name.merge.log"
  # Seeds that were written by hand have a name, and stay.
  find "fuzz/corpus/$name" -type f -regextype posix-extended -regex '.*/[0-9a-f]{40}' -delete
  total=$(find "fuzz/corpus/$name" -type f -printf '%s\n' | awk '{sum += $1} END {print sum + 0}')
  while read -r size file; do
    ((total + size <= budget)) || break
    total=$((total + size))
    cp "$file" "fuzz/corpus/$name/$(sha1sum "$file" | cut -d' ' -f1)"
  done < <(find "$merged" -type f -printf '%s %p\n' | sort -n)
  echo "$name: $(find "fuzz/corpus/$name" -type f | wc -l) files, $total bytes"
}

command=${1:-}
shift || true
(($# > 0)) || mapfile -t all < <(targets)
(($# > 0)) || set -- "${all[@]}"
case $command in
run)
  build
  failed=()
  for name in "$@"; do
    run "$name" || failed+=("$name")
  done
  ((${#failed[@]} == 0)) || fail "${failed[*]}: what was found is in $work/artifacts"
  ;;
minimize)
  build
  for name in "$@"; do
    minimize "$name"
  done
  ;;
list) targets ;;
*) fail "the first argument is run, minimize or list; see $0" ;;
esac
