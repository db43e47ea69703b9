#!/usr/bin/env python3
"""Writes what the program is made of: a bill of materials in CycloneDX 1.6.

What is linked is asked of cargo for the features that are released, and, where
a build has said what it compiled (--compiled), held against that. Checksums are
those of Cargo.lock. Nothing in it is random, and no time but that of the commit:
the same commit gives the same bytes.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import uuid
from datetime import datetime, timezone
from pathlib import Path

REGISTRY = "registry+https://github.com/rust-lang/crates.io-index"
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://sealblk.example/sbom")


def main():
    options = arguments()
    packages, edges, root = metadata(options)
    linked, building = parts(options)
    linked.discard(root)
    building -= linked | {root}
    if options.compiled:
        hold_against_build(options, linked)
    checksums = locked(options.manifest.with_name("Cargo.lock"))
    bill = document(options, packages, edges, root, linked, building, checksums)
    json.dump(bill, sys.stdout, indent=1, ensure_ascii=True)
    sys.stdout.write("\n")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cargo", default="cargo")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--triple", required=True)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--epoch", type=int, required=True)
    parser.add_argument("--program", type=Path, help="the built program, for its digest")
    parser.add_argument("--compiled", type=Path, help="cargo's JSON messages of that build")
    return parser.parse_args()


def cargo(options, *words):
    command = [options.cargo, *words, "--locked", "--manifest-path", str(options.manifest)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"sbom: error: '{' '.join(command)}' failed\nsbom: help: see the messages above")
    return done.stdout


def metadata(options):
    """Packages by (name, version), what each depends on, and which one we are."""
    told = json.loads(
        cargo(options, "metadata", "--format-version=1", "--filter-platform", options.triple)
    )
    key = {package["id"]: (package["name"], package["version"]) for package in told["packages"]}
    packages = {key[package["id"]]: package for package in told["packages"]}
    edges = {
        key[node["id"]]: {
            key[dep["pkg"]]
            for dep in node["deps"]
            if any(kind["kind"] != "dev" for kind in dep["dep_kinds"])
        }
        for node in told["resolve"]["nodes"]
    }
    return packages, edges, key[told["resolve"]["root"]]


LINE = re.compile(r"(?P<depth>\d+)(?P<name>[^ ]+) v(?P<version>[^ ]+)(?P<rest>.*)")


def parts(options):
    """What is linked into the program, and what only runs while it is built."""
    linked, building = set(), set()
    # Below a macro, or what a build script needs, all is of the build.
    for edge_kinds, found in (("normal", linked), ("normal,build", building)):
        tree = cargo(
            options, "tree", "--edges", edge_kinds, "--target", options.triple, "--prefix=depth"
        )
        below = None
        for text in tree.splitlines():
            line = LINE.fullmatch(text)
            if line is None:
                sys.exit(f"sbom: error: cargo tree says what is not understood: {text}")
            depth, crate = int(line["depth"]), (line["name"], line["version"])
            if edge_kinds == "normal":
                if below is not None and depth > below:
                    continue
                below = depth if "(proc-macro)" in line["rest"] else None
                if below is not None:
                    continue
            found.add(crate)
    return linked, building


def hold_against_build(options, linked):
    compiled = set()
    for line in options.compiled.read_text(encoding="utf-8").splitlines():
        message = json.loads(line)
        if message.get("reason") != "compiler-artifact":
            continue
        # Those for the machine that builds lie elsewhere.
        if any(f"/{options.triple}/" in path for path in message["filenames"]):
            name, version = re.fullmatch(
                r".*#(?:([^@]+)@)?([^@#]+)", message["package_id"]
            ).groups()
            compiled.add((name or message["package_id"].split("#")[0].split("/")[-1], version))
    compiled = {crate for crate in compiled if crate[0] != "sealblk"}
    if compiled != linked:
        sys.exit(
            "sbom: error: the build compiled other crates than cargo tree names\n"
            f"sbom: help: compiled alone: {sorted(compiled - linked)}; "
            f"named alone: {sorted(linked - compiled)}"
        )


def locked(path):
    """The checksum of each package of the lock file that comes from crates.io."""
    checksums = {}
    for block in path.read_text(encoding="utf-8").split("[[package]]")[1:]:
        fields = dict(re.findall(r'^(name|version|source|checksum) = "([^"]*)"$', block, re.M))
        if fields.get("source") == REGISTRY:
            checksums[(fields["name"], fields["version"])] = fields["checksum"]
    return checksums


def document(options, packages, edges, root, linked, building, checksums):
    crates = sorted(linked | building)
    when = datetime.fromtimestamp(options.epoch, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    program = {
        "type": "application",
        "bom-ref": reference(root),
        "name": root[0],
        "version": root[1],
        "licenses": licences(packages[root]),
        "purl": reference(root),
        "properties": [
            {"name": "sealblk:commit", "value": options.commit},
            {"name": "sealblk:triple", "value": options.triple},
        ],
    }
    if options.program:
        digest = hashlib.sha256(options.program.read_bytes()).hexdigest()
        program["hashes"] = [{"alg": "SHA-256", "content": digest}]
    known = set(crates) | {root}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, options.commit + options.triple)}",
        "version": 1,
        "metadata": {
            "timestamp": when,
            "lifecycles": [{"phase": "build"}],
            "component": program,
        },
        "components": [
            component(crate, packages[crate], checksums, crate in linked) for crate in crates
        ],
        "dependencies": [
            {
                "ref": reference(crate),
                "dependsOn": sorted(reference(other) for other in edges[crate] & known),
            }
            for crate in [root, *crates]
        ],
    }


def reference(crate):
    return f"pkg:cargo/{crate[0]}@{crate[1]}"


def licences(package):
    expression = package.get("license")
    if not expression:
        sys.exit(f"sbom: error: {package['name']} names no licence")
    # As it was written before there were expressions.
    return [{"expression": expression.replace("/", " OR ")}]


def component(crate, package, checksums, is_linked):
    if crate not in checksums:
        sys.exit(f"sbom: error: {crate} is not from crates.io, or has no checksum in Cargo.lock")
    entry = {
        "type": "library",
        "bom-ref": reference(crate),
        "name": crate[0],
        "version": crate[1],
        # What is excluded runs while the program is built, and is not in it.
        "scope": "required" if is_linked else "excluded",
        "hashes": [{"alg": "SHA-256", "content": checksums[crate]}],
        "licenses": licences(package),
        "purl": reference(crate),
    }
    if (package.get("repository") or "").startswith("https://"):
        entry["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
    return entry


if __name__ == "__main__":
    main()
