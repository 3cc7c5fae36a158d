"""Where our code comes from: pinned installs, the list of what is in the image, known weaknesses."""

from __future__ import annotations

import json
import random
import re
import shlex
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.validation.json import JsonStrictValidator
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from slipway import operator
from slipway.errors import Problem
from slipway.identity.grants import Grant, Grants
from slipway.identity.ledger import Ledger
from slipway.store import open_store
from tests import audit, sbom
from tests.conftest import ROOT

LOCKS = sorted(path.name for path in ROOT.glob("requirements*.lock"))
INSTALLERS = [
    "Dockerfile",
    ".ci/run",
    "docker-compose.yml",
    *(f"scripts/{p.name}" for p in (ROOT / "scripts").iterdir()),
]


def locked(name: str) -> dict[str, tuple[str, str, int]]:
    """Return {package: (version, marker, number of hashes)} of a lock file."""
    found = {}
    for block in re.split(r"\n(?=\S)", (ROOT / name).read_text().strip()):
        head, *hashes = [part.strip() for part in block.split("\\\n")]
        package, _, marker = head.partition(" ; ")
        pin = re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s=*]+)", package)
        assert pin, f"{name}: {head} is not pinned to one version"
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes), f"{name}: {head}"
        found[canonicalize_name(pin[1])] = (pin[2], marker, len(hashes))
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_of_a_lock_file_has_one_version_and_its_hashes(name: str) -> None:
    assert all(hashes for _, _, hashes in locked(name).values())


def test_the_lock_files_name_the_same_version_of_a_package() -> None:
    wide = locked("requirements-dev.lock")
    for name in ("requirements.lock", "requirements-host.lock"):
        for package, (version, _, _) in locked(name).items():
            assert wide[package][0] == version, f"{name}: {package}"


def test_what_pyproject_asks_for_is_in_the_lock_files() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, asked in {
        "requirements.lock": project["dependencies"],
        "requirements-host.lock": project["optional-dependencies"]["host"],
        "requirements-dev.lock": project["optional-dependencies"]["dev"],
    }.items():
        known = locked(name)
        for each in map(Requirement, asked):
            if each.name != "slipway":
                assert each.specifier.contains(known[canonicalize_name(each.name)][0]), f"{name}: {each}"


def unpinned(text: str) -> list[str]:
    """Return the install commands of a script that take what the index gives."""
    commands = re.split(r"\n|;|&&|\|\|", re.sub(r"\s*\\\n\s*", " ", text))
    installs = [line.strip() for line in commands if re.search(r"\bpip\d?\s+(install|download)\b|\buvx\b", line)]
    return [line for line in installs if not line.startswith("#") and "--require-hashes" not in line]


@pytest.mark.parametrize("name", INSTALLERS)
def test_everything_is_installed_with_its_hashes(name: str) -> None:
    left = unpinned((ROOT / name).read_text())
    # a target's packages are the user's own words; our lock file bounds them
    assert [line for line in left if "--constraint /build/requirements.lock" not in line] == []
    assert len(left) == (1 if name == "Dockerfile" else 0)


def test_an_install_without_hashes_would_be_seen() -> None:
    for line in (
        "pip install uv",
        "RUN uv pip install \\\n  -r requirements.lock",
        "x || python -m pip  install --quiet uv",
    ):
        assert unpinned(line)


def test_every_package_of_node_has_its_hash() -> None:
    packages = json.loads((ROOT / "tests" / "node" / "package-lock.json").read_text())["packages"]
    assert [name for name, about in packages.items() if name and not about.get("integrity")] == []


# --- the list of what is in the image

FOUND: dict[str, Any] = {
    "python": "3.13.1", "system": ["debian", "13"], "image": "sha256:" + "1" * 64, "created": "2026-11-20T10:00:00.123456789Z",
    "packages": [{"name": "FastMCP", "version": "4.1.2", "license": "Apache-2.0"}, {"name": "a_b.c", "version": "1", "license": ""},
                 {"name": "odd", "version": "1+local", "license": "Apache-2.0 OR BSD-3-Clause"}],
    "base": [{"name": "pip", "version": "25.0", "license": "MIT"}],
    "debian": [{"name": "libstdc++6", "version": "1:14.2.0-19", "architecture": "amd64", "source": "gcc-14"}],
}  # fmt: skip


def valid(text: str) -> bool:
    """Tell whether a text is CycloneDX of our version, with no unknown field."""
    return JsonStrictValidator(sbom.SCHEMA).validate_str(text) is None


def test_the_list_is_valid_cyclonedx_and_names_every_package() -> None:
    text = sbom.render(FOUND)
    assert valid(text)
    assert {part["purl"] for part in json.loads(text)["components"]} == {
        "pkg:generic/cpython@3.13.1", "pkg:pypi/fastmcp@4.1.2", "pkg:pypi/a-b-c@1", "pkg:pypi/odd@1%2Blocal",
        "pkg:pypi/pip@25.0", "pkg:deb/debian/libstdc%2B%2B6@1:14.2.0-19?arch=amd64&distro=debian-13",
    }  # fmt: skip


