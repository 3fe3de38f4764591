#!/usr/bin/env python3
"""Writes and checks what a release consists of; image/release.sh calls it. It needs Python 3.11
and nothing beside its standard library.

Faults name the file, what it has, and what was expected. The exit code is 1 if there are any.
"""

import argparse
import gzip
import hashlib
import io
import json
import re
import struct
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

ARCHITECTURES = {
    "amd64": ("x86_64-unknown-linux-musl", 62),
    "arm64": ("aarch64-unknown-linux-musl", 183),
}
PROGRAMS = ("ecr-injector", "ecr-credentials")
INDEX = "application/vnd.oci.image.index.v1+json"
HOME = "https://github.com/ecr-injector/ecr-injector"
IMAGE = "ghcr.io/ecr-injector/ecr-injector"


class Release:
    """The names of the files of a release, in its folder."""

    def __init__(self, folder, version):
        self.folder, self.version = Path(folder), version
        self.image = self.folder / f"ecr-injector-{version}-image.tar"
        self.chart = self.folder / f"ecr-injector-{version}.tgz"
        self.manifest = self.folder / "install.yaml"
        self.krew = self.folder / "krew.yaml"
        self.checksums = self.folder / "SHA256SUMS"

    def archive(self, program, arch):
        return self.folder / f"{program}-{self.version}-linux-{arch}.tar.gz"

    def sbom(self, program, arch):
        return self.folder / f"{program}-{self.version}-linux-{arch}.spdx.json"

    def archives(self):
        return [self.archive(program, arch) for program in PROGRAMS for arch in ARCHITECTURES]

    def sboms(self):
        return [self.sbom(program, arch) for program in PROGRAMS for arch in ARCHITECTURES]

    def files(self):
        """Returns all but the checksums, in the order of the table."""
        return [self.image, self.chart, self.manifest, *self.archives(), *self.sboms(), self.krew]


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def member(path, name):
    """Returns the content of a file in an archive, or None."""
    with tarfile.open(path) as archive:
        try:
            return archive.extractfile(name).read()
        except KeyError:
            return None


# -- The image index


def blob(path, digest):
    data = member(path, "blobs/" + digest.replace(":", "/"))
    if data is None or f"sha256:{sha256(data)}" != digest:
        raise SystemExit(f"release: {path} has no blob {digest}, or another under that name")
    return data


def the_manifest(path):
    """Returns the one entry of the index of an OCI archive."""
    entries = json.loads(member(path, "index.json"))["manifests"]
    if len(entries) != 1:
        raise SystemExit(f"release: {path} has {len(entries)} images, and one was expected")
    return entries[0]


def platforms(path):
    """Returns the digest and the configuration of each image in an archive with an index."""
    found = {}
    for entry in json.loads(blob(path, the_manifest(path)["digest"]))["manifests"]:
        manifest = json.loads(blob(path, entry["digest"]))
        config = json.loads(blob(path, manifest["config"]["digest"]))
        found[entry["platform"]["architecture"]] = (entry["digest"], config)
    return found


