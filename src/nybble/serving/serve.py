"""`serve`: plan a deployment for this machine, start its engine, and keep it alive."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from nybble.engines.known.base import KEY
from nybble.engines.llamacpp import server as own_server
from nybble.engines.llamacpp.cachelog import AppliedCache, parse_cache_log
from nybble.environment import cache_dir
from nybble.errors import EngineError, NybbleError
from nybble.models.checkpoint import resolve
from nybble.serving import runs
from nybble.serving.deploy import DeployRequest, deploy
from nybble.serving.supervisor import Program, Supervisor

_OWN = "llama.cpp"
_NO_TEMPLATE = (
    "the model brings no chat template: ChatML is used, with tools as JSON; a base model does not "
    'know where its turn ends, so give stop=["<|im_end|>"]'
)
_START = "llama_context: constructing"
_CACHE_LINES = ("llama_kv_cache", _START)


@dataclass(frozen=True)
class ServeRequest:
    """What to serve, and how.

    Attributes:
        deploy: the deployment.
        program: engine's program, in place of llama.cpp in process or of the name on PATH; the
            folder of TabbyAPI.
        log: file of the engine's output; None for one in the cache folder.
        timeout: seconds a start may take.
        slots: folder that clients may save slots to (llama.cpp); None for no such endpoint.
        key: what requests must carry; None for the environment's, where the deployment is keyed.
    """

    deploy: DeployRequest
    program: str | None = None
    log: Path | None = None
    timeout: float = 1800.0
    slots: Path | None = None
    key: str | None = field(default=None, repr=False)


class Server:
    """A server that runs; a context manager, which ends it.

    Attributes:
        deployed: what runs.
        url: its OpenAI-compatible address.
        log: file of its output.
        notes: what a user should know.
    """

    def __init__(self, request: ServeRequest, on_event: Callable[[str], None]) -> None:
        self.deployed = deploy(request.deploy)
        asked = self.deployed.deployment
        self.notes = self.deployed.notes
        self._launch = self.deployed.launch()
        self._timeout = request.timeout
        self._slots = _made(request.slots)
        self._said: list[str] = []
        self._folder = tempfile.TemporaryDirectory(prefix="nybble-serve-")
        self._check_port()
        base = f"http://{_reached(asked.host)}:{asked.port}"
        self.url = base + self._launch.api
        self.log = request.log or cache_dir() / "serving" / f"{asked.port}.log"
        self._base = base
        program = self._program(request, base)
        self.supervisor = Supervisor(program, on_line=self._hear, on_event=on_event)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, tell: Callable[[float], None] = lambda _: None) -> None:
        """Start, wait until it is healthy, and check what the engine says of its cache.

        Raises:
            EngineError: it does not start, or its cache is another than asked for.
        """
        asked = self.deployed.deployment
        self.supervisor.start()
        self.supervisor.wait_ready(self._timeout, tell)
        self._check_cache()
        for command in self._launch.after:
            self.supervisor.run(command, self._timeout)
        runs.remember(
            runs.Run(
                self._base, self.deployed.engine.name, asked.model, str(asked.setting),
                asked.context, asked.sequences, self.deployed.fit.bytes_per_token, str(self.log),
                os.getpid(), self._slots,
            ),
            asked.port,
        )  # fmt: skip

    def keep(self) -> None:
        """Restart it whenever it dies, until `stop` is called from another thread.

        Raises:
            EngineError: it dies again and again.
        """
        self.supervisor.keep(self._timeout)

    def stop(self) -> None:
        """End it."""
        self.supervisor.stop()
        runs.forget(self.deployed.deployment.port)
        self._folder.cleanup()

    def _check_cache(self) -> None:
        applied = self.applied
        if applied is not None and applied.subcaches:
            applied.verify(self.deployed.deployment.setting)

    @property
    def applied(self) -> AppliedCache | None:
        """The cache in effect, as llama.cpp's log tells it; None for engines that log otherwise."""
        if self.deployed.engine.name != _OWN:
            return None
        return parse_cache_log("\n".join(self._said))

    def _hear(self, line: str) -> None:
        if any(word in line for word in _CACHE_LINES):
            if _START in line:
                self._said.clear()  # a restart: what counts is the cache of now
            self._said.append(line)

    def _program(self, request: ServeRequest, base: str) -> Program:
        launch, asked = self._launch, self.deployed.deployment
        env = {name: _filled(value, request.key) for name, value in launch.env.items()}
        if not asked.keyed:
            # A key of the surroundings would lock out those who were told of none.
            env |= dict.fromkeys(("LLAMA_API_KEY", "VLLM_API_KEY"), "")
        health = base + launch.health
        if self.deployed.engine.name == _OWN and request.program is None:
            path = asked.model
            if not Path(path).is_file():
                raise NybbleError(
                    "llama.cpp in process serves a local file", seen=path,
                    allowed="a GGUF on this disk, or --program llama-server, which downloads it",
                    hint=f"--program llama-server, or download {path.rsplit('/', 1)[-1]} first",
                )  # fmt: skip
            told = own_server.parameters(
                path, asked.setting.k, asked.setting.v, context=asked.context,
                sequences=asked.sequences, host=asked.host, port=asked.port, name=asked.name,
                slots=self._slots or None, template=self._template(path),
            )  # fmt: skip
            return Program([sys.executable, "-m", own_server.MODULE], health, self.log, env,
                           own_server.line(told))  # fmt: skip
        files = Path(self._folder.name)
        for file in launch.files:
            (files / file.name).write_text(file.text, encoding="utf-8")
        command = [_filled(word, request.key) for word in launch.command]
        if launch.at_home:
            names = {file.name: str(files / file.name) for file in launch.files}
            command = [names.get(word, word) for word in command]
            home = _home(request.program, command[1], self.deployed.engine.name)
            own = home / "venv" / "bin" / "python"  # where TabbyAPI's own script puts it
            command[0] = str(own) if own.exists() else sys.executable
            return Program(command, health, self.log, env, folder=home)
        command[0] = _found(request.program or command[0], self.deployed.engine.name)
        if self._slots and self.deployed.engine.name == _OWN:
            command += ["--slot-save-path", self._slots]
        return Program(command, health, self.log, env, folder=files if launch.files else None)

    def _template(self, path: str) -> str | None:
        if resolve(path).chat_template:
            return None
        self.notes = (*self.notes, _NO_TEMPLATE)
        return own_server.plain_template()

    def _check_port(self) -> None:
        asked = self.deployed.deployment
        with socket.socket(socket.AF_INET6 if ":" in asked.host else socket.AF_INET) as probe:
            # As engines listen: an address that a past server's connections still hold is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((asked.host, asked.port))
            except OSError as error:
                raise NybbleError(
                    "cannot listen there", seen=f"{asked.host}:{asked.port}: {error.strerror}",
                    allowed="an address of this machine and a free port",
                    hint=f"--port {asked.port + 1 if asked.port < 65535 else 8080}",
                ) from error  # fmt: skip


