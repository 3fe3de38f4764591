#!/usr/bin/env bash
# Takes guards out of the chart, the manifests and the documents, one at a time, and demands that the test which holds
# each turns red. Guards in `src` have no patches: every rename would break them.
#
#   tests/sabotage/run.sh                 all patches
#   tests/sabotage/run.sh chart examples  those whose name has one of these words in it
#
# A patch starts with what it takes away and with what cargo has to be told to run the one test that must fail:
#
#   # A value that isn't known is refused.
#   # test: --test chart -- --exact templates::values_that_cannot_be_are_refused_by_the_schema
#
# It counts only if the patch applies, the code still builds, and that test ran and failed; before, on the code as it
# is, it has to pass: where it doesn't, the patches that name it are not tried, and the others are. The work is done in
# copies of the tree under target/sabotage, never in the tree itself.
# SABOTAGE_JOBS (2) copies work side by side.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
root=$PWD
cargo=${CARGO:-cargo}
jobs=${SABOTAGE_JOBS:-2}
work=$root/target/sabotage
built=${CARGO_TARGET_DIR:-$root/target}/debug
export CARGO_TERM_COLOR=never RUST_BACKTRACE=0
export KUBEBUILDER_ASSETS=${KUBEBUILDER_ASSETS:-$root/target/control-plane/bin}
export HELM=${HELM:-${CARGO_TARGET_DIR:-$root/target}/helm/helm}
export KUBE_SCORE=${KUBE_SCORE:-${CARGO_TARGET_DIR:-$root/target}/kube-score/kube-score}
export PROMTOOL=${PROMTOOL:-${CARGO_TARGET_DIR:-$root/target}/tools/promtool/promtool}
unset CARGO_TARGET_DIR

