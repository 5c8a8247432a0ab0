"""The first bytes of a file on a web server, fetched as they are needed.

Sources: RFC 9110, sections 8.8.3 (ETag), 10.2.3 (Retry-After), 14 (ranges) and 15.4 (redirects).
Of what a server says, nothing is believed that is not checked: the range, the length, the place it
redirects to, and that it is still the same file.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import string
import time
from collections.abc import Callable
from http import HTTPStatus
from types import TracebackType
from urllib.parse import SplitResult, quote, urljoin

from nybble.errors import ModelFileError
from nybble.models.file_kinds import show
from nybble.models.http_connection import Dialler, Limits, parse_url, proxied, proxy_headers, shown
from nybble.models.http_refusals import DOWNLOAD, MAX_WAIT, Retry, refused, token_for

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_REDIRECTS = (301, 302, 303, 307, 308)
_PIECE = 1 << 16


class HTTPFile:
    """The start of one remote file; a context manager that closes its connection.

    Attributes:
        url: where the user says it is, without what redirects made of it.
        data: its first bytes, as many as were fetched.
        size: bytes of the whole file, as the server says; None before the first answer.
    """

    def __init__(self, url: str, limits: Limits, deadline: float) -> None:
        """Connects to nothing yet; `deadline` is of time.monotonic(), for all attempts together.

        Raises:
            ModelFileError: the URL is of another kind than http and https, or damaged.
        """
        self.url = parse_url(url)
        self.data = bytearray()
        self.size: int | None = None
        self.name = self.url.path.rsplit("/", 1)[-1][:200] or shown(self.url)
        self._limits = limits
        self._dialler = Dialler(self.url, limits, deadline)
        self._tag = ""
        self._connection: http.client.HTTPConnection | None = None
        self._origin = ("", "")  # scheme, host and port of the open connection
        self._answer: http.client.HTTPResponse | None = None  # the last one, open or closed
        self._body: http.client.HTTPResponse | None = (
            None  # the same while it stands at byte len(data)
        )
        self._end = 0  # of the open body, in bytes from the start of the file
        self._at, self._token = self.url, token_for(self.url)

    def __enter__(self) -> HTTPFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self._drop()

    def fetch(self, n_bytes: int) -> None:
        """Let `data` hold the first `n_bytes` of the file, or all of it where it is shorter.

        Raises:
            ModelFileError: refused, not there, too slow, changed meanwhile, or no answer to trust.
        """
        self._try(lambda: self._fill(n_bytes))

    def whole(self, most: int) -> bytes:
        """Return all of a small file, of up to `most` bytes.

        Raises:
            ModelFileError: it is larger; or as of `fetch`.
        """
        self._try(lambda: self._load(most))
        return bytes(self.data)

    def _fill(self, n_bytes: int) -> None:
        while self.size is None or len(self.data) < min(n_bytes, self.size):
            if self._body is None:
                self._request(n_bytes)
            if self._body is not None:
                self._read(self._body, n_bytes)

    def _read(self, body: http.client.HTTPResponse, n_bytes: int) -> None:
        end = min(n_bytes, self._end)
        while len(self.data) < end:
            piece = body.read1(min(_PIECE, end - len(self.data)))
            if not piece:
                raise Retry(self._error("The server ends its answer too early",
                                         seen=f"{len(self.data):,} of {end:,} bytes"))  # fmt: skip
            self.data += piece
        if len(self.data) == self._end:
            self._body = None
            if body.length == 0:
                body.close()  # read to its end: the connection can be used again
            else:
                self._drop()

    def _load(self, most: int) -> None:
        self.data.clear()
        self.size = None
        answer = self._follow({})
        if answer.status != HTTPStatus.OK:
            raise refused(answer, self.url, self.name)
        self._check_encoding(answer)
        piece = b" "
        while piece and len(self.data) <= most and (answer.length or 0) <= most:
            piece = answer.read1(_PIECE)
            self.data += piece
        left = answer.length  # None where the server did not say
        self._drop()
        if len(self.data) > most or (left or 0) > most:
            raise self._error(f"{self.name} is too large", allowed=f"up to {most:,} bytes")
        if left:
            raise Retry(self._error("The server ends its answer too early",
                                     seen=f"{left:,} bytes are missing"))  # fmt: skip
        self.size = len(self.data)

    def _request(self, n_bytes: int) -> None:
        """Ask for the bytes from len(data) up to `n_bytes`; opens a body or finds an empty file."""
        start = len(self.data)
        last = min(n_bytes, self.size or n_bytes) - 1
        moved = self._at != self.url
        answer = self._follow({"Range": f"bytes={start}-{last}"})
        status = answer.status
        if status == HTTPStatus.PARTIAL_CONTENT:
            text = answer.getheader("Content-Range", "").strip()
            match = _CONTENT_RANGE.fullmatch(text)
            begin, final, size = map(int, match.groups()) if match else (0, 0, 0)
            if not match or begin != start or not begin <= final < size:
                raise self._error("The server sends another range than was asked for",
                                  seen=f"Content-Range: {show(text)}",
                                  allowed=f"bytes {start}-{last}/SIZE")  # fmt: skip
            self._end = final + 1
        elif status == HTTPStatus.OK:  # it does not know ranges: the whole file comes
            length = answer.getheader("Content-Length", "").strip()
            if not re.fullmatch("[0-9]{1,18}", length):
                raise self._error("The server neither sends ranges nor says how large the file is",
                                  seen=f"Content-Length: {show(length)}",
                                  hint="download the model and name the file")  # fmt: skip
            self._end = size = int(length)
            self.data.clear()
        elif status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and not start and (
                answer.getheader("Content-Range", "").strip() == "bytes */0"):  # fmt: skip
            self._drop()
            self.size = 0
            return
        elif moved and status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.GONE):
            raise Retry(
                refused(answer, self.url, self.name)
            )  # a signed address that is over: ask for another
        else:
            raise refused(answer, self.url, self.name)
        self._check_encoding(answer)
        tag = answer.getheader("ETag") or answer.getheader("Last-Modified") or ""
        tag = tag.removeprefix("W/")
        if self.size not in (None, size) or (self._tag and tag and tag != self._tag):
            raise self._error("The file changed on the server while it was read",
                              seen=f"{self.size:,}, then {size:,} bytes; {show(self._tag)}, then "
                              f"{show(tag)}", hint="run the command again")  # fmt: skip
        self.size, self._tag, self._body = size, tag or self._tag, answer

    def _check_encoding(self, answer: http.client.HTTPResponse) -> None:
        encoding = answer.getheader("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", ""):
            raise self._error("The server compresses the file, though it was asked not to",
                              seen=f"Content-Encoding: {show(encoding)}", allowed="identity",
                              hint="download the model and name the file")  # fmt: skip

    def _follow(self, headers: dict[str, str]) -> http.client.HTTPResponse:
        """Send a request, to where redirects led the last time, and follow further ones."""
        url, token = self._at, self._token
        for _ in range(self._limits.redirects + 1):
            answer = self._send(url, headers, token)
            if answer.status not in _REDIRECTS:
                if answer.status < 300:
                    self._at, self._token = url, token
                return answer
            location = answer.getheader("Location", "")
            self._drop()
            to = self._target(url, location)
            if url.scheme == "https" and to.scheme != "https":
                raise self._error("The server redirects from https to plain http",
                                  seen=show(shown(to)), allowed="https")  # fmt: skip
            if (to.scheme, to.netloc) != (url.scheme, url.netloc):
                token = None
            url = to
        raise self._error("The server redirects too often", seen=f"{self._limits.redirects + 1}",
                          allowed=f"up to {self._limits.redirects}")  # fmt: skip

    def _target(self, url: SplitResult, location: str) -> SplitResult:
        place = quote(location, safe=string.punctuation, encoding="latin-1", errors="replace")
        try:
            return parse_url(urljoin(url.geturl(), place))
        except (ModelFileError, ValueError) as e:
            raise self._error("The server redirects to an address that is not read",
                              seen=show(place), allowed="https and http") from e  # fmt: skip

    def _send(
        self, url: SplitResult, headers: dict[str, str], token: str | None
    ) -> http.client.HTTPResponse:
        origin = (url.scheme, url.netloc)
        if self._connection is None or self._connection.sock is None or self._origin != origin:
            self._drop()
            self._connection, self._origin = self._dialler.connect(url), origin
        # http.client would ask for identity itself; a server may still send gzip.
        headers = {"User-Agent": "nybble", "Accept": "*/*", "Accept-Encoding": "identity"} | headers
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        proxy = proxied(url)
        if proxy is not None:
            target = f"{url.scheme}://{url.netloc}{target}"
            headers |= proxy_headers(proxy)
        self._connection.request("GET", target, headers=headers)
        self._answer = self._connection.getresponse()
        return self._answer

    def _drop(self) -> None:
        for opened in (self._answer, self._connection):
            if opened is not None:
                opened.close()
        self._connection = self._answer = self._body = None

    def _try(self, step: Callable[[], None]) -> None:
        """Do a step, and do it again from where it broke off while that may help."""
        for attempt in range(1, self._limits.attempts + 1):
            try:
                return self._once(step)
            except Retry as e:
                self._drop()
                self._at, self._token = self.url, token_for(self.url)
                wait = max(e.wait, self._limits.backoff * 2 ** (attempt - 1))
                last = attempt == self._limits.attempts or e.wait > MAX_WAIT
                if last or time.monotonic() + wait >= self._dialler.deadline:
                    raise e.error from e.__cause__
                time.sleep(wait)
            except BaseException:
                self._drop()
                raise

    def _once(self, step: Callable[[], None]) -> None:
        try:
            step()
        except TimeoutError as e:
            over = time.monotonic() >= self._dialler.deadline
            limits = self._limits
            what = (f"The server took longer than {limits.total:g} s for this model" if over else
                    f"The server does not answer: nothing came for {limits.read:g} s, or no "
                    f"connection within {limits.connect:g} s")  # fmt: skip
            raise Retry(self._error(what, seen=f"{len(self.data):,} bytes came: "
                                     f"{shown(self.url)}")) from e  # fmt: skip
        except ssl.SSLCertVerificationError as e:
            raise self._error("The server's certificate is not trusted",
                              seen=f"{show(e.verify_message)}: {shown(self.url)}",
                              hint="check the clock and the URL; where this machine has no "
                              "certificates: pip install certifi && export SSL_CERT_FILE="
                              "$(python -m certifi)") from e  # fmt: skip
        except socket.gaierror as e:
            error = self._error("The server's name is not found, or there is no network",
                                hint="check the name and the network; offline, name a local "
                                "file")  # fmt: skip
            if e.errno == socket.EAI_AGAIN:
                raise Retry(error) from e
            raise error from e
        except ConnectionRefusedError as e:
            raise self._error("The server refuses the connection", hint="check the host and the "
                              "port") from e  # fmt: skip
        except (OSError, http.client.HTTPException, UnicodeError) as e:
            reason = getattr(e, "strerror", None) or str(e) or type(e).__name__
            what = "The connection broke, or the answer is no HTTP"
            raise Retry(self._error(what, seen=f"{show(reason)}: {shown(self.url)}")) from e

    def _error(self, what: str, *, seen: object = None, allowed: str | None = None,
               hint: str = DOWNLOAD
               ) -> ModelFileError:  # fmt: skip
        return ModelFileError(what, seen=shown(self.url) if seen is None else seen,
                              allowed=allowed, hint=hint)  # fmt: skip
