"""What a lab wants to see of each seat: declared in labs/checkpoints.toml, recognised from records of requests."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slipway.errors import Problem
from slipway.knocks import FIELDS, Knock

MOST = 50

# field → the values that will do; True stands for any that is not empty
Condition = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Checkpoint:
    """One of them.

    Attributes:
        when: the record that reaches it.
        first: a record that must have come before from the same seat; {} for none.
    """

    id: str
    title: str
    when: Condition
    first: Condition


def meets(knock: Knock, condition: Condition) -> bool:
    """Tell whether a record is what a condition asks for. A client is compared by its name, without the version."""
    return all(any(_fits(knock, name, value) for value in values) for name, values in condition.items())


def _fits(knock: Knock, name: str, value: Any) -> bool:
    found = getattr(knock, name)
    if value is True:
        return bool(found)
    return bool(found == value or (name == "client" and found.startswith((f"{value} ", f"{value}/"))))


def parse(rows: Mapping[str, Any]) -> list[Checkpoint]:
    """Turn the tables of a checkpoints.toml into checkpoints.

    Raises:
        Problem: a table that is none, a field that no record has.
    """
    found = [_parsed(name, row) for name, row in rows.items()]
    if len(found) > MOST:
        raise Problem(f"There are {len(found)} checkpoints; {MOST} are the most.", "Leave some out", 2)
    return found


def read(file: Path) -> dict[str, Any]:
    """Read a checkpoints.toml. Raises: Problem where it is none."""
    try:
        with file.open("rb") as stream:
            rows = tomllib.load(stream)
    except FileNotFoundError:
        raise Problem(
            f"There is no {file}.", "labs/checkpoints.toml is the one that comes with the labs", 2
        ) from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Problem(f"{file} cannot be read: {error}.", "Mend it, then the command again", 2) from None
    parse(rows)
    return rows


def _parsed(name: str, row: Any) -> Checkpoint:
    wrong = f"The checkpoint {name[:40]!r} is not good"
    cure = 'A table has title = "…", when = { field = value }, and may have first = { … } and lab = "01"'
    if not isinstance(row, Mapping) or row.keys() - {"title", "lab", "when", "first"} or not row.get("when"):
        raise Problem(f"{wrong}: it is not what is expected.", cure, 2)
    title, lab = row.get("title", name), row.get("lab", "")
    if not all(isinstance(text, str) and text.isprintable() and len(text) <= 80 for text in (name, title, lab)):
        raise Problem(f"{wrong}: its words are no short texts.", cure, 2)
    when, first = (_condition(row.get(part, {}), wrong, cure) for part in ("when", "first"))
    return Checkpoint(name, title, when, first)


def _condition(given: Any, wrong: str, cure: str) -> Condition:
    if not isinstance(given, Mapping):
        raise Problem(f"{wrong}: a condition is a table.", cure, 2)
    if unknown := [field for field in given if field not in FIELDS]:
        raise Problem(f"{wrong}: no record has a field {str(unknown[0])[:40]!r}.", f"Fields: {', '.join(FIELDS)}", 2)
    return {field: tuple(value) if isinstance(value, list) else (value,) for field, value in given.items()}
