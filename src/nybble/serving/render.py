"""A launch written down: shell script, docker compose file, Kubernetes manifest, JSON.

Secrets are never written: the API key is an environment variable (`$NYBBLE_API_KEY`) in the
shell, interpolated by compose, a Secret in Kubernetes.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nybble.engines.known.base import KEY, ConfigFile, Launch
from nybble.errors import NybbleError
from nybble.serving.deploy import Deployed, at

FORMS = ("shell", "compose", "kubernetes", "json")
FILES = {"shell": "run.sh", "compose": "compose.yaml", "kubernetes": "kubernetes.yaml",
         "json": "launch.json"}  # fmt: skip
_INSIDE = "/models"  # where a container sees the model's folder
_CONFIG = "/config"  # and the engine's own files
_VARIABLE = re.compile(r"\$([A-Z][A-Z0-9_]*)")
_GPU = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu", "intel": "gpu.intel.com/xe"}


def render(deployed: Deployed, form: str) -> str:
    """One of `FORMS`, as text that ends with a newline.

    Raises:
        NybbleError: unknown form, or the engine has no container image.
    """
    if form == "shell":
        return shell(deployed.launch(), head=_about(deployed))
    if form == "compose":
        return _about(deployed) + _yaml([compose(deployed)])
    if form == "kubernetes":
        return _about(deployed) + _yaml(kubernetes(deployed))
    if form == "json":
        return json.dumps(as_dict(deployed), indent=1) + "\n"
    raise NybbleError("unknown form", seen=form, allowed=FORMS, hint="--form shell")


def shell(launch: Launch, head: str = "") -> str:
    """A POSIX shell script: files by here-documents, variables, and the command."""
    lines = ["#!/bin/sh", *head.splitlines(), "set -eu"]
    for file in launch.files:
        end = "EOF"
        while end in file.text.splitlines():
            end += "F"
        lines += [f"cat > {shlex.quote(file.name)} <<'{end}'", file.text.rstrip("\n"), end]
    lines += [f"export {name}={_quoted(value)}" for name, value in launch.env.items()]
    lines.append("exec " + " ".join(_quoted(word) for word in launch.command))
    return "\n".join(lines) + "\n"


def _quoted(word: str) -> str:
    """A word for the shell; `$NAME` alone is a variable, which must be set."""
    match = _VARIABLE.fullmatch(word)
    return f'"${{{match[1]}:?}}"' if match else shlex.quote(word)


def compose(deployed: Deployed) -> dict[str, Any]:
    """A docker compose file with one service; only loopback reaches it without a key."""
    launch, mount = _inside(deployed)
    asked = deployed.deployment
    service: dict[str, Any] = {
        "image": launch.image,
        "command": [_interpolated(w) for w in _words(launch)],
        "ports": [f"{_bracketed(asked.host)}:{asked.port}:{asked.port}"],
        "restart": "unless-stopped",
    }
    variables = {name: _interpolated(value) for name, value in launch.env.items()}
    if variables:
        service["environment"] = variables
    volumes = [f"{mount}:{_INSIDE}:ro"] if mount else [f"models:{launch.store}"]
    volumes += [f"./{file.name}:{_CONFIG}/{file.name}:ro" for file in launch.files]
    service["volumes"] = volumes
    vendor = asked.hardware.vendor
    if vendor == "nvidia":
        device = {"driver": "nvidia", "count": asked.cards, "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    elif vendor in ("amd", "intel"):
        service["devices"] = ["/dev/dri:/dev/dri"]
        if vendor == "amd":
            service["devices"].insert(0, "/dev/kfd:/dev/kfd")
            service["group_add"] = ["video", "render"]
    if asked.cards > 1:
        service["ipc"] = "host"  # the cards' processes exchange tensors in shared memory
    made: dict[str, Any] = {"services": {"nybble": service}}
    if not mount:
        made["volumes"] = {"models": {}}
    return made


def kubernetes(deployed: Deployed) -> list[dict[str, Any]]:
    """Deployment, Service, and a ConfigMap for the engine's files; the key is a Secret.

    A Service is reached by the whole cluster, so it always takes a key.

    Raises:
        NybbleError: the engine cannot ask for a key.
    """
    launch, mount = _inside(deployed, keyed=True)
    asked = deployed.deployment
    name = re.sub(r"[^a-z0-9]+", "-", f"nybble-{deployed.engine.name}".lower()).strip("-")
    labels = {"app": name}
    secret = {"secretKeyRef": {"name": f"{name}-key", "key": KEY}}
    variables: list[dict[str, Any]] = [{"name": KEY, "valueFrom": secret}]
    variables += [{"name": n, "value": _VARIABLE.sub(r"$(\1)", v)} for n, v in launch.env.items()]
    probe = {"httpGet": {"path": launch.health, "port": asked.port}}
    container: dict[str, Any] = {
        "name": "engine",
        "image": launch.image,
        "args": [_VARIABLE.sub(r"$(\1)", word) for word in _words(launch)],
        "env": variables,
        "ports": [{"containerPort": asked.port}],
        # Loading tens of gigabytes takes minutes: 60 tries of 10 s before it counts as failed.
        "startupProbe": {**probe, "periodSeconds": 10, "failureThreshold": 60},
        "livenessProbe": {**probe, "periodSeconds": 20, "timeoutSeconds": 10},
        "readinessProbe": {**probe, "periodSeconds": 5},
        "volumeMounts": [{"name": "models", "mountPath": _INSIDE if mount else launch.store}],
    }
    resource = _GPU.get(asked.hardware.vendor or "")
    if resource:
        container["resources"] = {"limits": {resource: asked.cards}}
    volumes: list[dict[str, Any]] = [
        {"name": "models", "persistentVolumeClaim": {"claimName": f"{name}-models"}}
    ]
    if asked.cards > 1:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
        container["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})
    made: list[dict[str, Any]] = []
    if launch.files:
        data = {file.name: file.text for file in launch.files}
        made.append({"apiVersion": "v1", "kind": "ConfigMap",
                     "metadata": {"name": f"{name}-files"}, "data": data})  # fmt: skip
        volumes.append({"name": "files", "configMap": {"name": f"{name}-files"}})
        container["volumeMounts"].append({"name": "files", "mountPath": _CONFIG})
    pod = {"containers": [container], "volumes": volumes}
    made.append({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {"replicas": 1, "strategy": {"type": "Recreate"},  # one card, one server
                 "selector": {"matchLabels": labels},
                 "template": {"metadata": {"labels": labels}, "spec": pod}},
    })  # fmt: skip
    ports = [{"port": asked.port, "targetPort": asked.port}]
    made.append({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
                 "spec": {"selector": labels, "ports": ports}})  # fmt: skip
    return made


def as_dict(deployed: Deployed) -> dict[str, Any]:
    """Everything about a launch, for programs."""
    launch, asked = deployed.launch(), deployed.deployment
    return {
        "engine": deployed.engine.name,
        "engine_version_read": deployed.engine.version,
        "model": asked.model,
        "kv": str(asked.setting),
        "context": asked.context,
        "sequences": asked.sequences,
        "bytes_per_token": deployed.fit.bytes_per_token,
        "quality": deployed.quality,
        "command": list(launch.command),
        "env": dict(launch.env),
        "files": {file.name: file.text for file in launch.files},
        "image": launch.image,
        "notes": [*launch.notes, *deployed.notes],
    }


def written(deployed: Deployed, folder: Path) -> list[Path]:
    """Write every form that this engine has, and its own files, into a folder.

    Raises:
        NybbleError: the folder cannot be written, or holds such a file already.
    """
    texts = [ConfigFile(FILES[form], render(deployed, form)) for form in ("shell", "json")]
    texts += deployed.launch().files
    for form in ("compose", "kubernetes"):
        try:
            texts.append(ConfigFile(FILES[form], render(deployed, form)))
        except NybbleError:
            continue  # no image or no key: said by `render` when it is asked for that form
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in texts:
            if (folder / file.name).exists():
                raise NybbleError("a file of this name is there already",
                                  seen=folder / file.name, hint="--out ANOTHER_FOLDER")  # fmt: skip
        for file in texts:
            (folder / file.name).write_text(file.text, encoding="utf-8")
        (folder / FILES["shell"]).chmod(0o755)
    except OSError as error:
        raise NybbleError("cannot write the files", seen=str(error),
                          hint="--out A_FOLDER_OF_YOURS") from error  # fmt: skip
    return [folder / file.name for file in texts]


def _inside(deployed: Deployed, keyed: bool | None = None) -> tuple[Launch, str]:
    """The launch as a container sees it, and the folder of the host that holds the model."""
    asked = deployed.deployment
    mount, changes = "", dict[str, object](host="0.0.0.0")
    if Path(asked.model).is_absolute():
        path = Path(asked.model)
        mount = str(path.parent)
        changes["model"] = f"{_INSIDE}/{path.name}"
    if keyed is not None:
        changes["keyed"] = keyed
    launch = at(deployed, **changes)
    if not launch.image:
        raise NybbleError(
            f"{deployed.engine.name} has no container image of its project",
            seen=deployed.engine.name, allowed="--form shell, --form json", hint="--form shell",
        )  # fmt: skip
    return launch, mount


def _words(launch: Launch) -> list[str]:
    """The command in the image, its files by their path there."""
    words = launch.command if launch.image_command is None else launch.image_command
    names = {file.name for file in launch.files}
    return [f"{_CONFIG}/{w}" if w in names else w for w in words]


def _interpolated(word: str) -> str:
    match = _VARIABLE.fullmatch(word)
    return f"${{{match[1]}:?}}" if match else word.replace("$", "$$")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _about(deployed: Deployed) -> str:
    asked, lines = deployed.deployment, []
    users = f"{asked.sequences} x " if asked.sequences > 1 else ""
    size = f"{users}{asked.context:,} tokens, {deployed.fit.bytes_per_token:,} bytes a token"
    name = asked.name or asked.model
    lines.append(f"{name} in {deployed.engine.name}, KV {asked.setting}, {size}")
    if deployed.quality:
        lines.append(deployed.quality)
    lines += [f"note: {text}" for text in (*deployed.launch().notes, *deployed.notes)]
    return "".join(f"# {line}\n" for text in lines for line in text.splitlines())


class _Dumper(yaml.SafeDumper):
    """Long texts as blocks, and no aliases, which people do not expect in a manifest."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _yaml(documents: list[Mapping[str, Any]] | list[dict[str, Any]]) -> str:
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=100)
