"""A compliance desk: sanctions screening by OpenSanctions or a sample list, jurisdiction risk, alert summaries.

Every answer says who asked for it: the subject of the verified token, which no argument can change.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import time
import unicodedata
from collections import OrderedDict
from typing import Annotated, Any, Literal

import httpx2
from fastmcp import FastMCP
from fastmcp.exceptions import ToolError
from fastmcp.server.dependencies import get_access_token
from pydantic import BaseModel, Field

TIMEOUT = 5.0  # seconds for one try
TRIES = 3
LONGEST_WAIT = 5.0  # seconds between two tries, whatever Retry-After says
CACHE_TTL = 900.0  # seconds
CACHE_SIZE = 1000
HIT = 0.8  # scores from here on are hits
RETRIABLE = (429, 500, 502, 503, 504)

SAMPLE_LABEL = "sample list of this repository: made up, no real person or company"
SAMPLE_LIST: list[dict[str, Any]] = [
    {"name": "Vladimir Petrov", "aliases": ["Wladimir Petrow"], "program": "SAMPLE-RU", "country": "ru"},
    {"name": "José Ángel Sombra", "aliases": ["Pepe Sombra"], "program": "SAMPLE-NARCO", "country": "ve"},
    {"name": "Layla al-Noor Hassan", "aliases": [], "program": "SAMPLE-SY", "country": "sy"},
    {"name": "Mohammed Karimi Rad", "aliases": ["Muhammad Karimirad"], "program": "SAMPLE-IR", "country": "ir"},
    {"name": "Northwind Shadow Shipping Ltd", "aliases": ["NSS Ltd"], "program": "SAMPLE-KP", "country": "kp"},
]
# letters that decompose into no accent
LETTERS = str.maketrans({"ł": "l", "ø": "o", "đ": "d", "æ": "ae", "œ": "oe", "\u0131": "i"})
HIGH = {"ir": "Iran", "kp": "North Korea", "mm": "Myanmar"}
RAISED = {"by": "Belarus", "ru": "Russia", "sy": "Syria", "ve": "Venezuela", "ye": "Yemen"}

mcp: FastMCP = FastMCP(
    "compliance-toolkit",
    instructions="Screen names before you advise on them, and quote `source` and `screened_by` in your answer.",
    mask_error_details=True,
)
_cache: OrderedDict[str, tuple[float, dict[str, Any]]] = OrderedDict()  # folded name → (when, answer)


class Alert(BaseModel):
    """A transaction alert as a monitoring system raises it."""

    alert_id: str = Field(max_length=100)
    customer: str = Field(max_length=200)
    amount: float = Field(ge=0)
    currency: str = Field("USD", max_length=3)
    country: str = Field("", max_length=60)
    reason: str = Field("", max_length=2000)


def caller() -> str:
    """Return who calls: the verified token's subject; over stdio there is no token, and no stranger."""
    token = get_access_token()
    return str(token.claims.get("sub") or token.client_id) if token else "local user"


def folded(name: str) -> str:
    """Return a name as a screener compares it: without accents, case and punctuation, its words sorted."""
    letters = unicodedata.normalize("NFKD", name.casefold()).translate(LETTERS)
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return " ".join(sorted("".join(c if c.isalnum() else " " for c in plain).split()))


def score(asked: str, listed: str) -> float:
    """Return 0 to 1: how much of the two folded names agrees, which forgives a letter or two."""
    return round(difflib.SequenceMatcher(None, folded(asked), folded(listed), autojunk=False).ratio(), 3)


def screen_sample(name: str) -> dict[str, Any]:
    """Look the name up in the sample list."""
    found = []
    for entry in SAMPLE_LIST:
        best = max(score(name, known) for known in [entry["name"], *entry["aliases"]])
        if best >= HIT:
            found.append({"name": entry["name"], "score": best, "programs": [entry["program"]]})
    found.sort(key=lambda match: -match["score"])
    return {"hit": bool(found), "matches": found, "source": SAMPLE_LABEL}


async def screen_api(name: str, key: str) -> dict[str, Any]:
    """Ask OpenSanctions. Raises: httpx2.HTTPError or ValueError when it does not answer as it should."""
    base = os.environ.get("OPENSANCTIONS_URL", "https://api.opensanctions.org").rstrip("/")
    question = {"queries": {"q": {"schema": "Thing", "properties": {"name": [name]}}}}
    async with httpx2.AsyncClient(timeout=TIMEOUT, headers={"Authorization": f"ApiKey {key}"}) as client:
        for attempt in range(1, TRIES + 1):
            wait = 0.2 * 2**attempt
            try:
                answer = await client.post(f"{base}/match/default", json=question)
                if answer.status_code not in RETRIABLE or attempt == TRIES:
                    break
                told = answer.headers.get("retry-after", "")
                wait = float(told) if told.isdigit() else wait
            except httpx2.TransportError:
                if attempt == TRIES:
                    raise
            await asyncio.sleep(min(wait, LONGEST_WAIT))
    answer.raise_for_status()
    results = answer.json()["responses"]["q"]["results"]
    found = [
        {
            "name": str(result["caption"]),
            "score": round(float(result["score"]), 3),
            "programs": result.get("properties", {}).get("topics", []),
            "id": str(result["id"]),
        }
        for result in results[:10]
    ]
    return {"hit": any(match["score"] >= HIT for match in found), "matches": found, "source": "OpenSanctions"}


