"""What an HTTP answer without a file means, and what the user can do about it."""

from __future__ import annotations

import http.client
import os
import re
from urllib.parse import SplitResult

from nybble.errors import ModelFileError
from nybble.models.http_connection import shown

HUB = "huggingface.co"  # the only host that gets the token, over https
MAX_WAIT = 30.0  # seconds of a Retry-After that are waited for
DOWNLOAD = "try again later, or download the model and name the file"
_AGAIN_LATER = (408, 425, 429, 500, 502, 503, 504)
_BY_HAND = "download the model and name the file"


class NoSuchFile(ModelFileError):
    """The server says that the file is not there."""


class Retry(Exception):
    """A failure that another attempt may not meet, after `wait` seconds; never shown to users."""

    def __init__(self, error: ModelFileError, wait: float = 0.0) -> None:
        self.error, self.wait = error, wait


def token_for(url: SplitResult) -> str | None:
    """The user's token of HF_TOKEN, for the hub over https and for nobody else.

    Raises:
        ModelFileError: the token holds characters that no header may hold.
    """
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token or not is_hub(url):
        return None
    if not re.fullmatch(r"[!-~]{1,1000}", token):
        raise ModelFileError("HF_TOKEN is no token", seen="it holds spaces or odd characters",
                             allowed="hf_ and letters", hint="export HF_TOKEN=hf_...")  # fmt: skip
    return token


def is_hub(url: SplitResult) -> bool:
    """Whether a URL is one of the Hugging Face hub, over https."""
    return url.scheme == "https" and url.hostname == HUB and url.port in (None, 443)


def refused(answer: http.client.HTTPResponse, url: SplitResult, name: str) -> ModelFileError:
    """Return the error for an answer other than a file, to a request for `name` at `url`.

    Raises:
        Retry: asking again may help.
    """
    status = answer.status
    seen = f"HTTP {status} {http.client.responses.get(status, '')}".rstrip() + f": {shown(url)}"
    if status in _AGAIN_LATER:
        text = answer.getheader("Retry-After", "").strip()
        wait = float(text) if re.fullmatch("[0-9]{1,9}", text) else 0.0
        what = "The server has a failure of its own"
        hint = DOWNLOAD
        if status == 429:
            what = "The server limits how often it is asked"
            if wait > MAX_WAIT:
                hint = f"wait {wait:,.0f} s and run the command again"
            if is_hub(url) and token_for(url) is None:
                hint += "; export HF_TOKEN=hf_... raises the limit"
        raise Retry(ModelFileError(what, seen=seen, hint=hint), wait)
    if status in (401, 403) and is_hub(url):
        repo = "/".join(url.path.split("/")[1:3])
        how = "hf_..." if token_for(url) is None else "... of an account that may read it"
        return ModelFileError("The model is gated or private, or there is none of this name",
                              seen=seen, allowed="public models, and those your token may read",
                              hint=f"check the name, accept the terms at https://{HUB}/{repo}, "
                              f"then: export HF_TOKEN={how} (https://{HUB}/settings/tokens)"
                              )  # fmt: skip
    if status in (401, 403):
        what = "The server does not give this file to everyone"
        return ModelFileError(what, seen=seen, hint=_BY_HAND)
    if status in (404, 410):
        return NoSuchFile(f"There is no {name} on the server", seen=seen,
                          hint="check the URL; capital and small letters differ")  # fmt: skip
    if status == 416:
        what = "The server refuses a range within the file"
        return ModelFileError(what, seen=seen, hint=_BY_HAND)
    return ModelFileError("The server gives an unexpected answer", seen=seen, hint=DOWNLOAD)
