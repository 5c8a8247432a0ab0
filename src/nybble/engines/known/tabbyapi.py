"""TabbyAPI, the server of ExLlamaV2 and ExLlamaV3: its config.yml, its keys, where it looks.

Read in theroyallab/tabbyAPI: common/config_models.py and config_sample.yml at 004e837,
backends/exllamav3/model.py there, common/tabby_config.py at 082d538, common/args.py at 03189bc,
common/auth.py at 1089089, docker/Dockerfile at 09ddfa8, docker/docker-compose.yml at 14cd3cb. It
has no releases: the facts are those of the commits.
"""

from __future__ import annotations

from pathlib import PurePath

import yaml

from nybble.engines.known.base import KEY, ConfigFile, Deployment, Launch

PAGE = 256  # tokens; config.yml takes a cache_size of whole pages only
FILE = "config.yml"
KEYS = "api_tokens.yml"
SOURCE = "theroyallab/tabbyAPI 004e837, common/config_models.py"
IMAGE = "ghcr.io/theroyallab/tabbyapi:latest"  # built from main, for CUDA


def place(model: str) -> tuple[str, str, tuple[str, ...]]:
    """`model_dir` and `model_name` of a model, and what must be done before.

    TabbyAPI loads a folder below model_dir and downloads nothing when it starts.

    Args:
        model: path of a folder, hub id, or the bare name of a folder in ./models.
    """
    given = model.removeprefix("hf:")
    path = PurePath(given)
    if path.is_absolute() or given.startswith((".", "~")) or len(path.parts) > 2:
        return str(path.parent), path.name, ()
    if len(path.parts) == 2:
        note = (f"TabbyAPI downloads no model when it starts: hf download {given} --local-dir "
                f"models/{path.name}, in its folder")  # fmt: skip
        return "models", path.name, (note,)
    return "models", given, ()


def cache_size(asked: Deployment) -> int:
    """Tokens of all sequences, each in whole pages."""
    return -(-asked.context // PAGE) * PAGE * asked.sequences


def config(asked: Deployment, cache_mode: str, backend: str | None = None) -> ConfigFile:
    """config.yml of a deployment.

    Args:
        asked: the deployment.
        cache_mode: as TabbyAPI spells it: "FP16", "Q4", or bits of K and V ("8,4").
        backend: None for what TabbyAPI finds in the model's config.json.
    """
    folder, name, _ = place(asked.model)
    model: dict[str, object] = {"model_dir": folder, "model_name": name}
    if backend is not None:
        model["backend"] = backend
    model |= {
        "max_seq_len": asked.context,
        "cache_size": cache_size(asked),
        "cache_mode": cache_mode,
        "max_batch_size": asked.sequences,
    }
    network = {"host": asked.host, "port": asked.port, "disable_auth": not asked.keyed}
    text = yaml.safe_dump({"network": network, "model": model}, sort_keys=False)
    return ConfigFile(FILE, text)


def launch(
    asked: Deployment,
    cache_mode: str,
    backend: str | None = None,
    image: str = "",
    notes: tuple[str, ...] = (),
) -> Launch:
    """`python main.py --config config.yml`, in TabbyAPI's own folder."""
    _, name, before = place(asked.model)
    said = [f"start it in TabbyAPI's folder, with {FILE} in it: python main.py is TabbyAPI's",
            *before, *notes]  # fmt: skip
    if asked.keyed:
        said.append(
            f"TabbyAPI reads keys from {KEYS} beside main.py only: put ${KEY} there as api_key, "
            "and another as admin_key, before it starts; without the file it makes both itself "
            "and prints them"
        )
    if asked.name and asked.name not in (name, asked.model):
        said.append(f"TabbyAPI serves it as {name}, whatever name a request gives")
    if image:
        said.append(f"in the image that folder is /app: mount models as /app/models, {KEYS} beside "
                    "them")  # fmt: skip
    words = ("main.py", "--config", FILE)
    return Launch(
        ("python", *words), files=(config(asked, cache_mode, backend),), image=image,
        store="/app/models", at_home=True,
        image_command=words if image else None,  # the entry point is python3
        notes=tuple(said),
    )  # fmt: skip
