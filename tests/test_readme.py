"""What the README and the docs say of files, verbs, settings and checks is true of the tree."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from slipway import settings
from slipway.doctor import examine  # noqa: F401 it fills CHECKS, in order
from slipway.doctor.checks import CHECKS
from slipway.settings import Settings
from tests import settings_table
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text("utf-8")
TROUBLES = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
PICTURES = ("terminal.svg", "join.png", "board.png")


def rows(text: str) -> list[str]:
    """Return the lines of the tables whose first cell is code."""
    return re.findall(r"^\| `.*\|$", text, re.M)


def first_cells(text: str) -> list[str]:
    return [row.split("`")[1] for row in rows(text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    text = page.read_text("utf-8")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)|src=\"([^\":]+)\"", text)
    assert not [link for pair in links for link in pair if link and not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_verb_that_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"(?<![\w/.])(?:\./)?scripts/([\w.-]*\w)", page.read_text("utf-8")))
    assert not [verb for verb in named if not (ROOT / "scripts" / verb).exists()]


def test_the_pictures_are_shown_with_words_for_who_cannot_see_them_and_are_small() -> None:
    shown = dict(re.findall(r"!\[([^\]]{20,})\]\(docs/pictures/([\w.]+)\)", README))
    shown |= {
        alt: src for src, alt in re.findall(r'<img src="docs/pictures/([\w.]+)"[^>]* alt="([^"]{20,})">', README)
    }
    assert sorted(shown.values()) == sorted(PICTURES)
    assert sum((ROOT / "docs" / "pictures" / name).stat().st_size for name in PICTURES) < 300_000


def test_the_picture_of_the_terminal_holds_no_whole_token_and_no_font_from_elsewhere() -> None:
    text = (ROOT / "docs" / "pictures" / "terminal.svg").read_text("utf-8")
    assert "who&#160;knocks" in text
    assert not re.search(r"eyJ[\w-]+\.|@font-face|/home/|/tmp/|/root/", text)


def test_the_settings_table_is_the_one_that_scripts_docs_makes() -> None:
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")
    assert page == settings_table.rendered()
    assert first_cells(page) == [field.alias for field in Settings.model_fields.values()]


def test_the_troubleshooting_table_has_a_row_for_each_check_of_the_doctor_in_its_order() -> None:
    assert first_cells(TROUBLES) == list(CHECKS)


def test_the_readme_shows_rows_of_the_troubleshooting_table() -> None:
    section = README.partition("\n## Troubleshooting\n")[2].partition("\n## ")[0]
    assert len(rows(section)) >= 8 and set(rows(section)) <= set(rows(TROUBLES))


def test_security_is_told_in_ten_lines() -> None:
    section = README.partition("\n## Security in short\n")[2].partition("\n## ")[0]
    assert len(re.findall(r"^- ", section, re.M)) == 10


def test_long_facts_are_wrapped_between_words_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import tunnel

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    command = "  openssl " + "x " * 50
    tunnel.say(f"{'console':<12}{'word ' * 30}\n\n{command}")
    told = capsys.readouterr().err.splitlines()
    assert max(map(len, told[:-1])) <= 80 and told[1].startswith(" " * 12 + "word")
    assert told[-2:] == ["", command], "what is to be copied stays whole"


def test_a_pipe_gets_one_line_a_fact(capsys: pytest.CaptureFixture[str]) -> None:
    import tunnel

    tunnel.say(f"{'console':<12}{'word ' * 30}")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_map_for_contributors_names_what_is_there_and_every_folder_of_the_house() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    cells = re.findall(r"^\| (`.*?) \|", page, re.M)
    named = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert not [name for name in named if not (ROOT / name).exists()]
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "slipway").glob("*/*.py")}
    assert {f"{folder}/" for folder in folders} <= set(named)


def test_the_commands_for_contributors_name_files_and_tests_that_are_there() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.S))
    assert not [path for path in re.findall(r"\btests/[\w/.]+", blocks) if not (ROOT / path).exists()]
    assert "FUZZ_EXAMPLES" in (ROOT / "tests" / "fuzz" / "conftest.py").read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_that_a_page_names_is_one(page: Path) -> None:
    named = set(re.findall(r"`(SLIPWAY_[A-Z_]+|[A-Z]+_PORT)\b", page.read_text("utf-8")))
    assert not named - {*settings.names(), *settings._COMPOSE_ONLY}