def test_a_list_that_is_not_cyclonedx_is_called_so() -> None:
    content = json.loads(sbom.render(FOUND))
    content["components"][0].pop("name")
    assert not valid(json.dumps(content))


def test_the_same_image_gives_the_same_bytes_in_whichever_order_it_is_read() -> None:
    mixed = {
        **FOUND,
        **{kind: random.Random(7).sample(FOUND[kind], len(FOUND[kind])) for kind in ("packages", "debian")},
    }
    program = "import json, sys; from tests import sbom; sys.stdout.write(sbom.render(json.load(sys.stdin)))"
    texts = {
        subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, input=json.dumps(found), capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for found, seed in ((FOUND, "1"), (mixed, "2"))
    }  # fmt: skip
    assert texts == {sbom.render(FOUND)}


def test_without_docker_the_list_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Problem) as told:
        sbom.main([])
    assert told.value.exit_code == sbom.NO_DOCKER
    assert "Docker" in told.value.cause


@pytest.mark.docker
@pytest.mark.slow
def test_the_list_of_our_image_is_what_the_lock_file_pins_and_what_debian_has() -> None:
    found = sbom.inventory("")
    text = sbom.render(found)
    assert valid(text)
    parts = {part["purl"] for part in json.loads(text)["components"]}
    here = {"python_version": "3.13", "python_full_version": found["python"]}
    for package, (version, marker, _) in locked("requirements.lock").items():
        if not marker or Marker(marker).evaluate(here):
            assert f"pkg:pypi/{package}@{version}" in parts
    assert not [part for part in parts if "pytest" in part or "hypothesis" in part]
    assert any(part.startswith("pkg:deb/debian/libc6@") for part in parts)
    assert sbom.render(sbom.inventory(found["image"])) == text


# --- known weaknesses


def says(text: str, code: int) -> list[str]:
    """Return a command that answers as pip-audit would."""
    return [sys.executable, "-c", f"import sys; print({text!r}); sys.exit({code})"]


def test_an_advisory_service_that_cannot_be_reached_is_said_with_an_exit_code_of_its_own() -> None:
    with pytest.raises(Problem) as told:
        audit.audited([sys.executable, "-c", "raise OSError('no such host')"], 20)
    assert told.value.exit_code == audit.NOBODY_ASKED
    assert told.value.cause == "The advisory service osv.dev cannot be asked: OSError: no such host"
    assert "./scripts/audit-deps" in told.value.cure


def test_an_advisory_service_that_never_answers_is_left() -> None:
    with pytest.raises(Problem, match="no verdict in 1 s") as told:
        audit.audited([sys.executable, "-c", "import time; time.sleep(600)"], 1)
    assert told.value.exit_code == audit.NOBODY_ASKED


def test_a_known_weakness_is_named_and_is_another_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    weak = {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]}
    answer = json.dumps({"dependencies": [weak, weak, {"name": "b", "version": "2", "vulns": []}]})
    with pytest.raises(Problem) as told:
        audit.main([], says(answer, 1))
    assert told.value.exit_code == audit.FOUND
    assert capsys.readouterr() == ("a 1: PYSEC-1, mended in 1.1\n", "1 known weaknesses in 2 packages\n")


def test_without_known_weaknesses_all_is_well() -> None:
    assert audit.main([], says(json.dumps({"dependencies": []}), 0)) == 0


def test_every_lock_file_is_audited() -> None:
    assert sorted(audit.LOCKS) == LOCKS


# --- what SECURITY.md tells people to do


def commands(text: str) -> list[list[str]]:
    """Return the commands in a document that are scripts of ours, without their comments."""
    found = re.findall(r"^(\./scripts/[^#\n]+)", text, re.M) + re.findall(r"`(\./scripts/[^`]+)`", text)
    return [shlex.split(each.partition(" > ")[0]) for each in found]


def test_every_command_of_the_security_notes_exists_and_takes_these_arguments() -> None:
    told = commands((ROOT / "SECURITY.md").read_text())
    assert len(told) > 8
    for script, *arguments in told:
        path = ROOT / script
        assert path.stat().st_mode & 0o100, script
        if path.name in ("tokens", "invite"):
            operator._parser(path.name).parse_args([*arguments])
        else:
            text = path.read_text() + "".join(
                (ROOT / name).read_text() for name in ("slipway/doctor/__main__.py", "tunnel.py")
            )
            assert [each for each in arguments if each.startswith("--") and each not in text] == []


async def test_a_sign_in_of_the_old_secret_is_ended_by_the_order_that_the_notes_give(tmp_path: Path) -> None:
    ledger = Ledger(open_store(tmp_path))
    grants = Grants(open_store(tmp_path), ledger)
    before = Grant("g", "client", "ana", "tool:*", time.time(), time.time() + 9000)
    assert await grants.good(before)
    await ledger.revoke_before_now()
    anew = Ledger(open_store(tmp_path))
    await anew.load()
    assert not await Grants(open_store(tmp_path), anew).good(before)
    assert await Grants(open_store(tmp_path), anew).good(
        Grant("h", "client", "ana", "tool:*", time.time(), time.time() + 9000)
    )
