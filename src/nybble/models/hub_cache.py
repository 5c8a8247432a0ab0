"""Find a model of the Hugging Face hub in the local cache. Nothing here touches the network."""

from __future__ import annotations

import os
import re
from pathlib import Path

from nybble.errors import ModelFileError
from nybble.models.folder import NEEDED

# One or two parts of letters, digits, "-", "_" and "."; no part is "." or "..".
_ID = re.compile(r"(?!\.)[\w.-]{1,96}(/(?!\.)[\w.-]{1,96})?", re.ASCII)


def is_hub_id(text: str) -> bool:
    """Whether a text could be the id of a model on the hub, such as google/gemma-3-270m."""
    return _ID.fullmatch(text) is not None and ".." not in text and "--" not in text


def hub_cache() -> Path:
    """Where huggingface_hub keeps models: its own environment variables, in its own order."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser()
    home = os.environ.get("HF_HOME")
    if home:
        return Path(home).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "huggingface" / "hub"


def snapshot(hub_id: str) -> Path:
    """The folder of a model in the cache: the revision that `main` names, else the newest.

    Raises:
        ModelFileError: it is not there; says which files are needed and where they may lie.
    """
    cache = hub_cache()
    folder = cache / f"models--{hub_id.replace('/', '--')}"
    try:
        named = (folder / "refs" / "main").read_text(encoding="ascii")[:100].strip()
    except (OSError, ValueError):
        named = ""
    try:
        if re.fullmatch(r"\w+", named) and (folder / "snapshots" / named).is_dir():
            return folder / "snapshots" / named
        found = [p for p in (folder / "snapshots").iterdir() if p.is_dir()]
        if found:
            return max(found, key=lambda p: p.stat().st_mtime)
    except OSError:
        pass
    raise ModelFileError(
        "There is no such file or folder, and no such model in the Hugging Face cache; nybble "
        "does not download",
        seen=hub_id,
        allowed=f"a .gguf file, a folder with {NEEDED}, or the id of a model in {cache}",
        hint=f"hf download {hub_id}, or give the path of a folder with these files",
    )
