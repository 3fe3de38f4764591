#!/usr/bin/env bash
# Finds the functions that both binaries call, by running them below callgrind, and writes image/ecr-credentials.order and
# image/ecr-injector.order.
#
#   tests/tools/order.sh              of both
#   tests/tools/order.sh BINARY       of one
#
# ORDER_MINUTES is for how long replicas serve. What drives them is built without optimization, which is faster to build.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

command -v valgrind >/dev/null || { echo "order: valgrind is needed (Debian: apt-get install valgrind)" >&2 && exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export REPORTS=$work/reports

of_runs() {
  ECR_CREDENTIALS=$1 "${CARGO:-cargo}" test --locked --bench exec -- --bench
}

# Replicas are started with an environment of their own, so the script names all that they need. They serve with churn and
# faults, for as long as each fault has its turn; what only a killed replica called is in no report.
of_replicas() {
  printf '#!/bin/sh\nexec valgrind --quiet --tool=callgrind --demangle=no "--callgrind-out-file=%s/$$" %s "$@"\n' \
    "$REPORTS" "$1" >"$work/replica"
  chmod +x "$work/replica"
  SOAK_BINARY=$work/replica SOAK_MINUTES=${ORDER_MINUTES:-20} SOAK_NAMESPACES=30 SOAK_CSV=$work/soak.csv \
    "${CARGO:-cargo}" test --locked --bench soak -- --bench ||
    echo "order: of replicas this slow the soak's verdict means nothing" >&2
}

for binary in ${1:-ecr-credentials ecr-injector}; do
  rm -rf "$REPORTS" && mkdir "$REPORTS"
  program=$(image/binary.sh --symbols "$binary")
  case $binary in
    ecr-credentials) of_runs "$program" ;;
    *) of_replicas "$program" ;;
  esac
  find "$REPORTS" -type f -empty -delete # of a replica that was killed
  image/order.sh "$REPORTS"/* >"$work/order"
  [[ $(wc -l <"$work/order") -gt 1000 ]] || { echo "order: only a few functions of $binary were found" >&2 && exit 1; }
  mv "$work/order" "image/$binary.order"
done
