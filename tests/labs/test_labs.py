"""The labs: every command in them is run, and shows what the lab says; checkpoints and labs name each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from slipway import knocks, settings
from slipway.lab.checkpoints import meets, parse
from tests.conftest import AUTHTOKEN, ROOT, clean_environment, free_ports, wait_until
from tests.labs import runner

LABS = sorted((ROOT / "labs").glob("[0-9][0-9]-*.md"))
RUN = [*LABS, ROOT / "labs" / "instructor.md"]
PAGES = [*RUN, ROOT / "labs" / "README.md"]
NOT_RUN = {
    "the URL and the token of a workshop",
    "needs Claude Code",
    "needs npm and the registry",
}
# the stand-in's public URL is on localhost, and no client of an account is here
ELSEWHERE = {"public", "own-client"}
# fields that a condition may compare: of the record, and what is seen beside it
COMPARED = {*knocks.FIELDS, "progress", "resumed", "door"}


@pytest.mark.slow
@pytest.mark.timeout(480)  # many programs one after the other
@pytest.mark.parametrize("lab", RUN, ids=lambda lab: lab.stem)
def test_every_command_shows_what_the_lab_says(lab: Path, checkout: Path, account: dict[str, str]) -> None:
    ports = settings.read_env_file(checkout / ".env.example")
    words = {str(port): ports[name] for port, name in
             ((8000, "SERVER_PORT"), (8080, "EDGE_PORT"), (8443, "TLS_PORT"), (8081, "CONSOLE_PORT"))}  # fmt: skip
    words |= zip(("8010", "8011", "8090"), map(str, free_ports(3)), strict=True)
    mounted = checkout / "examples" / "mounted.py"
    mounted.write_text(mounted.read_text().replace("8010", words["8010"]))
    words["YOUR_AUTHTOKEN"] = AUTHTOKEN
    # the stand-in's certificate is for the public URL alone, and the authtoken is what the lab puts into .env
    more = {name: value for name, value in account.items() if name not in ("NGROK_AUTHTOKEN", "SSL_CERT_FILE")}
    if lab.stem.startswith("02"):
        more |= dict.fromkeys(("SSL_CERT_FILE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"), account["SSL_CERT_FILE"])
    # of a first ./scripts/up, which labs and their readers have behind them
    (checkout / ".env").write_text((checkout / ".env.example").read_text())
    environment = clean_environment(checkout, **more, COLUMNS="80", LC_ALL="C.UTF-8", TZ="UTC")
    runner.run(lab, checkout, environment, words)
    asked = {name for name, row in checkpoints().items() if row["lab"] == lab.stem[:2]} - ELSEWHERE
    wait_until(lambda: asked <= reached(checkout), 10, f"{asked}; reached: {reached(checkout)}")


def reached(folder: Path) -> set[str]:
    """Return the checkpoints that the logs of a stack show, whoever sent what."""
    lines = [line for log in (folder / ".slipway" / "log").glob("*.jsonl") for line in log.read_text().splitlines()]
    seen = sorted(filter(None, map(knocks.parse, lines)), key=lambda knock: knock.time)
    rows = parse(checkpoints())
    return {
        row.id
        for row in rows
        for at, knock in enumerate(seen)
        if meets(knock, row.when) and (not row.first or any(meets(before, row.first) for before in seen[:at]))
    }


def test_there_are_eight_labs_and_the_readme_lists_each_with_its_minutes() -> None:
    assert [lab.stem[:2] for lab in LABS] == [f"0{number}" for number in range(1, 9)]
    readme = (ROOT / "labs" / "README.md").read_text("utf-8")
    for lab in LABS:
        title, minutes = re.search(r"# Lab \d\d · (.+)\n\n\*(\d+) minutes", lab.read_text("utf-8")).groups()  # type: ignore[union-attr]
        assert 7 <= int(minutes) <= 15
        assert re.search(rf"\| {lab.stem[:2]} \| \[{re.escape(title)}\]\({lab.name}\) \| {minutes} \|", readme), title


def test_each_lab_ends_with_its_checkpoints_and_what_one_can_say() -> None:
    for lab in LABS:
        *_, before, last = re.split(r"^## ", lab.read_text("utf-8"), flags=re.MULTILINE)
        assert before.startswith("Checkpoint"), lab.name
        assert last.startswith("What you can now say"), lab.name


def test_few_blocks_are_left_to_people_and_each_says_why() -> None:
    reasons = [
        step.text
        for page in PAGES
        for step in runner.blocks(page.read_text("utf-8"), page.name, page.parent)
        if step.kind == "not run" and step.text
    ]
    assert set(reasons) == NOT_RUN
    assert len(set(reasons)) <= 4


def checkpoints() -> dict[str, Any]:
    return tomllib.loads((ROOT / "labs" / "checkpoints.toml").read_text("utf-8"))


def test_labs_and_checkpoints_name_each_other() -> None:
    named = {}
    for lab in LABS:
        for line in re.findall(r"^Checkpoints?: (.*)$", lab.read_text("utf-8"), re.MULTILINE):
            named |= dict.fromkeys(re.findall(r"`([a-z0-9-]+)`", line), lab.stem[:2])
    assert named == {name: row["lab"] for name, row in checkpoints().items()}


@pytest.mark.parametrize("name", checkpoints())
def test_a_checkpoint_compares_fields_that_exist(name: str) -> None:
    row = checkpoints()[name]
    assert set(row) <= {"title", "lab", "first", "when"}
    assert row["title"]
    for condition in filter(None, (row["when"], row.get("first"))):
        assert set(condition) <= COMPARED
        for value in condition.values():
            assert value and (value is True or isinstance(value, str | int | list))


def test_checkpoints_stand_in_the_order_of_the_labs() -> None:
    labs = [row["lab"] for row in checkpoints().values()]
    assert labs == sorted(labs)


def test_the_code_that_a_lab_quotes_is_the_examples() -> None:
    text = (ROOT / "labs" / "06-fastapi.md").read_text("utf-8")
    quoted = [line for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert quoted
    assert set(quoted) <= set((ROOT / "examples" / "mounted.py").read_text("utf-8").splitlines())


# --- the runner itself


def test_what_is_shown_is_compared_strictly_but_for_its_gaps() -> None:
    shown = "HTTP/2 401\n…\nwww-authenticate: Bearer …, x=1"
    assert re.fullmatch(runner.pattern(shown), "HTTP/2 401\na: b\nc: d\nwww-authenticate: Bearer r, x=1\n")
    assert re.fullmatch(runner.pattern(shown), "HTTP/2 401\nwww-authenticate: Bearer , x=1\n")
    for other in (
        "HTTP/2 200\nwww-authenticate: Bearer r, x=1\n",
        "HTTP/2 401\nwww-authenticate: Bearer r\nx, x=1\n",
    ):
        assert not re.fullmatch(runner.pattern(shown), other)


@pytest.mark.parametrize(
    ("lab", "wrong"),
    [
        ("```sh\necho 5\n```\n```text\n6\n```", "but came\n5"),
        ("```sh\nfalse\n```", "false"),
        ("```bash\necho 5\n```", "a block in bash"),
        ("<!-- runs forever -->\n```sh\necho 5\n```", "runs forever"),
        ("<!-- run README.md#gone -->", "no section #gone"),
    ],
    ids=["another output", "a failure", "an unknown language", "an unknown comment", "no section"],
)
def test_a_lab_that_is_wrong_fails(lab: str, wrong: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "README.md").write_text("# Set up\n")
    (tmp_path / "lab.md").write_text(lab)
    with pytest.raises(AssertionError, match=re.escape(wrong)):
        runner.run(tmp_path / "lab.md", tmp_path / "here", clean_environment(tmp_path), {})


def test_terminals_keep_variables_run_servers_and_are_interrupted(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "lab.md").write_text(
        "<!-- terminal 1 -->\n<!-- stays -->\n```sh\necho up on 8000\nsleep 1000\n```\n```text\nup on 8000\n```\n"
        "```sh\nNAME=ana\n```\n```sh\necho $NAME at 8000\n```\n```text\nana at …\n```\n"
        "<!-- not run: no such thing -->\n```sh\nno-such-thing\n```\n```text\nthing\n```\n"
        "<!-- Ctrl-C in terminal 1 -->\n<!-- terminal 1 -->\n```sh\necho $((40 + 2))\n```\n<!-- terminal 1 -->\n```text\n42\n```\n"
    )
    runner.run(tmp_path / "lab.md", tmp_path / "here", clean_environment(tmp_path), {"8000": "51234"})
    assert "up on 51234" in (tmp_path / "terminal1.log").read_text()
