#!/usr/bin/env python3
"""Writes a crate of the pure rooms alone, whose unit tests are built in seconds:

    tests/tools/pure-crate.py FOLDER

cargo-mutants builds a crate once for each mutant, and the whole crate takes most of a minute. The
pure rooms (PURE in tests/offline/rooms.rs) import nothing that acts, so they compile without the
rest, and with few of the dependencies. A file that isn't pure is left out; where it has pure rooms
below it, a file that only declares those takes its place.
"""

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The files that aren't pure, and that unit tests of pure rooms use: they read configurations.
ALSO = """
config config/endpoints config/error config/file config/identities config/load config/patterns
config/refresh config/resolved config/shape config/shape/strict config/value config/warnings
config/within process/files pull_secret/seal
""".split()
DEPENDENCIES = """
base64 hmac http jiff json-patch k8s-openapi schemars secrecy serde serde-saphyr serde_json
serde_path_to_error sha2 similar thiserror tokio tracing tracing-subscriber zeroize
""".split()
DEV_DEPENDENCIES = "insta jsonschema proptest tempfile".split()
MODULE = re.compile(r"^(?:#\[[^\n]*\]\n)*(?:pub(?:\([^)]*\))? )?mod ([a-z_0-9]+);\n", re.MULTILINE)


def pure_rooms():
    plan = (ROOT / "tests/offline/rooms.rs").read_text()
    listed = re.search(r"const PURE: &\[&str\] = &\[(.*?)\];", plan, re.DOTALL)
    return re.findall(r'"([^"]+)"', listed.group(1))


def file_of(room):
    for path in (f"src/{room}.rs", f"src/{room}/mod.rs"):
        if (ROOT / path).exists():
            return Path(path)
    sys.exit(f"pure-crate: {room} has no file in src")


def folder_of(path):
    """Returns the folder of the modules that a file declares."""
    return path.parent if path.name in ("mod.rs", "lib.rs") else path.with_suffix("")


def parent_of(room):
    return room.rsplit("/", 1)[0] if "/" in room else "lib"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def copy_rooms(target):
    kept = set(pure_rooms()) | set(ALSO)
    rooms = set(kept)
    for room in kept:
        while (room := parent_of(room)) != "lib":
            rooms.add(room)
    for room in sorted(rooms):
        path = file_of(room)
        below = {child.rsplit("/", 1)[-1] for child in rooms - {"lib"} if parent_of(child) == room}
        if room not in kept:
            write(target / path, "".join(f"pub mod {name};\n" for name in sorted(below)))
            continue

        def keep(declaration):
            name = declaration.group(1)
            tests = folder_of(path) / f"{name}.rs"
            if name == "tests" and (ROOT / tests).exists():
                write(target / tests, (ROOT / tests).read_text())
                return declaration.group(0)
            return declaration.group(0) if name in below else ""

        write(target / path, MODULE.sub(keep, (ROOT / path).read_text()))


def copy_dependencies(target):
    manifest = (ROOT / "Cargo.toml").read_text()

    def lines(section, names):
        after = manifest.split(f"\n[{section}]\n")[1]
        return [re.search(rf"^{name} = .*$", after, re.MULTILINE).group(0) for name in names]

    text = [
        '[package]\nname = "ecr-injector"\nversion = "0.0.0"\nedition = "2024"\npublish = false',
        "[workspace]",
        "[dependencies]",
        *lines("dependencies", DEPENDENCIES),
        "[dev-dependencies]",
        *lines("dev-dependencies", DEV_DEPENDENCIES),
        '[profile.mutants]\ninherits = "dev"\ndebug = "none"',
        "[profile.dev.package]\nhmac.opt-level = 3\nserde-saphyr.opt-level = 1\nserde_json.opt-level = 1\nsha2.opt-level = 3",
    ]
    write(target / "Cargo.toml", "\n".join(text) + "\n")
    # The same versions; cargo takes out what isn't needed.
    shutil.copy(ROOT / "Cargo.lock", target)
    shutil.copy(ROOT / "rust-toolchain.toml", target)
    for folder in (".cargo", "charts", "docs"):
        shutil.copytree(ROOT / folder, target / folder, dirs_exist_ok=True)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    target = Path(sys.argv[1])
    shutil.rmtree(target / "src", ignore_errors=True)
    copy_rooms(target)
    copy_dependencies(target)


main()
