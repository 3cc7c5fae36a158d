"""What is in the image, as CycloneDX JSON: Python, its packages, and the packages of Debian. scripts/sbom is its door."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

from slipway import commandline
from slipway.errors import Problem, command

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = SchemaVersion.V1_6
NO_DOCKER, NO_IMAGE = 3, 4

# runs in the image with the Python that is there, and reads what dpkg and pip wrote: nothing is put into it
INVENTORY = r"""
import glob, importlib.metadata, json, platform, site, sys
from email.parser import HeaderParser
def python(paths):
    for found in importlib.metadata.distributions(path=paths):
        about = found.metadata
        yield {"name": about["Name"], "version": found.version, "license": about["License-Expression"] or ""}
def debian():
    for path in ["/var/lib/dpkg/status", *glob.glob("/var/lib/dpkg/status.d/*")]:
        try:
            text = open(path, encoding="utf-8", errors="replace").read()
        except OSError:
            continue
        for about in map(HeaderParser().parsestr, text.split("\n\n")):
            if about["Package"] and (about["Status"] or "").endswith(" installed"):
                yield {"name": about["Package"], "version": about["Version"], "architecture": about["Architecture"],
                       "source": (about["Source"] or about["Package"]).split()[0]}
system = platform.freedesktop_os_release()
print(json.dumps({
    "python": platform.python_version(), "system": [system["ID"], system.get("VERSION_ID", "")],
    "packages": list(python([path for path in sys.path if path])),
    # the interpreter of the base image has packages of its own, pip say
    "base": list(python(site.getsitepackages([sys.base_prefix]))), "debian": list(debian()),
}))
"""


def _docker(*arguments: str, told: str | None = None) -> str:
    try:
        done = subprocess.run(
            ["docker", *arguments], cwd=ROOT, input=told, capture_output=True, text=True, timeout=900
        )
    except FileNotFoundError:
        raise Problem(
            "There is no Docker here, and the list is of an image.", "Install Docker, then ./scripts/sbom", NO_DOCKER
        ) from None
    if done.returncode:
        last = (done.stderr.strip() or "no reason was given").splitlines()[-1][:300]
        raise Problem(f"docker {arguments[0]} failed: {last}", "Is Docker up? docker info tells", NO_IMAGE)
    return done.stdout


def inventory(image: str) -> dict[str, Any]:
    """Return what is installed in an image, its id and its time; without an image, build ours first.

    Raises:
        Problem: there is no Docker, or no such image.
    """
    name = image or _docker("build", "--quiet", ".").strip()
    about = json.loads(_docker("image", "inspect", name))[0]
    ran = _docker(
        "run", "--rm", "-i", "--network", "none", "--read-only", "--cap-drop", "ALL", "--entrypoint", "python",
        about["Id"], "-I", "-B", "-", told=INVENTORY,
    )  # fmt: skip
    return {**json.loads(ran), "image": about["Id"], "created": about["Created"]}


def _component(kind: str, package: dict[str, str], **purl: Any) -> Component:
    url = PackageURL(type=kind, name=package["name"], version=package["version"], **purl)
    expression = package.get("license", "")
    return Component(
        type=ComponentType.LIBRARY, name=package["name"], version=package["version"], purl=url, bom_ref=str(url),
        licenses=[LicenseFactory().make_from_string(expression)] if expression else [],
        properties=[Property(name="slipway:debian:source", value=package["source"])] if "source" in package else [],
    )  # fmt: skip


def render(found: dict[str, Any]) -> str:
    """Return the document. The same image gives the same bytes: no clock, nothing random, everything in order."""
    system, release = found["system"]
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_URL, found["image"]))
    # nanoseconds, as Docker writes them, are more than Python reads
    bom.metadata.timestamp = datetime.fromisoformat(found["created"][:19] + "+00:00")
    root = Component(type=ComponentType.CONTAINER, name="slipway", version=found["image"], bom_ref="image")
    bom.metadata.component = root
    python = {"name": "cpython", "version": found["python"]}
    parts = [_component("generic", python)]
    for package in [*found["packages"], *found["base"]]:
        # PEP 503: one spelling for each name
        named = package | {"name": package["name"].lower().replace("_", "-").replace(".", "-")}
        parts.append(_component("pypi", named))
    for package in found["debian"]:
        more = {"arch": package["architecture"], "distro": f"{system}-{release}"}
        parts.append(_component("deb", package, namespace=system, qualifiers=more))
    unique = {str(part.bom_ref): part for part in parts}
    for part in unique.values():
        bom.components.add(part)
    bom.register_dependency(root, unique.values())
    text = make_outputter(bom, OutputFormat.JSON, SCHEMA).output_as_string(indent=2)
    return json.dumps(_ordered(json.loads(text)), indent=2, sort_keys=True) + "\n"


def _ordered(value: Any) -> Any:
    """Return lists in one order: the library keeps sets, whose order is of the moment."""
    if isinstance(value, dict):
        return {name: _ordered(item) for name, item in value.items()}
    if isinstance(value, list):
        return sorted(map(_ordered, value), key=lambda item: json.dumps(item, sort_keys=True))
    return value


def main(argv: list[str]) -> int:
    """Print the document. Returns: the exit code."""
    about = "Prints what is in the image, as CycloneDX JSON."
    parser = commandline.parser("scripts/sbom", about, "example: scripts/sbom > sbom.json")
    parser.add_argument(
        "image", nargs="?", default="", metavar="IMAGE", help="an image that is here; without it, ours is built"
    )
    sys.stdout.write(render(inventory(parser.parse_args(argv).image)))
    return 0


if __name__ == "__main__":
    command(main)
