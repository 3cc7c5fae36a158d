"""Notes that outlive restarts; every caller has their own, by the subject of the verified token."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastmcp import Context, FastMCP
from fastmcp.exceptions import ResourceError, ToolError
from fastmcp.server.dependencies import get_access_token
from pydantic import Field

MAX_NOTES = 1000  # per caller
MAX_BYTES = 100_000  # of one note

Title = Annotated[str, Field(min_length=1, max_length=200)]
Result = TypeVar("Result")

mcp: FastMCP = FastMCP("notes", mask_error_details=True)

SCHEMA = """
PRAGMA journal_mode=WAL;
CREATE TABLE IF NOT EXISTS notes (subject TEXT, title TEXT, text TEXT, PRIMARY KEY (subject, title));
CREATE TABLE IF NOT EXISTS writes (subject TEXT, key TEXT, body TEXT, at REAL DEFAULT (julianday('now')),
                                   PRIMARY KEY (subject, key));
"""
# by the rowid of the note, so that writing one never reads the others
INDEX = "CREATE VIRTUAL TABLE IF NOT EXISTS note_words USING fts5 (title, text);"


def caller() -> str:
    """Return whose notes these are; over stdio there is no token, and one user."""
    token = get_access_token()
    return str(token.claims.get("sub") or token.client_id) if token else "local user"


@contextlib.contextmanager
def database() -> Iterator[sqlite3.Connection]:
    """Open the database for one transaction."""
    folder = Path(os.environ.get("DATA_DIR", "data"))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / "notes.sqlite3"
    with contextlib.suppress(FileExistsError):
        # only a new one: closing a file drops all locks that this process has on it, SQLite's in other threads too
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    with contextlib.closing(sqlite3.connect(path, timeout=10)) as connection:
        connection.executescript(SCHEMA + (INDEX if has_fts5(connection) else ""))
        with connection:
            yield connection


def has_fts5(db: sqlite3.Connection) -> bool:
    """Tell whether this SQLite can index words; some builds cannot."""
    return bool(db.execute("SELECT 1 FROM pragma_module_list WHERE name='fts5'").fetchone())


async def run(work: Callable[[sqlite3.Connection], Result]) -> Result:
    """Run a transaction on a thread: a disk may be slow, and the event loop is everybody's."""

    def locked() -> Result:
        with database() as connection:
            return work(connection)

    try:
        return await asyncio.to_thread(locked)
    except (sqlite3.OperationalError, OSError) as error:
        # what was saved stays saved: a transaction is on the disk before its tool answers
        why = error.strerror if isinstance(error, OSError) else error
        raise ToolError(f"The notes cannot be used now: {why}. Nothing was changed; try again later.") from None


@mcp.tool
async def save_note(
    title: Title,
    text: Annotated[str, Field(max_length=MAX_BYTES)],
    idempotency_key: Annotated[str, Field(max_length=100)] = "",
) -> dict[str, Any]:
    """Save a note, or write it anew. A retry with the same idempotency_key within a day does not write twice."""
    if title in (".", "..") or not title.strip() or any(c == "/" or ord(c) < 32 for c in title):
        raise ToolError("This title cannot be part of notes://TITLE. Use words, without slashes and line breaks.")
    if len(text.encode()) > MAX_BYTES:
        raise ToolError(f"The text is longer than {MAX_BYTES} bytes. Split it into several notes.")
    subject, body = caller(), hashlib.sha256(f"{title}\0{text}".encode()).hexdigest()

    def work(db: sqlite3.Connection) -> bool:
        db.execute("BEGIN IMMEDIATE")  # two retries at once must not both find no key
        if idempotency_key:
            mine = (subject, idempotency_key)
            known = db.execute("SELECT body FROM writes WHERE subject=? AND key=?", mine).fetchone()
            if known:
                if known[0] != body:
                    raise ToolError("This idempotency_key was used for another note. Send a new key.")
                return True
            db.execute("INSERT INTO writes (subject, key, body) VALUES (?, ?, ?)", (*mine, body))
            db.execute("DELETE FROM writes WHERE at < julianday('now') - 1")  # plenty for a retry
        exists = db.execute("SELECT 1 FROM notes WHERE subject=? AND title=?", (subject, title)).fetchone()
        (count,) = db.execute("SELECT count(*) FROM notes WHERE subject=?", (subject,)).fetchone()
        if not exists and count >= MAX_NOTES:
            raise ToolError(f"You have {MAX_NOTES} notes, which is the limit. Write an old one anew instead.")
        db.execute(
            "INSERT INTO notes VALUES (?, ?, ?) ON CONFLICT (subject, title) DO UPDATE SET text = excluded.text",
            (subject, title, text),
        )
        index(db, subject, title)
        return False

    return {"saved": title, "repeated": await run(work)}


