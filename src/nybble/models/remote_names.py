"""How a remote model can be named, and the URL that each name stands for."""

from __future__ import annotations

import os
import re

from nybble.errors import ModelFileError
from nybble.models.file_kinds import show
from nybble.models.hub_cache import is_hub_id

HUB = "https://huggingface.co"
_SCHEME = re.compile(r"(?i)(https?://|hf:)")
_HUB_NAME = re.compile(r"(?i:hf:)(?://)?([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?", re.DOTALL)
_HUB_PAGE = re.compile(r"/([^/]+/[^/]+)(?:/(?:blob|resolve|raw|tree)/([^/]+)(?:/(.*))?)?")
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")


def is_remote(text: str) -> bool:
    """Whether a text names a model elsewhere: https://..., http://... or hf:org/repo[/file]."""
    return _SCHEME.match(text) is not None


def names_gguf(text: str) -> bool:
    """Whether a remote name is that of a GGUF file, which `remote_gguf` reads."""
    return re.search(r"(?i)\.gguf(?:[?#]|$)", text) is not None


def url_of(model: str) -> str:
    """The URL of a remote file or folder, from any way to name it."""
    from nybble.models.http_connection import parse_url

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ModelFileError("A remote model cannot be read: HF_HUB_OFFLINE is set",
                             seen=show(model), allowed="files, folders and models in the cache",
                             hint="unset HF_HUB_OFFLINE, or name a local file")  # fmt: skip
    if not is_remote(model) and is_hub_id(model) and "/" in model:
        model = f"hf:{model}"
    if model[:3].lower() == "hf:":
        named = _HUB_NAME.fullmatch(model)
        if named is None:
            raise _no_hub_name(model)
        endpoint = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or HUB
        parse_url(endpoint)
        return _hub_url(endpoint, model, *named.groups())
    url = parse_url(model)
    if url.hostname in _HUB_HOSTS:
        page = _HUB_PAGE.fullmatch(url.path.rstrip("/"))
        if page is not None and not url.path.startswith(("/datasets/", "/spaces/", "/api/")):
            return _hub_url(HUB, model, *page.groups())
    return url.geturl()


def _hub_url(endpoint: str, model: str, repo: str, revision: str | None, path: str | None) -> str:
    from urllib.parse import quote

    parts = path.rstrip("/").split("/") if path else []
    wrong = any(p in ("", ".", "..") for p in parts) or revision in (".", "..")
    if not is_hub_id(repo) or wrong:
        raise _no_hub_name(model)
    safe = "/%+,=@!$&'()~:;"  # "%": an escape of a copied URL stays as it is
    return "/".join([f"{endpoint}/{repo}/resolve/{quote(revision or 'main', safe='%')}",
                     *(quote(p, safe=safe) for p in parts)])  # fmt: skip


def _no_hub_name(model: str) -> ModelFileError:
    return ModelFileError("This is no name on the Hugging Face hub", seen=show(model),
                          allowed="hf:org/repo, hf:org/repo/file.gguf, "
                          "hf:org/repo@revision/file.gguf", hint="check the name")  # fmt: skip


def inside(url: str, name: str) -> str:
    """The URL of a file of a folder."""
    if "?" in url:
        raise ModelFileError("The URL of a folder cannot have a query", seen=show(url),
                             hint="leave out the part from ? on")  # fmt: skip
    return f"{url.removesuffix('/config.json').rstrip('/')}/{name}"