def write_index(output, archives, epoch):
    """Writes an OCI archive with one index, of the images in these archives, and returns its
    digest."""
    blobs, entries = {}, []
    for path in archives:
        entry = the_manifest(path)
        manifest = json.loads(blob(path, entry["digest"]))
        config = json.loads(blob(path, manifest["config"]["digest"]))
        for digest in (entry["digest"], *(it["digest"] for it in (manifest["config"], *manifest["layers"]))):
            blobs[digest] = blob(path, digest)
        entries.append({
            "mediaType": entry["mediaType"],
            "digest": entry["digest"],
            "size": entry["size"],
            "platform": {"architecture": config["architecture"], "os": config["os"]},
        })
    entries.sort(key=lambda entry: entry["platform"]["architecture"])
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
    digest = f"sha256:{sha256(index)}"
    blobs[digest] = index
    top = {"mediaType": INDEX, "digest": digest, "size": len(index)}
    files = {f"blobs/{name.replace(':', '/')}": data for name, data in blobs.items()}
    files["index.json"] = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [top]}).encode()
    files["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    with tarfile.open(output, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode = len(files[name]), epoch, 0o644
            archive.addfile(entry, io.BytesIO(files[name]))
    return digest


# -- The binaries


class Elf:
    """What there is to know of a program without running it."""

    def __init__(self, data):
        if data[:6] != b"\x7fELF\x02\x01":
            raise ValueError("is no 64-bit little-endian ELF file")
        self.machine = struct.unpack_from("<H", data, 18)[0]
        start = struct.unpack_from("<Q", data, 32)[0]
        size, count = struct.unpack_from("<2H", data, 54)
        kinds = [struct.unpack_from("<I", data, start + index * size)[0] for index in range(count)]
        self.needs_loader = 3 in kinds


def tree(triple, edges):
    """Returns name and version of each crate that cargo says is in a binary for a target."""
    command = ["cargo", "tree", "--locked", "--edges", edges, "--target", triple]
    command += ["--prefix", "none", "--format", "{p}"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return {tuple(line.split(" ")[:2]) for line in lines if line}


# -- The SBOM


def identifier(name, version):
    return "SPDXRef-Package-" + re.sub(r"[^A-Za-z0-9.]", "-", f"{name}-{version}")


def compiled(messages, triple):
    """Returns the identifiers of the packages that cargo compiled for a target, from its messages:
    what it compiled for the machine that builds, such as procedural macros, is in another folder."""
    found = set()
    for line in messages.splitlines():
        message = json.loads(line)
        if message["reason"] == "compiler-artifact" and any(f"/{triple}/" in it for it in message["filenames"]):
            found.add(message["package_id"])
    return found


def key_of(package):
    """Returns name and version of a package, from cargo's identifier."""
    place, _, rest = package.rpartition("#")
    name, _, version = rest.rpartition("@")
    return (name or place.rpartition("/")[2], version)


def spdx(program, version, arch, binary, messages, created):
    """Returns an SPDX document of the crates that cargo compiled into a binary."""
    triple = ARCHITECTURES[arch][0]
    inside = {key_of(package) for package in compiled(messages, triple)}
    root = ("ecr-injector", version)
    if root not in inside:
        raise SystemExit(f"release: {program} for {arch} was built of {sorted(inside)}, without {root}")
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", triple]
    metadata = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    keys = {it["id"]: (it["name"], it["version"]) for it in metadata["packages"]}
    licences = {keys[it["id"]]: it["license"] for it in metadata["packages"]}
    lock = tomllib.loads(Path("Cargo.lock").read_text())["package"]
    checksums = {(it["name"], it["version"]): it.get("checksum") for it in lock}
    packages = []
    for key in sorted(inside, key=lambda key: (key != root, key)):
        package = {
            "SPDXID": identifier(*key),
            "name": key[0],
            "versionInfo": key[1],
            "downloadLocation": "NOASSERTION",
            "filesAnalyzed": False,
            "licenseConcluded": "NOASSERTION",
            "licenseDeclared": (licences.get(key) or "NOASSERTION").replace("/", " OR "),
            "copyrightText": "NOASSERTION",
        }
        if key == root:
            # One crate makes both programs.
            package["name"] = program
            package["downloadLocation"] = f"git+{HOME}@v{version}"
            package["primaryPackagePurpose"] = "APPLICATION"
        else:
            package["externalRefs"] = [{
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": f"pkg:cargo/{key[0]}@{key[1]}",
            }]
        if checksums.get(key):
            package["checksums"] = [{"algorithm": "SHA256", "checksumValue": checksums[key]}]
        packages.append(package)
    relations = [("SPDXRef-DOCUMENT", "DESCRIBES", identifier(*root))]
    for node in metadata["resolve"]["nodes"]:
        for needed in node["deps"]:
            pair = (keys[node["id"]], keys[needed["pkg"]])
            if inside.issuperset(pair) and any(it["kind"] is None for it in needed["dep_kinds"]):
                relations.append((identifier(*pair[0]), "DEPENDS_ON", identifier(*pair[1])))
    name = f"{program}-{version}-linux-{arch}"
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": f"{HOME}/spdx/{name}-{sha256(binary)}",
        "creationInfo": {"created": created, "creators": ["Organization: ecr-injector"]},
        "packages": packages,
        "relationships": [
            {"spdxElementId": one, "relationshipType": relation, "relatedSpdxElement": other}
            for one, relation, other in relations
        ],
    }


# -- krew


def krew(release):
    """Returns the manifest of the kubectl plugin."""
    entries = ""
    for arch in ARCHITECTURES:
        path = release.archive("ecr-injector", arch)
        entries += f"""\
    - selector:
        matchLabels:
          os: linux
          arch: {arch}
      uri: {HOME}/releases/download/v{release.version}/{path.name}
      sha256: {sha256(path.read_bytes())}
      bin: ecr-injector
      files:
        - from: ecr-injector
          to: .
        - from: LICENSE
          to: .
"""
    return f"""\
apiVersion: krew.googlecontainertools.github.com/v1alpha2
kind: Plugin
metadata:
  name: ecr-injector
spec:
  version: v{release.version}
  homepage: {HOME}
  shortDescription: Pull private Amazon ECR images on any cluster
  description: |
    Works with ecr-injector, a mutating admission webhook that adds pull secrets for private Amazon
    ECR images to Pods: finds out what is wrong with an installation (doctor), why a Pod can't pull
    its images (doctor pod), shows manifests as they would be admitted (preview), explains which
    identity mints a token (identity), prints IAM policies (iam) and refreshes or removes pull
    secrets.
  platforms:
{entries}"""


# -- The checks. Each yields faults.


def check_binaries(release, runners, commit):
    for program in PROGRAMS:
        for arch, (_, machine) in ARCHITECTURES.items():
            path = release.archive(program, arch)
            data = member(path, program)
            if data is None:
                yield f"{path.name} has no {program}"
                continue
            try:
                elf = Elf(data)
            except ValueError as error:
                yield f"{path.name}: {program} {error}"
                continue
            if elf.machine != machine:
                yield f"{path.name}: {program} is for the ELF machine {elf.machine}, and {machine} was expected"
            if elf.needs_loader:
                yield f"{path.name}: {program} is not static"
            if arch in runners:
                yield from check_runs(release, path, program, data, runners[arch], commit)


def check_runs(release, path, program, data, runner, commit):
    """Runs a binary, by the emulator if there is one for its architecture."""
    file = release.folder / f".{path.name}.{program}"
    file.write_bytes(data)
    file.chmod(0o755)
    arguments = ["version", "-o", "json"]
    if program == "ecr-credentials":
        arguments = ["credential-provider", "--version"]
    try:
        ran = subprocess.run([*runner, str(file.resolve()), *arguments], capture_output=True, text=True)
    finally:
        file.unlink()
    if ran.returncode:
        yield f"{path.name}: {program} {' '.join(arguments)} fails: {ran.stderr.strip()}"
    elif program == "ecr-credentials":
        found = ran.stdout.strip().rstrip(")").rsplit(" ", 1)[-1]
        if found != release.version:
            yield f"{path.name}: {program} is version {found}, and {release.version} was expected"
    else:
        answer = json.loads(ran.stdout)
        for field, expected in (("version", release.version), ("commit", commit)):
            if expected and answer[field] != expected:
                yield f"{path.name}: {program} has {field} {answer[field]}, and {expected} was expected"


def check_archives(release):
    shells = ["ecr-injector.bash", "_ecr-injector", "ecr-injector.fish", "ecr-injector.elv", "_ecr-injector.ps1"]
    wanted = [f"completions/{it}" for it in shells] + ["man/ecr-injector.1", "man/ecr-injector-doctor.1"]
    for path in release.archives():
        with tarfile.open(path) as archive:
            names = set(archive.getnames())
        for name in ["LICENSE", *(wanted if path.name.startswith("ecr-injector-") else [])]:
            if name not in names:
                yield f"{path.name} has no {name}"


def check_image(release, commit):
    found = platforms(release.image)
    if set(found) != set(ARCHITECTURES):
        yield f"{release.image.name} is for {sorted(found)}, and {sorted(ARCHITECTURES)} was expected"
    for arch, (_, config) in found.items():
        labels = config["config"]["Labels"]
        for label, expected in (("version", release.version), ("revision", commit), ("source", HOME)):
            has = labels.get(f"org.opencontainers.image.{label}")
            if expected and has != expected:
                yield f"{release.image.name} ({arch}) has the {label} {has}, and {expected} was expected"
        if config["architecture"] != arch:
            yield f"{release.image.name} ({arch}) names the architecture {config['architecture']}"


def check_image_has_the_binaries(release):
    for arch, (digest, _) in platforms(release.image).items():
        layers = json.loads(blob(release.image, digest))["layers"]
        data = gzip.decompress(blob(release.image, layers[-1]["digest"]))
        with tarfile.open(fileobj=io.BytesIO(data)) as layer:
            inside = layer.extractfile("usr/local/bin/ecr-injector").read()
        if inside != member(release.archive("ecr-injector", arch), "ecr-injector"):
            yield f"{release.image.name} ({arch}) has another binary than the archive"


def field_of(text, pattern):
    found = re.search(pattern, text, re.M)
    return found and found.group(1)


def check_chart(release, digest):
    chart = member(release.chart, "ecr-injector/Chart.yaml").decode()
    values = member(release.chart, "ecr-injector/values.yaml").decode()
    image = f"{IMAGE}:{release.version}@{digest}"
    for what, found, expected in (
        ("version", field_of(chart, r"^version: (.*)$"), release.version),
        # Helm writes it without quotes.
        ("appVersion", field_of(chart, r'^appVersion: "?([^"\n]*)"?$'), release.version),
        ("image in artifacthub.io/images", field_of(chart, r"^ +image: (.*)$"), image),
        ("image.digest", field_of(values, r'^  digest: "(.*)"$'), digest),
    ):
        if found != expected:
            yield f"{release.chart.name} has the {what} {found}, and {expected} was expected"


def check_manifest(release, digest):
    text = release.manifest.read_text()
    for what, pattern, expected in (
        ("image", r"^ +image: \"?([^\"\n]*)\"?$", f"{IMAGE}@{digest}"),
        ("version", r'^ +app.kubernetes.io/version: "(.*)"$', release.version),
    ):
        found = set(re.findall(pattern, text, re.M))
        if found != {expected}:
            yield f"{release.manifest.name} has the {what} {sorted(found)}, and {expected} was expected"
    if "none is published" in text:
        yield f"{release.manifest.name} says that no image is published"


def check_krew(release):
    text = release.krew.read_text()
    version = field_of(text, r"^  version: v(.*)$")
    if version != release.version:
        yield f"{release.krew.name} has the version {version}, and {release.version} was expected"
    files = dict(re.findall(r"^      uri: (.*)\n      sha256: (.*)$", text, re.M))
    for arch in ARCHITECTURES:
        path = release.archive("ecr-injector", arch)
        uri = f"{HOME}/releases/download/v{release.version}/{path.name}"
        expected = sha256(path.read_bytes())
        if files.get(uri) != expected:
            yield f"{release.krew.name} has {files.get(uri)} for {path.name}, and {expected} was expected"


def check_sboms(release):
    """Compares what cargo compiled with what cargo resolves."""
    for program in PROGRAMS:
        for arch, (triple, _) in ARCHITECTURES.items():
            path = release.sbom(program, arch)
            document = json.loads(path.read_text())
            inside = {it["SPDXID"]: (it["name"], it["versionInfo"]) for it in document["packages"]}
            root = document["relationships"][0]["relatedSpdxElement"]
            if inside.pop(root, None) != (program, release.version):
                yield f"{path.name} doesn't describe {program} {release.version}"
            inside = set(inside.values())
            expected = {(name, it.removeprefix("v")) for name, it in tree(triple, "normal,no-proc-macro")}
            expected.remove(("ecr-injector", release.version))
            for name, version in sorted(expected - inside):
                yield f"{path.name} lacks {name} {version}, which is in the binary"
            for name, version in sorted(inside - expected):
                yield f"{path.name} has {name} {version}, which is not in the binary"


def check_checksums(release):
    lines = release.checksums.read_text().splitlines()
    there = dict(reversed(line.split("  ", 1)) for line in lines)
    for path in release.files():
        found, expected = there.pop(path.name, None), sha256(path.read_bytes())
        if found != expected:
            yield f"{release.checksums.name} has {found} for {path.name}, and {expected} was expected"
    yield from (f"{release.checksums.name} names {name}, which is no part of the release" for name in sorted(there))


def faults(release, only, runners, commit):
    """Yields what is wrong with a release, of the groups of checks in `only`."""
    digest = the_manifest(release.image)["digest"]
    checks = {
        "binaries": lambda: check_binaries(release, runners, commit),
        "archives": lambda: check_archives(release),
        "image": lambda: [*check_image(release, commit), *check_image_has_the_binaries(release)],
        "chart": lambda: check_chart(release, digest),
        "manifest": lambda: check_manifest(release, digest),
        "krew": lambda: check_krew(release),
        "sboms": lambda: check_sboms(release),
        "checksums": lambda: check_checksums(release),
    }
    for name in only or checks:
        yield from checks[name]()


# -- The sources, before anything is built


def source_faults(version, tag):
    """Yields the places of the sources that have another version than Cargo.toml, or than the tag."""
    if tag and tag != f"v{version}":
        yield f"the tag is {tag}, and Cargo.toml has the version {version}"
    chart = Path("charts/ecr-injector/Chart.yaml").read_text()
    for what, place, pattern in (
        ("charts/ecr-injector/Chart.yaml (version)", chart, r"^version: (.*)$"),
        ("charts/ecr-injector/Chart.yaml (appVersion)", chart, r'^appVersion: "(.*)"$'),
        ("Dockerfile", Path("Dockerfile").read_text(), r'image\.version="(.*)"'),
        ("deploy/deployment.yaml", Path("deploy/deployment.yaml").read_text(), r'kubernetes\.io/version: "(.*)"'),
        ("Cargo.lock", Path("Cargo.lock").read_text(), r'^name = "ecr-injector"\nversion = "(.*)"'),
    ):
        found = field_of(place, pattern)
        if found != version:
            yield f"{what} has {found}, and {version} was expected (make versions writes it)"
    if tag and f"\n## [{version}]" not in Path("CHANGELOG.md").read_text():
        yield f"CHANGELOG.md has no section [{version}]"
    stage = field_of(chart, r'artifacthub.io/prerelease: "(.*)"')
    expected = "true" if "-" in version else "false"
    if tag and stage != expected:
        yield f"charts/ecr-injector/Chart.yaml has artifacthub.io/prerelease {stage}, and {expected} was expected"


# -- The table


def table(release):
    """Returns a table of the files with what they are for, their size and digest."""
    rows = [("artifact", "architecture", "bytes", "sha256")]
    for path in [*release.files(), release.checksums]:
        arch = next((arch for arch in ARCHITECTURES if f"-linux-{arch}." in path.name), "")
        if path == release.image:
            arch = ", ".join(sorted(platforms(path)))
        data = path.read_bytes()
        rows.append((path.name, arch or "any", str(len(data)), sha256(data)))
        if path == release.image:
            rows.append(("  image index", arch, "", the_manifest(path)["digest"].removeprefix("sha256:")))
            for name, (digest, _) in sorted(platforms(path).items()):
                rows.append(("  image", name, "", digest.removeprefix("sha256:")))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for name, arch, size, digest in rows:
        lines.append(f"{name:<{widths[0]}}  {arch:<{widths[1]}}  {size:>{widths[2]}}  {digest}")
    return "\n".join(lines) + "\n"


# -- The command line


def report(found, done):
    found = list(found)
    for fault in found:
        print(f"release: {fault}", file=sys.stderr)
    if found:
        sys.exit(1)
    print(done)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("index", "sbom", "krew", "checksums", "check", "table", "source", "digest"):
        command = commands.add_parser(name)
        command.add_argument("--version", required=True)
        if name == "source":
            command.add_argument("--tag", default="")
        else:
            command.add_argument("--folder", required=True)
        if name == "index":
            command.add_argument("--epoch", type=int, required=True)
            command.add_argument("archives", nargs="+")
        if name == "sbom":
            command.add_argument("--created", required=True)
            command.add_argument("--parts", required=True)
        if name == "check":
            command.add_argument("--only", action="append")
            command.add_argument("--commit", default="")
            command.add_argument("--run", action="append", default=[], metavar="ARCH=COMMAND")
    args = parser.parse_args()
    if args.command == "source":
        return report(source_faults(args.version, args.tag), f"release: the sources are of version {args.version}")
    release = Release(args.folder, args.version)
    if args.command == "index":
        print(write_index(release.image, args.archives, args.epoch))
    elif args.command == "digest":
        print(the_manifest(release.image)["digest"])
    elif args.command == "sbom":
        for program in PROGRAMS:
            for arch in ARCHITECTURES:
                binary = member(release.archive(program, arch), program)
                messages = (Path(args.parts) / f"linux-{arch}" / f"{program}.messages").read_text()
                document = spdx(program, args.version, arch, binary, messages, args.created)
                release.sbom(program, arch).write_text(json.dumps(document, indent=1) + "\n")
    elif args.command == "krew":
        release.krew.write_text(krew(release))
    elif args.command == "checksums":
        lines = [f"{sha256(path.read_bytes())}  {path.name}\n" for path in release.files()]
        release.checksums.write_text("".join(lines))
    elif args.command == "table":
        print(table(release), end="")
    else:
        runners = dict(it.split("=", 1) for it in args.run)
        runners = {arch: command.split() for arch, command in runners.items()}
        found = faults(release, args.only, runners, args.commit)
        report(found, f"release: every file of version {args.version} is as expected")


if __name__ == "__main__":
    main()
