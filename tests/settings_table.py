"""Prints docs/settings.md: every setting, its default and what it does, from slipway/settings.py (scripts/docs settings)."""

from __future__ import annotations

from pydantic import SecretStr

from slipway.settings import Settings

HEAD = """# Settings

All in `.env`, which the first `./scripts/up` makes from [.env.example](../.env.example); the environment goes before it.
An empty value means the default. Made by `scripts/docs settings` from [slipway/settings.py](../slipway/settings.py).

| setting | default | what it does |
|---|---|---|
"""


def rendered() -> str:
    """Return the page."""
    return HEAD + "".join(
        f"| `{field.alias}` | {_shown(field.default)} | {(field.description or '').replace('|', chr(92) + '|')} |\n"
        for field in Settings.model_fields.values()
    )


def _shown(default: object) -> str:
    text = default.get_secret_value() if isinstance(default, SecretStr) else str(default)
    text = text.lower() if isinstance(default, bool) else text
    return f"`{text}`" if text and default is not None else ""


if __name__ == "__main__":
    print(rendered(), end="")
