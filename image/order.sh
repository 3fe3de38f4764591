#!/usr/bin/env bash
# Prints the names of the functions that runs called, those that most of the runs called first: the order in which
# image/linker.sh puts them.
#
#   image/order.sh REPORT...    reports of callgrind (--demangle=no), one for each run
set -euo pipefail
export LC_ALL=C
folder=$(dirname "${BASH_SOURCE[0]}")
(($#)) || { echo "order: name the reports of callgrind" >&2 && exit 1; }
for report; do
  [[ -s $report ]] || { echo "order: $report is empty: did its run end?" >&2 && exit 1; }
  # `fn=(7) name`, and from then on `fn=(7)`; `cfn=` for a callee.
  sed -nE "s/^c?fn=\([0-9]+\) ([^'(][^']*).*$/\1/p" "$report" | sed '/^0x/d' | "$folder/names.sh" | sort -u
done | sort | uniq -c | sort -k 1,1nr -k 2 | sed -E 's/^ *[0-9]+ //'
