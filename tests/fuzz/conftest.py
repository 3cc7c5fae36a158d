"""How many inputs are tried: the same few ones at each run, or by FUZZ_EXAMPLES=20000 as many new ones, at night."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# time is for bench, not for an assert; a fixture that lasts for all examples is what we want where we have one
common = {"deadline": None, "suppress_health_check": list(HealthCheck)}
# derandomized: who changes a line must not meet another's bug; no database: nothing is left in the tree
settings.register_profile("same", derandomize=True, database=None, max_examples=60, stateful_step_count=15, **common)
settings.register_profile(
    "night", max_examples=int(os.environ.get("FUZZ_EXAMPLES", "2000")), print_blob=True, **common
)
settings.load_profile("night" if os.environ.get("FUZZ_EXAMPLES") else "same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the night take its time: cut by pytest's timeout, a property is called flaky."""
    if os.environ.get("FUZZ_EXAMPLES"):
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(pytest.mark.timeout(0))