def serve(request: ServeRequest, on_event: Callable[[str], None] = lambda _: None) -> Server:
    """Prepare a server; `start` starts it.

    Args:
        request: what to serve.
        on_event: called with what happens to the engine, in words, from another thread.

    Raises:
        NybbleError: see `deploy`; the port is taken; the program is not installed; no key.
    """
    if request.deploy.keyed and request.key is None:
        key = os.environ.get(KEY, "").strip()
        if not key:
            raise NybbleError("there is no key for --api-key", seen=f"{KEY} is not set",
                              hint=f"export {KEY}=$(openssl rand -hex 24)")  # fmt: skip
        request = replace(request, key=key)
    return Server(request, on_event)


def watch(server: Server, stopped: threading.Event) -> None:
    """Keep a server alive until `stopped` is set.

    Raises:
        EngineError: it dies again and again.
    """
    failure: list[EngineError] = []

    def keep() -> None:
        try:
            server.keep()
        except EngineError as error:
            failure.append(error)
        stopped.set()

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    stopped.wait()
    server.stop()
    thread.join()
    if failure:
        raise failure[0]


def _made(folder: Path | None) -> str:
    """The folder's path, made where it is missing; "" for none.

    Raises:
        NybbleError: it cannot be made.
    """
    if folder is None:
        return ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NybbleError("cannot make the folder for slots", seen=f"{folder}: {error.strerror}",
                          hint="--slots A_FOLDER_OF_YOURS") from error  # fmt: skip
    return str(folder.resolve())


def _found(program: str, engine: str) -> str:
    """The program's path.

    Raises:
        NybbleError: it is not installed.
    """
    found = shutil.which(program)
    if found is None:
        raise NybbleError(
            f"{engine} is not installed here", seen=f"{program} is not on PATH",
            allowed="an installed program, or --program PATH",
            hint=f"install {engine}, or nybble config for a container",
        )  # fmt: skip
    return found


def _home(program: str | None, script: str, engine: str) -> Path:
    """The folder an engine runs in.

    Raises:
        NybbleError: it was not named, or its script is not in it.
    """
    folder = Path(program or ".").resolve()
    folder = folder.parent if folder.is_file() else folder
    if not (folder / script).is_file():
        raise NybbleError(
            f"{engine} is served by a program that runs in its own folder",
            seen=f"no {script} in {folder}", allowed=f"the folder with its {script}",
            hint="--program /path/to/tabbyAPI",
        )  # fmt: skip
    return folder


def _filled(word: str, key: str | None) -> str:
    return (key or "") if word == f"${KEY}" else word


def _reached(host: str) -> str:
    """The address that this machine reaches a listener by."""
    any_address = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
    if host in any_address:
        return any_address[host]
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
