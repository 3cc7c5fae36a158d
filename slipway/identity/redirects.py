"""Where an authorization may be sent: redirect URIs vetted at registration, matched exactly later. Pure."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from mcp.shared.auth import InvalidRedirectUriError, OAuthClientInformationFull
from pydantic import AnyUrl

LOOPBACK = ("localhost", "127.0.0.1", "::1")
MAX_URIS, MAX_LENGTH = 10, 1000
# it stands in the consent page's Content-Security-Policy, where ; and , begin something new
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]*:[0-9a-f:.]*")
# schemes that a browser or a desktop acts on by itself, or that are no private use of one program
_REFUSED = re.compile(
    r"(javascript|data|vbscript|file|filesystem|blob|about|view-source|ftp|ftps|sftp|tftp|ws|wss|mailto|tel|sms|intent|"
    r"chrome|chrome-.*|moz-.*|resource|edge|opera|ms-.*|search-ms|search|jar|urn|cid|mid|news|nntp|telnet|ssh|ldap|"
    r"ldaps|gopher|smb|cifs|afp|nfs|dav|davs|webdav|rtsp|rtmp|mms|git|svn|irc|ircs|vnc|rdp|coap|coaps|mhtml|res|shell|"
    r"market|content|android-app|itms.*|facetime.*|skype|callto|magnet|dict|finger|wais|prospero|x-.*|.*\+.*)"
)


def why_not(uri: str) -> str:
    """Say why a redirect URI is refused, or "" (OAuth 2.1 §2.3, RFC 8252 §7)."""
    if len(uri) > MAX_LENGTH or not uri.isprintable() or not uri.isascii() or any(c in uri for c in ' "<>\\^`{|}'):
        return "it has characters that no URI has, or too many"
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "it is no URI"
    if parts.fragment or "#" in uri:
        return "it has a fragment"
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        return "it has user information"
    if parts.scheme == "https":
        return "" if _HOST.fullmatch(host or "") else "it has no host, or one that is none"
    if parts.scheme == "http":
        return "" if host in LOOPBACK else "plain http is for loopback alone"
    if not re.fullmatch(r"[a-z][a-z0-9+.-]{1,60}", parts.scheme) or _REFUSED.fullmatch(parts.scheme):
        return f"{parts.scheme or 'a URI without a scheme'} is no private-use scheme"
    return ""


class RegisteredClient(OAuthClientInformationFull):
    """A client whose loopback redirect may use any port (RFC 8252 §7.3); every other one matches exactly."""

    def validate_scope(self, requested_scope: str | None) -> list[str] | None:
        """Return what is asked for of the form tool:NAME; all else opens nothing, and is no reason to refuse."""
        asked = (requested_scope or "").split()
        return [scope for scope in asked if scope.startswith("tool:")] or None

    def validate_redirect_uri(self, redirect_uri: AnyUrl | None) -> AnyUrl:
        """Return the URI to redirect to.

        Raises:
            InvalidRedirectUriError: it is not registered, or was left out where there are several.
        """
        registered = self.redirect_uris or []
        if redirect_uri is None:
            if len(registered) == 1:
                return registered[0]
            raise InvalidRedirectUriError("redirect_uri must be given: several are registered")
        asked = str(redirect_uri)
        if not why_not(asked) and any(
            str(known) == asked or _same_loopback(str(known), asked) for known in registered
        ):
            return redirect_uri
        raise InvalidRedirectUriError("redirect_uri is not one that this client registered")


def _same_loopback(known: str, asked: str) -> bool:
    first, second = urlsplit(known), urlsplit(asked)
    return (
        first.scheme == second.scheme == "http"
        and first.hostname == second.hostname
        and first.hostname in LOOPBACK
        and (first.path, first.query) == (second.path, second.query)
    )
