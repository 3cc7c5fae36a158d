"""What our own secrets look like, for detect-secrets: it knows the shapes of well-known services, not of these."""

from __future__ import annotations

import re

from detect_secrets.plugins.base import RegexBasedDetector


class NgrokAuthtoken(RegexBasedDetector):
    """An ngrok authtoken or API key, quoted or not."""

    secret_type = "ngrok authtoken"  # pragma: allowlist secret
    denylist = (re.compile(r"(?<![A-Za-z0-9_])([0-9][A-Za-z0-9]{16,30}_[A-Za-z0-9]{16,26})(?![A-Za-z0-9_])"),)


class SlipwaySecret(RegexBasedDetector):
    """256 random bits in hexadecimal that stand alone or behind a name, as our secret's file has them; no digest."""

    secret_type = "Slipway secret"  # pragma: allowlist secret
    denylist = (re.compile(r"(?:^|[\s\"'=])([0-9a-f]{64})(?![0-9a-f])"),)
