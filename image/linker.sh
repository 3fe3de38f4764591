#!/usr/bin/env bash
# Links a binary of a release, as a linker for cargo: puts the functions that a run calls beside each
# other. The kernel maps a program by the neighbourhood of what is called, so a run that calls 50 KB
# of code had 2 MB of it in memory.
#
# The file LINK_ORDER names them, as `make order` found them. What has another name by now, or is
# new, costs memory and nothing else. LINK_CC is the C compiler that links; with LINK_SYMBOLS the
# symbols stay.
set -euo pipefail
folder=$(dirname "${BASH_SOURCE[0]}")
sysroot=$(rustc --print sysroot)
host=$(rustc -vV | sed -n 's/^host: //p')
# The linker that comes with Rust: GNU's takes no order before version 2.43.
lld=$sysroot/lib/rustlib/$host/bin/gcc-ld
if [[ ! -x $lld/ld.lld ]]; then
  echo "linker: there is no $lld/ld.lld, so the program will take more memory" >&2
  exec "${LINK_CC:-cc}" "$@"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
inputs=() arguments=()
for argument; do
  [[ ${LINK_SYMBOLS:-} && $argument == -Wl,--strip-all ]] || arguments+=("$argument")
  case $argument in
    *.o | *.a | *.rlib) inputs+=("$argument") ;;
  esac
done
# Of archives that hold no object files there are no symbols. The nm of this architecture may read
# none of another.
nm=$("${LINK_CC:-cc}" -print-prog-name=nm)
"$nm" --defined-only --format=just-symbols "${inputs[@]}" 2>/dev/null |
  sed -n '/^[^ :]*$/p' | sort -u >"$work/symbols"
"$folder/names.sh" <"$work/symbols" | paste "$work/symbols" - |
  awk -F '\t' 'NR == FNR { rank[$0] = FNR; next } $2 in rank { print rank[$2] "\t" $1 }' \
    "$LINK_ORDER" - | sort -n | cut -f 2 >"$work/order"
"${LINK_CC:-cc}" "${arguments[@]}" -fuse-ld=lld "-B$lld" \
  -Wl,--no-warn-symbol-ordering "-Wl,--symbol-ordering-file=$work/order"
