#!/usr/bin/env bash
# Installs the programs that check documents and workflows, and Cargo's helpers, once, into
# target/tools:
#
#   tests/tools/install.sh python node mdbook cargo-deny
#
# python   typos, lychee and zizmor, pinned in python/requirements.txt, into python/bin
# promtool promtool of the distribution's package prometheus, into promtool; PROMTOOL names another
# node     markdownlint-cli2, pinned in node/package-lock.json, into node/node_modules/.bin
# other    a crate, pinned in cargo.txt, into bin
#
# A set is installed again when the file that pins it changes.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
tools="${CARGO_TARGET_DIR:-$root/target}/tools"

fail() {
  echo "$set: $*" >&2
  exit 1
}

# Prints what the set $1 is pinned by; fails if there is no such set.
pins() {
  case $1 in
  python) cat "$here/python/requirements.txt" ;;
  node) cat "$here/node/package.json" "$here/node/package-lock.json" ;;
  promtool) echo "of the distribution" ;;
  *) grep "^$1 " "$here/cargo.txt" ;;
  esac
}

# Prints a program of the set $1, which has to be there and to be executable.
program() {
  case $1 in
  python) echo "$tools/python/bin/typos" ;;
  node) echo "$tools/node/node_modules/.bin/markdownlint-cli2" ;;
  promtool) echo "$tools/promtool/promtool" ;;
  *) echo "$tools/bin/$1" ;;
  esac
}

python() {
  local interpreter=${PYTHON:-python3}
  command -v "$interpreter" >/dev/null ||
    fail "Python 3.11 or newer is needed (Debian: apt-get install python3-venv);" \
      "PYTHON names one that is not in the PATH"
  "$interpreter" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "Python 3.11 or newer is needed, and $interpreter is $("$interpreter" --version);" \
      "name another in PYTHON"
  "$interpreter" -c 'import ensurepip' 2>/dev/null ||
    fail "$interpreter can't make virtual environments (Debian: apt-get install python3-venv)"
  rm -rf "$tools/python"
  "$interpreter" -m venv "$tools/python"
  "$tools/python/bin/pip" install --quiet --disable-pip-version-check --no-deps \
    --only-binary :all: --require-hashes --requirement "$here/python/requirements.txt"
}

node() {
  if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    fail "Node.js 20 or newer with npm is needed (Debian: apt-get install nodejs npm;" \
      "https://nodejs.org)"
  fi
  local major
  major=$(command node --version | sed 's/^v\([0-9]*\).*/\1/')
  ((major >= 20)) ||
    fail "Node.js 20 or newer is needed, and this is $(command node --version) (https://nodejs.org)"
  rm -rf "$tools/node"
  mkdir -p "$tools/node"
  cp "$here/node/package.json" "$here/node/package-lock.json" "$tools/node"
  npm ci --prefix "$tools/node" --ignore-scripts --no-audit --no-fund --loglevel=error \
    >/dev/null
}

# Takes promtool out of Debian's or Ubuntu's package: to build it from its module takes minutes.
promtool() {
  local folder
  if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    fail "apt-get and dpkg-deb are needed to get promtool; elsewhere set PROMTOOL to one" \
      "(https://prometheus.io/download)"
  fi
  folder=$(mktemp -d)
  (cd "$folder" && apt-get download prometheus >log 2>&1) || {
    cat "$folder/log" >&2
    rm -rf "$folder"
    fail "apt-get could not download the package prometheus: run apt-get update, or set PROMTOOL"
  }
  dpkg-deb --extract "$folder"/prometheus_*.deb "$folder/root"
  mkdir -p "$tools/promtool"
  mv "$folder/root/usr/bin/promtool" "$tools/promtool/promtool"
  rm -rf "$folder"
}

# Cargo builds a crate without optimization: the build takes longer than all runs together.
crate() {
  local name version arguments
  read -r name version arguments < <(pins "$1")
  command -v cargo >/dev/null || fail "Rust is needed (https://rustup.rs)"
  # shellcheck disable=SC2086 # arguments are separate words
  CARGO_PROFILE_DEV_DEBUG=0 cargo install "$name" --version "$version" --locked --debug --quiet \
    --force --root "$tools" $arguments
}

for set in "$@"; do
  if [[ $set == promtool && -n "${PROMTOOL:-}" ]]; then
    "$PROMTOOL" --version >/dev/null 2>&1 ||
      fail "PROMTOOL is $PROMTOOL, which doesn't run; name one, or unset the variable"
    continue
  fi
  want=$(pins "$set" | sha256sum | cut -d' ' -f1) || fail "there is no such set of programs; see $0"
  stamp="$tools/.$set.installed"
  [[ -x "$(program "$set")" && "$(cat "$stamp" 2>/dev/null)" == "$want" ]] && continue
  started=$SECONDS
  echo "$set: installing into ${tools#"$root/"}, once"
  mkdir -p "$tools"
  rm -f "$stamp"
  case $set in
  python | node | promtool) "$set" ;;
  *) crate "$set" ;;
  esac
  echo "$want" >"$stamp"
  echo "$set: ready ($((SECONDS - started)) s)"
done
