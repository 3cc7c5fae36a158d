"""A compliance desk: sanctions screening, jurisdiction risk, alert summaries; every answer says who asked for it."""

from __future__ import annotations

import asyncio
import os
import sys
import time
import unicodedata
from difflib import SequenceMatcher
from typing import Annotated, Any

import httpx2
from fastmcp import FastMCP
from fastmcp.exceptions import ToolError
from fastmcp.server.dependencies import get_access_token
from pydantic import BaseModel, Field

DEADLINE = 20.0  # seconds for all tries: an API that drips a byte now and then would pass every other timeout
LONGEST_WAIT = 5.0  # seconds between two tries, whatever Retry-After says
CACHE_TTL = 900.0  # seconds
CACHE_SIZE = 1000
MOST_WORDS = 20  # of a name: every one is compared with every one of the list
HIT = 0.8  # scores from here on are hits in the sample list; OpenSanctions judges its own
ALIKE = 0.75  # two words from here on may be one: "jose" and "hosé", "mohammed" and "muhammad"
SAMPLE_LABEL = "sample list of this repository: made up, no real person or company"
SAMPLE_LIST = [
    ("SAMPLE-RU", ["Vladimir Petrov", "Wladimir Petrow"]),
    ("SAMPLE-NARCO", ["José Ángel Sombra", "Pepe Sombra"]),
    ("SAMPLE-SY", ["Layla al-Noor Hassan"]),
    ("SAMPLE-IR", ["Mohammed Karimi Rad", "Muhammad Karimirad"]),
    ("SAMPLE-KP", ["Northwind Shadow Shipping Ltd", "NSS Ltd"]),
]
LETTERS = str.maketrans({"ł": "l", "ø": "o", "đ": "d", "æ": "ae", "œ": "oe", "\u0131": "i"})  # no accent to take off
POLICY = {
    "high": "Iran, IR, IRN, North Korea, KP, PRK, DPRK, Myanmar, MM, MMR, Burma",
    "raised": "Belarus, BY, BLR, Russia, RU, RUS, Russian Federation, Syria, SY, SYR, Venezuela, VE, VEN, Yemen, YE",
}
instructions = "Screen names before you advise on them, and quote `source` and `screened_by` in your answer."
mcp: FastMCP = FastMCP("compliance-toolkit", instructions=instructions, mask_error_details=True)
_cache: dict[str, tuple[float, dict[str, Any]]] = {}  # the name's words → (when, answer), oldest first


class Alert(BaseModel):
    """A transaction alert as a monitoring system raises it."""

    alert_id: str = Field(max_length=100)
    customer: str = Field(max_length=200)
    amount: float = Field(ge=0, allow_inf_nan=False)
    currency: str = Field("USD", max_length=3)
    country: str = Field("no country", max_length=60)
    reason: str = Field("", max_length=2000)


def caller() -> str:
    """Return who calls: the verified token's subject; over stdio there is no token, and no stranger."""
    token = get_access_token()
    return str(token.claims.get("sub") or token.client_id) if token else "local user"


def words(name: str) -> list[str]:
    """Return a name's words as a screener compares them: sorted, without accents, case and punctuation."""
    letters = unicodedata.normalize("NFKD", name.casefold()).translate(LETTERS)
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return sorted("".join(c if c.isalnum() else " " for c in plain).split())


def score(asked: str, listed: str) -> float:
    """Return 0 to 1: the share of letters in words that pair up, in any order and give or take a letter."""
    left, right = words(asked), words(listed)
    letters, total = sum(map(len, left + right)), 0.0
    ratios = [(SequenceMatcher(None, a, b, autojunk=False).ratio(), a, b) for a in left for b in right]
    for likeness, a, b in sorted(ratios, reverse=True):
        if likeness >= ALIKE and a in left and b in right:
            total += likeness * (len(a) + len(b))
            left.remove(a)
            right.remove(b)
    return round(total / letters, 3)


def screen_sample(name: str, note: str) -> dict[str, Any]:
    """Look the name up in the sample list, and say why."""
    scored = [(max(score(name, alias) for alias in aliases), program, aliases[0]) for program, aliases in SAMPLE_LIST]
    found = sorted((match for match in scored if match[0] >= HIT), reverse=True)
    matches = [{"name": listed, "score": best, "programs": [program]} for best, program, listed in found]
    return {"hit": bool(matches), "matches": matches, "source": SAMPLE_LABEL, "note": note, "from_cache": False}


