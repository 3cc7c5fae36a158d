"""What attendees do to trust the laptop's certificate, system by system, and to reach it. Pure text."""

from __future__ import annotations

FILE = "slipway-ca.crt"
PATH = "/join/ca.crt"  # where the edge serves it; the Caddyfile says the same

_TEXT = """\
1. Get the certificate of this laptop's authority. Nothing can vouch for it yet (-k), so compare the fingerprint:
     curl -k -o {file} {url}{path}
     openssl x509 -noout -fingerprint -sha256 -in {file}
   Windows PowerShell:
     curl.exe -k -o {file} {url}{path}
     [Security.Cryptography.X509Certificates.X509Certificate2]::new("$PWD\\{file}").GetCertHashString("SHA256")
   It must be, with or without the colons:
     {fingerprint}

2. Let the client trust it, which is enough for most:
     Node      export NODE_EXTRA_CA_CERTS="$PWD/{file}"    (Claude Code, mcp-remote, Inspector)
     Python    export SSL_CERT_FILE="$PWD/{file}"    (httpx: verify=ssl.create_default_context(cafile="{file}"))
     curl      curl --cacert {file} {url}/healthz    (Windows: curl.exe --ssl-no-revoke --cacert …)
     Windows   $env:NODE_EXTRA_CA_CERTS = "$PWD\\{file}"
   Or the whole system, for browsers and desktop programs:
     macOS     security add-trusted-cert -r trustRoot -k ~/Library/Keychains/login.keychain-db {file}
     Windows   Import-Certificate -FilePath {file} -CertStoreLocation Cert:\\CurrentUser\\Root
     Debian    sudo cp {file} /usr/local/share/ca-certificates/ && sudo update-ca-certificates
     Fedora    sudo trust anchor --store {file}
     Firefox   Settings → Privacy & Security → View Certificates → Authorities → Import → identify websites
     iOS       open {url}{path} in Safari, install the profile; Settings → General → About → Certificate Trust
     Android   Settings → Security → Install a certificate → CA certificate (browsers heed it, most apps do not)

3. After the lab, take it out of the system again: the laptop that holds its key could vouch for any site.
     macOS     security remove-trusted-cert {file}
     Windows   certutil -user -delstore Root (Get-PfxCertificate {file}).Thumbprint
     Debian    sudo rm /usr/local/share/ca-certificates/{file} && sudo update-ca-certificates --fresh
     Fedora    sudo trust anchor --remove {file}
     Others    where you added it
"""

_UNREACHABLE = """\
Another device cannot open {url}/join?
  The Wi-Fi  many keep their guests apart: open a hotspot on this laptop or a phone, then lab new … --lan again
  Linux      sudo ufw allow proto tcp to {address} port {port}    (or: sudo firewall-cmd --add-port={port}/tcp)
  macOS      System Settings → Network → Firewall: allow caddy (with Docker: Docker)
  Windows    New-NetFirewallRule -DisplayName Slipway -Direction Inbound -Protocol TCP -LocalPort {port} -Action Allow
"""


def trust_text(url: str, fingerprint: str) -> str:
    """Return how attendees get and trust the certificate.

    Args:
        url: https://192.168.1.7:8443, without a path.
        fingerprint: SHA-256 of the authority's certificate.
    """
    return _TEXT.format(url=url, fingerprint=fingerprint, file=FILE, path=PATH)


def unreachable_text(url: str) -> str:
    """Return what to look at when other devices cannot reach the URL, though this machine can."""
    address, _, port = url.removeprefix("https://").partition(":")
    return _UNREACHABLE.format(url=url, address=address, port=port)