def _remembered(name: str) -> dict[str, Any] | None:
    when, answer = _cache.get(folded(name), (0.0, None))
    return answer if answer and time.monotonic() - when < CACHE_TTL else None


@mcp.tool
async def lookup_sanctions_hit(name: Annotated[str, Field(min_length=2, max_length=200)]) -> dict[str, Any]:
    """Screen a person or company by name. Word order, accents, case and small typos do not matter; see `score`."""
    if not folded(name):
        raise ToolError("The name has no letters. Send the name of a person or a company.")
    key = os.environ.get("OPENSANCTIONS_API_KEY", "")
    answer, cached = _remembered(name) if key else None, True
    if answer is None:
        cached = False
        if key:
            try:
                answer = await screen_api(name, key)
                _cache[folded(name)] = (time.monotonic(), answer)
                while len(_cache) > CACHE_SIZE:
                    _cache.popitem(last=False)
            except (httpx2.HTTPError, ValueError, KeyError, TypeError):
                # the error's own text may hold what we sent
                answer = screen_sample(name) | {
                    "note": "OpenSanctions did not answer: this is the sample list instead."
                }
        else:
            answer = screen_sample(name) | {"note": "No OPENSANCTIONS_API_KEY is set: this is the sample list."}
    return {"name": name, **answer, "from_cache": cached, "screened_by": caller()}


@mcp.tool
async def check_jurisdiction_risk(country: Annotated[str, Field(min_length=2, max_length=60)]) -> dict[str, Any]:
    """Rate a country, by ISO code or name, as high, raised or standard risk. A made-up policy, not legal advice."""
    asked = country.strip().casefold()
    risk: Literal["high", "raised", "standard"] = "standard"
    for level, table in (("high", HIGH), ("raised", RAISED)):
        if asked in table or asked in (known.casefold() for known in table.values()):
            risk = level  # type: ignore[assignment]
    return {"country": country, "risk": risk, "source": "sample policy", "screened_by": caller()}


@mcp.tool
async def summarize_alert(alert: Alert) -> dict[str, Any]:
    """Summarize an alert for a case file: who, how much, where, and what to do next."""
    screening = await lookup_sanctions_hit(alert.customer)
    risk = (await check_jurisdiction_risk(alert.country))["risk"] if alert.country.strip() else "standard"
    grave = screening["hit"] or risk == "high" or alert.amount >= 100_000
    step = "escalate to an analyst" if grave else "close with a note" if risk == "standard" else "ask for documents"
    text = f"{alert.alert_id}: {alert.customer}, {alert.amount:,.2f} {alert.currency}"
    text += f", {alert.country} ({risk} risk)" if alert.country else ""
    text += f". {'A sanctions match' if screening['hit'] else 'No sanctions match'} ({screening['source']})."
    text += f" Reason: {alert.reason}" if alert.reason else ""
    return {"summary": text, "next_step": step, "risk": risk, "hit": screening["hit"], "screened_by": caller()}


@mcp.resource("compliance://policy", mime_type="text/markdown")
async def policy() -> str:
    """How matches are scored and what follows."""
    return (
        f"Scores run from 0 to 1. From {HIT} on a match is a hit, and an analyst decides. Sample policy, not advice."
    )


@mcp.resource("compliance://jurisdictions", mime_type="application/json")
async def jurisdictions() -> dict[str, dict[str, str]]:
    """The countries of the sample policy."""
    return {"high": HIGH, "raised": RAISED}


@mcp.prompt
async def screen_customer(name: str, country: str) -> str:
    """Have an agent screen a customer."""
    return (
        f"Screen {name} with lookup_sanctions_hit and {country} with check_jurisdiction_risk. "
        "State score, source and screened_by, and say plainly when the source is a sample list."
    )


@mcp.prompt
async def write_case_note(alert_id: str) -> str:
    """Have an agent write a case note."""
    return f"Call summarize_alert for {alert_id}, then write a case note of at most five sentences for an auditor."


if __name__ == "__main__":
    mcp.run()
