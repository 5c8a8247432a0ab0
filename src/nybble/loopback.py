"""Which addresses only this machine reaches: keys, proxies and consent depend on it."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def loopback(host: str) -> bool:
    """Whether only this machine reaches an address; a name counts only as localhost."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def loopback_url(url: str) -> bool:
    """Whether a URL is this machine's own."""
    return loopback(urlsplit(url).hostname or "")
