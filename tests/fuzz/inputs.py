"""Hostile inputs: text with every character there is, JSON of every shape, words that almost are what is asked for."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

# lone surrogates too: JSON can write them, and UTF-8 cannot
ANY_TEXT = st.text(st.characters(), max_size=80)
NASTY = st.sampled_from(
    ["", "\0", "\x1b[2J", "\x1b]0;x\x07", "\r\n", "\u2028", "\u202e", "\ud800", "\uffff", "*", "..", "/", "%00", "${HOME}",
     "<script>", "'", '"', "\\", "٣", "\u212a", "ß", "\U0001f600", "9" * 5000, "-1", "1e999", "a" * 3000, " ", "\t", "{", "["]
)  # fmt: skip
HOSTILE = st.one_of(ANY_TEXT, NASTY, st.lists(st.one_of(ANY_TEXT, NASTY), max_size=4).map("".join))
# what httptools hands on: a header is bytes, without line ends and NUL
HEADER = st.binary(max_size=60).map(lambda raw: bytes(byte for byte in raw if byte not in b"\0\r\n"))

NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**30, 1e308, float("nan"), float("inf")]),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, HOSTILE)
JSON: st.SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(ANY_TEXT, inner, max_size=4)),
    max_leaves=8,
)


def deep(depth: int) -> str:
    """Return JSON that is so many lists deep."""
    return "[" * depth + "]" * depth


def objects(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return objects with these fields, any of them missing or of any other shape."""
    either = {name: st.one_of(good, JSON) for name, good in fields.items()}
    return st.fixed_dictionaries({}, optional=either)


@st.composite
def documents(draw: st.DrawFn, content: st.SearchStrategy[Any]) -> bytes:
    """Return such content as bytes of JSON, or as almost JSON: doubled keys, cut, deep, in another encoding, with junk."""
    text = json.dumps(draw(content))
    match draw(st.sampled_from(["whole"] * 4 + ["doubled", "cut", "deep", "encoded", "junk", "huge"])):
        case "doubled" if text.startswith("{") and len(text) > 2:
            text = text[:-1] + "," + json.dumps(draw(content))[1:].strip() if text != "{}" else text
        case "cut":
            text = text[: draw(st.integers(0, len(text)))]
        case "deep":
            text = text.replace("null", deep(draw(st.sampled_from([10, 900, 985, 3000, 100_000]))), 1)
        case "encoded":
            return text.encode(draw(st.sampled_from(["utf-16", "utf-32", "utf-8-sig", "utf-7"])))
        case "junk":
            return text.encode() + draw(st.binary(max_size=20))
        case "huge":
            text = text.replace("0", "9" * 5000, 1)
    return text.encode("utf-8", "surrogatepass")


def commands_a_terminal(text: str, *, lines: bool = True) -> list[str]:
    """Return the characters that are not for a terminal."""
    return [char for char in text if not char.isprintable() and not (lines and char == "\n")]