async def screen_api(name: str, key: str) -> dict[str, Any]:
    """Ask OpenSanctions, or raise whatever went wrong."""
    url = os.environ.get("OPENSANCTIONS_URL", "https://api.opensanctions.org").rstrip("/") + "/match/default"
    # LegalEntity is OpenSanctions' word for a person or a company
    question = {"queries": {"q": {"schema": "LegalEntity", "properties": {"name": [name]}}}}
    client = httpx2.AsyncClient(timeout=5.0, headers={"Authorization": f"ApiKey {key}"})
    async with asyncio.timeout(DEADLINE), client:
        for wait in (0.4, 0.8, None):
            try:
                answer = await client.post(url, json=question)
                if wait is None or (answer.status_code != 429 and answer.status_code < 500):
                    break
                told = answer.headers.get("retry-after", "")
                wait = float(told) if told.isdecimal() else wait
            except httpx2.TransportError:
                if wait is None:
                    raise
            await asyncio.sleep(min(wait, LONGEST_WAIT))
    answer.raise_for_status()
    results = answer.json()["responses"]["q"]["results"][:10]
    matches = [
        {"id": r["id"], "name": r["caption"], "score": r["score"], "programs": r["properties"].get("topics", [])}
        for r in results
    ]
    hit = any(result["match"] is True for result in results)
    return {"hit": hit, "matches": matches, "source": "OpenSanctions", "from_cache": False}


async def screen(name: str, key: str) -> dict[str, Any]:
    """Return what the API says, or said lately, and the sample list's answer when it fails."""
    same = " ".join(words(name))
    when, answer = _cache.get(same, (0.0, {}))
    if answer and time.monotonic() - when < CACHE_TTL:
        return answer | {"from_cache": True}
    try:
        answer = await screen_api(name, key)
    except Exception as error:  # whatever the network or the API does, screening goes on
        why = type(error).__name__  # never the error's own text: it may hold what we sent
        if isinstance(error, httpx2.HTTPStatusError):
            why = f"HTTP {error.response.status_code}"
        note = f"OpenSanctions did not answer ({why}): this is the sample list instead."
        print(note, file=sys.stderr, flush=True)
        return screen_sample(name, note)
    if len(_cache) >= CACHE_SIZE:
        _cache.clear()
    _cache[same] = (time.monotonic(), answer)
    return answer


@mcp.tool
async def lookup_sanctions_hit(name: Annotated[str, Field(min_length=2, max_length=200)]) -> dict[str, Any]:
    """Screen a person or company by name. Word order, accents, case and small typos do not matter; see `score`."""
    if not 0 < len(words(name)) <= MOST_WORDS:
        raise ToolError(f"A name has 1 to {MOST_WORDS} words. Send the name of one person or company.")
    if key := os.environ.get("OPENSANCTIONS_API_KEY", "").strip():
        answer = await screen(name, key)
    else:
        answer = screen_sample(name, "No OPENSANCTIONS_API_KEY is set: this is the sample list.")
    return {"name": name, **answer, "screened_by": caller()}


@mcp.tool
async def check_jurisdiction_risk(country: Annotated[str, Field(min_length=2, max_length=60)]) -> dict[str, Any]:
    """Rate a country, by ISO code or name, as high, raised or standard risk. A made-up policy, not legal advice."""
    answer = {"country": country, "risk": "standard", "source": "sample policy", "screened_by": caller()}
    for risk, spellings in POLICY.items():
        if words(country) in map(words, spellings.split(", ")):
            return answer | {"risk": risk}
    return answer | {"note": "Not in compliance://jurisdictions, so standard. Check the spelling."}


@mcp.tool
async def summarize_alert(alert: Alert) -> dict[str, Any]:
    """Summarize an alert for a case file: who, how much, where, and what to do next."""
    screening = await lookup_sanctions_hit(alert.customer)
    risk = (await check_jurisdiction_risk(alert.country))["risk"]
    grave = screening["hit"] or risk == "high" or alert.amount >= 100_000
    step = "escalate to an analyst" if grave else "close with a note" if risk == "standard" else "ask for documents"
    text = (
        f"{alert.alert_id}: {alert.customer}, {alert.amount:,.2f} {alert.currency}, {alert.country} ({risk} risk). "
    )
    text += f"{'A' if screening['hit'] else 'No'} match ({screening['source']}). {alert.reason}".strip()
    return {"summary": text, "next_step": step, "risk": risk, "hit": screening["hit"], "screened_by": caller()}


@mcp.resource("compliance://policy", mime_type="text/markdown")
async def policy() -> str:
    """How matches are scored and what follows."""
    return f"Score: the share of letters in words that pair up. Sample list: a hit from {HIT} on. An analyst decides."


@mcp.resource("compliance://jurisdictions", mime_type="application/json")
async def jurisdictions() -> dict[str, str]:
    """The countries of the sample policy, in all the spellings that it knows."""
    return POLICY


@mcp.prompt
async def screen_customer(name: str, country: str) -> str:
    """Have an agent screen a customer."""
    return f"Screen {name} with lookup_sanctions_hit, {country} with check_jurisdiction_risk; quote score and source."


@mcp.prompt
async def write_case_note(alert_id: str) -> str:
    """Have an agent write a case note."""
    return f"Call summarize_alert for {alert_id}, then write a case note of at most five sentences for an auditor."


if __name__ == "__main__":
    mcp.run()
