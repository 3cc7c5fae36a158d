"""The short form: one examination of our own stack in the background, and what is wrong in a few lines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

from slipway import tokens
from slipway.doctor import examine, report
from slipway.settings import Settings


def begin(config: Settings, root: Path, secret: tokens.Secret, say: Callable[[str], None]) -> None:
    """Examine every hop and say what came of it; returns at once, and never ends the caller."""

    def run() -> None:
        try:
            hops = examine.hops(config, root, examine.Asked(), secret)
            say(report.short(asyncio.run(examine.examine(hops))))
        except Exception as error:
            # a tunnel that works must not end because its examination did
            say(f"doctor      gave up ({type(error).__name__}); try ./scripts/doctor")

    threading.Thread(target=run, name="doctor", daemon=True).start()