patches=()
for patch in tests/sabotage/*.patch; do
  name=$(basename "$patch" .patch)
  wanted=$(($# == 0))
  for word in "$@"; do [[ $name == *"$word"* ]] && wanted=1; done
  ((wanted)) && patches+=("$name")
done
((${#patches[@]})) || { echo "sabotage: no patch has such a name" >&2; exit 2; }

guard_of() { sed -n '1s/^# //p' "$root/tests/sabotage/$1.patch"; }
test_of() { sed -n '2s/^# test: //p' "$root/tests/sabotage/$1.patch"; }

# The tree as it is, uncommitted changes included. A file that did not change keeps its time, so that it is not built again;
# one that did gets a new one, so that it is.
copy_tree() {
  local file
  mkdir -p "$1"
  git ls-files --cached --others --exclude-standard | sort >"$work/files"
  (cd "$1" && find . -name target -prune -o -type f -print | sed 's,^\./,,' | sort) >"$work/copied"
  comm -13 "$work/files" "$work/copied" | while IFS= read -r file; do rm -- "$1/$file"; done
  while IFS= read -r file; do
    [[ -f $file ]] || continue
    cmp -s "$file" "$1/$file" || install -D -m "$(stat -c %a "$file")" "$file" "$1/$file"
  done <"$work/files"
}

# What is built already of the crates that we depend on. Not our own: cargo would take it for the copy's although it reads
# the files of the tree; and as these are links, what cargo notes in the copy it would note in the tree as well.
seed() {
  local unit
  [[ -d $built/deps && ! -d $1/debug/deps ]] || return 0
  mkdir -p "$1/debug"
  cp -al "$built/deps" "$built/build" "$built/.fingerprint" "$1/debug/" 2>/dev/null || true
  for unit in "$1"/debug/.fingerprint/ecr-injector-*; do
    rm -rf -- "$unit" "$1"/debug/deps/*-"${unit##*-}"*
  done
}

# A word on one run of a test: red, green, or why it is neither.
verdict_of() { # exit code, log
  if grep -qE '^test result: ok\. [1-9]' "$2" && (($1 == 0)); then
    echo green
  elif grep -qE '^test .* \.\.\. FAILED|^test result: FAILED' "$2"; then
    echo red
  elif grep -qE '^error(\[E[0-9]+\])?:' "$2" && ! grep -q '^running ' "$2"; then
    echo "does not build"
  elif (($1 == 0)); then
    echo "runs no test"
  else
    echo "ended with $1"
  fi
}

run_test() { # copy, test's arguments, log
  local code=0
  # shellcheck disable=SC2086
  (cd "$1" && CARGO_TARGET_DIR=$1/target timeout 300 "$cargo" test --locked $2) >"$3" 2>&1 || code=$?
  verdict_of "$code" "$3"
}

worker() { # number
  local tree=$work/tree-$1 log=$work/log name started verdict
  for ((at = $1; at < ${#patches[@]}; at += jobs)); do
    name=${patches[at]}
    started=$SECONDS
    if grep -qxF -- "$(test_of "$name")" "$work/unsound"; then
      verdict="unsound"
      echo "its test does not pass, or is not there, without the patch" >"$log/$name"
    elif ! (cd "$tree" && patch --quiet --forward --fuzz=0 --strip=1 --dry-run) <"tests/sabotage/$name.patch" >"$log/$name" 2>&1; then
      verdict="does not apply"
    else
      (cd "$tree" && patch --quiet --fuzz=0 --no-backup-if-mismatch --strip=1) <"tests/sabotage/$name.patch"
      verdict=$(run_test "$tree" "$(test_of "$name")" "$log/$name")
      (cd "$tree" && patch --quiet --strip=1 --reverse) <"tests/sabotage/$name.patch"
    fi
    echo "$verdict" >"$work/verdict/$name"
    printf '%-8s %3d s  %-38s %s\n' "$verdict" $((SECONDS - started)) "$name" "$(guard_of "$name")"
  done
}

rm -rf "$work/log" "$work/verdict"
mkdir -p "$work/log" "$work/verdict"
for ((n = 0; n < jobs; n++)); do
  copy_tree "$work/tree-$n"
  seed "$work/tree-$n/target"
done

echo "sabotage: ${#patches[@]} guards; first the code as it is"
tests=$(for name in "${patches[@]}"; do test_of "$name"; done)
status=0
: >"$work/unsound"
while read -r target; do
  # All tests of one target in one run.
  names=$(grep -F -- "$target -- --exact " <<<"$tests" | sed 's/.* -- --exact //' | sort -u)
  mapfile -t names <<<"$names"
  verdict=$(run_test "$work/tree-0" "$target -- --exact ${names[*]}" "$work/log/as-it-is")
  bad=()
  for name in "${names[@]}"; do
    grep -qxF -- "test $name ... ok" "$work/log/as-it-is" || bad+=("$name")
  done
  ((${#bad[@]})) || continue
  printf "sabotage: without any patch, '$target' is $verdict; these of its ${#names[@]} tests don't pass, or are not there:\n"
  printf '    %s\n' "${bad[@]}"
  tail -n 30 "$work/log/as-it-is"
  for name in "${bad[@]}"; do echo "$target -- --exact $name"; done >>"$work/unsound"
done < <(sed 's/ -- --exact .*//' <<<"$tests" | sort -u)

for ((n = 0; n < jobs; n++)); do worker "$n" & done
wait

red=0
for name in "${patches[@]}"; do
  verdict=$(cat "$work/verdict/$name" 2>/dev/null || echo "was not tried")
  if [[ $verdict == red ]]; then
    red=$((red + 1))
  else
    status=1
    printf '\nsabotage: %s (tests/sabotage/%s.patch): %s\n' "$(guard_of "$name")" "$name" "$verdict"
    tail -n 15 "$work/log/$name" 2>/dev/null | sed 's/^/    /' || true
  fi
done
echo "sabotage: $red of ${#patches[@]} guards are held by their tests; $SECONDS s"
exit "$status"
