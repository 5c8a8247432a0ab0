"""Connections to web servers that are not trusted: judged addresses, bounded times, proxies.

The HTTP itself is http.client of the standard library. It imports in 20 ms, where urllib3 takes 90
and httpx 60, and what is here would have to stand around any client: a time-out for the whole
answer and not only for each read, and a look at every address before it is connected to.
"""

from __future__ import annotations

import base64
import functools
import http.client
import io
import ipaddress
import re
import socket
import ssl
import string
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from nybble.errors import ModelFileError
from nybble.models.file_kinds import show

# How near an address is: anybody's, that of a private network, this machine or its link. A cloud's
# metadata service (169.254.169.254) is of the last kind.
PUBLIC, PRIVATE, LOCAL = 0, 1, 2
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?")
MAX_URL = 8192  # signed addresses take about 1,500


@dataclass(frozen=True)
class Limits:
    """How long servers are waited for, in seconds, and how often they are asked again.

    Attributes:
        connect: until a connection is there.
        read: without a single byte.
        total: for one model, all its files and attempts together.
        attempts: how often one range is asked for before giving up.
        backoff: pause before the second attempt; it doubles with every further one.
        redirects: how many are followed for one request.
    """

    connect: float = 10.0
    read: float = 15.0
    total: float = 120.0
    attempts: int = 3
    backoff: float = 0.5
    redirects: int = 5


def parse_url(text: str) -> SplitResult:
    """Return the checked parts of an http or https URL; odd characters become %-escapes.

    Raises:
        ModelFileError: another scheme, a password in it, no host, a bad port, or too long.
    """
    hint = "give a URL such as https://host/path/model.gguf"
    try:
        url = urlsplit(quote(text, safe=string.punctuation, encoding="utf-8", errors="replace"))
        host, _ = url.hostname or "", url.port
        known = ":" in host and ipaddress.ip_address(host) is not None
    except ValueError as e:  # a port over 65,535, brackets without an IPv6 address
        raise ModelFileError("This is no URL", seen=show(text), hint=hint) from e
    if url.scheme not in ("http", "https"):
        raise ModelFileError("Only http and https are read", seen=show(text),
                             allowed="https://..., http://... or hf:org/repo/file.gguf",
                             hint=hint)  # fmt: skip
    if url.username is not None or url.password is not None:
        raise ModelFileError("A URL with a user name or password is refused: it would be shown in "
                             "errors and reports", seen=f"{url.scheme}://...@{show(host)}",
                             hint="leave it out, or download the file")  # fmt: skip
    if not known and not (len(host) <= 253 and _HOST.fullmatch(host)):
        raise ModelFileError("This URL has no valid host", seen=show(text),
                             allowed="ASCII names (xn--... for others) and IP addresses",
                             hint=hint)  # fmt: skip
    if len(url.geturl()) > MAX_URL:
        raise ModelFileError("This URL is too long", seen=f"{len(text):,} characters",
                             allowed=f"up to {MAX_URL:,}", hint=hint)  # fmt: skip
    return url._replace(fragment="")


def shown(url: SplitResult) -> str:
    """A URL fit for an error: without its query, which may hold a signature."""
    text = f"{url.scheme}://{url.netloc}{url.path}"
    return text if len(text) <= 200 else f"{text[:200]}..."


def nearness(address: str) -> int:
    """PUBLIC, PRIVATE or LOCAL, of an IP address in text."""
    ip = ipaddress.ip_address(address)
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_loopback or ip.is_link_local or ip.is_unspecified or ip.is_multicast:
        return LOCAL
    return PUBLIC if ip.is_global else PRIVATE


def _typed_nearness(host: str) -> int:
    """What a host that the user typed may turn out to be."""
    try:
        return nearness(host)
    except ValueError:
        names = ("localhost", socket.gethostname().lower())  # Debian maps the latter to 127.0.1.1
        return LOCAL if host in names or host.endswith(".localhost") else PRIVATE


