#!/usr/bin/env bash
# Builds the book of docs/ with mdbook, into the folder that docs/book.toml names. mdbook has few
# errors of its own, so each of these fails the build too: a warning, a page that docs/SUMMARY.md
# doesn't list, and a page that isn't there, which mdbook would make as an empty one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

fail() {
  echo "book: $*" >&2
  exit 1
}

[[ -f docs/book.toml ]] || fail "docs/book.toml is not there"
[[ -f docs/SUMMARY.md ]] || fail "docs/SUMMARY.md, the list of the pages, is not there"
grep -Eq '^create-missing *= *false' docs/book.toml ||
  fail "set create-missing = false under [build] in docs/book.toml:" \
    "a page that isn't there should fail the build"

# The pages that the summary links to, one a line, below docs.
listed=$(grep -oE '\]\([^)#]+\.md\)' docs/SUMMARY.md | sed -E 's/^\]\((\.\/)?//; s/\)$//' | sort -u)
there=$(cd docs && find . -name '*.md' ! -path ./SUMMARY.md | sed 's|^\./||' | sort)
unlisted=$(comm -13 <(echo "$listed") <(echo "$there"))
[[ -z $unlisted ]] || fail "docs/SUMMARY.md doesn't list"$'\n'"$unlisted"

output=$(mdbook build docs 2>&1) || fail "mdbook failed:"$'\n'"$output"
echo "$output"
if grep -E '(^|[^[:alnum:]])(WARN|ERROR)([^[:alnum:]]|$)' <<<"$output" >/dev/null; then
  fail "mdbook warns; see above"
fi