def index(db: sqlite3.Connection, subject: str, title: str) -> None:
    """Put one note into the search index, in place of its former version."""
    if has_fts5(db):
        which = "FROM notes WHERE subject=? AND title=?"
        db.execute(f"DELETE FROM note_words WHERE rowid = (SELECT rowid {which})", (subject, title))  # noqa: S608
        db.execute(
            f"INSERT INTO note_words (rowid, title, text) SELECT rowid, title, text {which}",
            (subject, title),
        )


async def find(title: str) -> str | None:
    """Return the caller's note of that title."""
    subject = caller()
    query = "SELECT text FROM notes WHERE subject=? AND title=?"
    row = await run(lambda db: db.execute(query, (subject, title)).fetchone())
    return row[0] if row else None


@mcp.tool
async def read_note(title: Title) -> str:
    """Read one of your notes."""
    text = await find(title)
    if text is None:
        raise ToolError(f"You have no note {title!r}. list_notes tells which there are.")
    return text


@mcp.tool
async def list_notes() -> list[str]:
    """List the titles of your notes."""
    subject = caller()
    rows = await run(
        lambda db: db.execute("SELECT title FROM notes WHERE subject=? ORDER BY title", (subject,)).fetchall()
    )
    return [title for (title,) in rows]


@mcp.tool
async def search_notes(query: Annotated[str, Field(min_length=1, max_length=200)]) -> list[dict[str, str]]:
    """Search your notes for all the words of the query; returns titles and snippets, the best first."""
    subject = caller()

    def work(db: sqlite3.Connection) -> list[tuple[str, str]]:
        if not has_fts5(db):
            every = "".join(" AND instr(lower(title || ' ' || text), lower(?))" for _ in query.split())
            sql = f"SELECT title, substr(text, 1, 80) FROM notes WHERE subject=?{every} LIMIT 20"  # noqa: S608
            return db.execute(sql, (subject, *query.split())).fetchall()
        # quoted, so that a word is a word and never an operator of the index
        phrases = " ".join('"' + word.replace('"', '""') + '"' for word in query.replace("\0", " ").split())
        sql = (
            "SELECT notes.title, snippet(note_words, 1, '[', ']', '…', 12) FROM note_words "
            "JOIN notes ON notes.rowid = note_words.rowid WHERE note_words MATCH ? AND subject=? "
            "ORDER BY rank LIMIT 20"
        )
        return db.execute(sql, (phrases, subject)).fetchall()

    return [{"title": title, "snippet": snippet} for title, snippet in await run(work)]


@mcp.tool
async def reindex_notes(ctx: Context) -> str:
    """Build the search index of your notes anew, with progress and a log message for each."""
    subject = caller()
    titles = await list_notes()
    for done, title in enumerate(titles, start=1):
        await run(partial(index, subject=subject, title=title))
        await ctx.report_progress(done, len(titles), title)
        await ctx.info(f"indexed {title}")
    return f"Indexed {len(titles)} notes."


@mcp.resource("notes://{title}", mime_type="text/plain")
async def note(title: str) -> str:
    """One of your notes."""
    text = await find(title)
    if text is None:
        raise ResourceError(f"You have no note {title!r}.")
    return text


if __name__ == "__main__":
    mcp.run()