class Dialler:
    """Opens the connections for one file.

    An address of a private network or of this machine is connected to only when the user named
    such a host, and never again once a public one was reached: no redirect and no name server
    leads from outside to the inside.
    """

    def __init__(self, typed: SplitResult, limits: Limits, deadline: float) -> None:
        self.limits, self.deadline = limits, deadline
        self._allowed = _typed_nearness(typed.hostname or "")

    def left(self) -> float:
        """Seconds until the deadline.

        Raises:
            TimeoutError: there are none.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time for this model is over")
        return left

    def connect(self, url: SplitResult) -> http.client.HTTPConnection:
        """Connect to the host of a URL, or to the proxy of the environment that serves it.

        Raises:
            ModelFileError: the address is refused, or the proxy is of another kind than http.
            OSError: it does not work.
        """
        proxy = _proxy(url)
        at = proxy or url
        secure = url.scheme == "https"
        port = at.port or (443 if at.scheme == "https" else 80)
        wait = min(self.limits.connect, self.left())
        host = at.hostname or ""
        connection: Any  # its hooks for sockets and answers are not in the type stubs
        if secure:
            connection = http.client.HTTPSConnection(host, port, timeout=wait, context=_context())
        else:
            connection = http.client.HTTPConnection(host, port, timeout=wait)
        connection.auto_open = 0
        connection.response_class = functools.partial(_Response, self)
        connection._create_connection = functools.partial(self._dial, judged=proxy is None)
        if proxy is not None:
            self._admit_unseen(url)
            if secure:
                connection.set_tunnel(url.hostname, url.port or 443, proxy_headers(proxy))
        connection.connect()
        assert isinstance(connection, http.client.HTTPConnection)
        return connection

    def _dial(self, address: tuple[str, int], timeout: float, _: object = None, *,
              judged: bool) -> socket.socket:  # fmt: skip
        until = time.monotonic() + timeout
        found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
        places = list(dict.fromkeys(where[:2] for *_, where in found))
        for last, place in ((p == places[-1], p) for p in places):
            ip = str(place[0])
            if judged:
                self._admit(nearness(ip), f"{address[0]} ({ip})")
            left = until - time.monotonic()
            try:
                # Half the time for each but the last: a dead first address leaves some for others.
                wait = max(left if last else left / 2, 0.001)
                return socket.create_connection((ip, place[1]), wait)
            except OSError:
                if last or until <= time.monotonic():
                    raise
        raise OSError("the name has no address")

    def _admit(self, near: int, who: str) -> None:
        if near > self._allowed:
            what = "this machine or its link" if near == LOCAL else "a private network"
            raise ModelFileError(f"A redirect or a name leads to an address of {what}",
                                 seen=show(who), allowed="such an address only when it is given "
                                 "itself", hint="where you trust it, give the URL that it leads "
                                 "to, with the IP address")  # fmt: skip
        self._allowed = min(self._allowed, near)

    def _admit_unseen(self, url: SplitResult) -> None:
        """Judge a host that only the proxy looks up: by its text."""
        host = url.hostname or ""
        try:
            near = nearness(host)
        except ValueError:
            near = LOCAL if host == "localhost" or host.endswith(".localhost") else PUBLIC
        self._admit(near, host)


class _Response(http.client.HTTPResponse):
    """An answer of which every read, headers included, ends before the deadline."""

    def __init__(self, dialler: Dialler, sock: socket.socket, *more: Any, **named: Any) -> None:
        super().__init__(sock, *more, **named)
        self.fp = io.BufferedReader(_Timed(self.fp.detach(), sock, dialler))


class _Timed(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase, sock: socket.socket, dialler: Dialler) -> None:
        self._raw, self._sock, self._dialler = raw, sock, dialler

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(min(self._dialler.limits.read, self._dialler.left()))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


@functools.cache
def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _proxy(url: SplitResult) -> SplitResult | None:
    """The proxy that the environment names for a URL: http_proxy, https_proxy, no_proxy."""
    proxies = getproxies()
    text = proxies.get(url.scheme) or proxies.get("all")
    if not text or proxy_bypass(url.netloc):
        return None
    try:
        proxy = urlsplit(text if "://" in text else f"http://{text}")
        usable = proxy.scheme == "http" and bool(proxy.hostname) and (proxy.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise ModelFileError("The proxy that the environment names is of a kind not used here",
                             seen=f"{url.scheme}_proxy or all_proxy: {show(text.split('@')[-1])}",
                             allowed="http://host:port",
                             hint="set https_proxy to an http proxy, or no_proxy to the host's "
                             "name, or download the model")  # fmt: skip
    return proxy


def proxied(url: SplitResult) -> SplitResult | None:
    """The proxy that must be asked for the whole URL, as plain http is; None without one."""
    return _proxy(url) if url.scheme == "http" else None


def proxy_headers(proxy: SplitResult) -> dict[str, str]:
    """The headers that sign in to a proxy: those of the name and password in its URL."""
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode('ascii')}"}
