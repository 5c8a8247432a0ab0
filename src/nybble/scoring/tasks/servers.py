"""Running servers, asked through /v1/completions: exact answers only, since options need logits.

Prompts are sent as token ids, the same for every server. Answers are decoded after the context,
so each of their tokens reads the cache as it is stored. That a quantized server answers as the
16-bit one does may be so, and from outside nobody can tell it from a cache that was not read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nybble.engines.child import EngineProcess, Frame
from nybble.engines.server.base import Identity, Server, field
from nybble.engines.server.registry import connect
from nybble.errors import EngineError, NybbleError
from nybble.formats import KVSetting, parse
from nybble.results.records import ModelRecord
from nybble.scoring.prepare import PreparedModel
from nybble.scoring.request import FLOOR, REFERENCE, MeasureRequest, Progress
from nybble.scoring.server_backend import Servers
from nybble.scoring.server_check import check_server
from nybble.scoring.tasks import backend
from nybble.scoring.tasks.asking import STOP, Answered
from nybble.scoring.tasks.frames import Asked, AskedQuery, unpack


class ServerTasks:
    """One server for each KV setting, or one after the other behind one address.

    Args:
        request: the measurement whose options hold, with `urls`.
        servers: its engine, which checks models and addresses.
    """

    def __init__(self, request: MeasureRequest, servers: Servers) -> None:
        self._request, self._servers = request, servers
        self.name = servers.name
        self.protocol: dict[str, Any] = {
            "engine": servers.name,
            "hot_cache": "answers are decoded after the context, through the servers' HTTP API",
            "options": "not weighed: servers tell too few probabilities",
            "addresses": ", ".join(f"{s}={url}" for s, url in servers.urls.items()),
        }

    def check(self, path: Path) -> list[str]:
        """Refuse what the engine has no setting for, and contexts that are too long."""
        return self._servers.check([path])

    def settings(self, folder: Path) -> list[KVSetting]:
        """The 16-bit setting that is named, or was asked into this folder before; then the rest.

        Raises:
            NybbleError: neither.
        """
        named = list(self._servers.urls)
        asked = [s for s in (REFERENCE, FLOOR) if any(folder.glob(f"tasks/*-{s.k}-{s.v}-*"))]
        plain = [s for s in (REFERENCE, FLOOR) if s in named] or asked
        if not plain:
            raise NybbleError(
                "there is nothing to compare with: no 16-bit server is named, and none was asked "
                "into this folder before",
                seen=", ".join(map(str, named)),
                allowed="an f16/f16 or bf16/bf16 server of the same model",
                hint="--url bf16/bf16=http://127.0.0.1:8000",
            )
        return list(dict.fromkeys([plain[0], *named]))

    def prepare(self, path: Path, progress: Progress) -> PreparedModel:
        """Hash the weights that are here; those that are asked are the servers'."""
        return self._servers.prepare("a", path, progress)

    def maker(self, model: PreparedModel) -> tuple[EngineProcess, dict[str, Any]]:
        """The model's own tokenizer, as for every other engine."""
        child, extra, _ = backend.tokenizing(model, self._request.timeout)
        return child, extra

    def open(self, model: PreparedModel, progress: Progress) -> Asker:
        """Connections are made with the first question."""
        return Asker(self._servers, model, self._request.timeout, progress)

    def identity(self, setting: KVSetting) -> Any:
        """The engine's name alone: a server that is not there cannot tell its version."""
        return self._servers.identity(setting, "a")

    def record(self, model: PreparedModel) -> ModelRecord:
        """As its headers say."""
        return model.record

    def versions(self) -> dict[str, str]:
        """The servers' version, as they tell it."""
        return self._servers.versions()


class Asker:
    """Answers what a child answers to "lanes" and "ask", by asking servers.

    Args:
        servers: knows the addresses.
        model: the one they serve.
        timeout: seconds to wait for an answer.
        progress: told of what servers say.
    """

    def __init__(
        self, servers: Servers, model: PreparedModel, timeout: float, progress: Progress
    ) -> None:
        self._servers, self._model = servers, model
        self._timeout, self._progress = timeout, progress
        self._lanes: list[KVSetting] = []
        self._open: dict[KVSetting, tuple[Server, Identity]] = {}
        self.where: dict[str, Any] = {}

    def request(
        self, header: dict[str, Any], payload: bytes = b"",
        on_event: Callable[[dict[str, Any]], None] | None = None,
    ) -> Frame:  # fmt: skip
        """Answer one request.

        Raises:
            EngineError: a server is not there, refuses, or is not the one that was meant; `where`
                names its lane.
        """
        if header["op"] == "lanes":
            self._lanes = [parse(text) for _, text in header["lanes"]]
            for lane in range(len(self._lanes)):
                self.where = {"step": "context", "lane": lane}
                self._server(lane)
            return Frame({})
        asked = unpack(header["lengths"], payload)
        found = []
        for lane in header["lanes"]:
            self.where = {"step": "ask", "lane": lane}
            answered = [self._ask(lane, asked, q) for q in asked.queries]
            found.append([asdict(a) for a in answered])
            if on_event:
                on_event({"done": asked.work})
        return Frame({"answered": found})

    def _server(self, lane: int) -> tuple[Server, Identity]:
        setting = self._lanes[lane]
        if setting not in self._open:
            url = self._servers.urls.get(setting)
            if url is None:
                raise EngineError(
                    f"the {setting} server is needed once more: not all of it was asked before",
                    hint=f"--url {setting}=http://HOST:PORT",
                )
            server = connect(self._servers.name, url, self._timeout)
            try:
                identity = check_server(server, setting, self._servers, self._model)
            except BaseException:
                server.client.close()
                raise
            for note in server.notes:
                self._progress.note(f"{setting}: {note}")
            self._servers.seen[self._servers.name] = identity.version
            self._open[setting] = server, identity
        return self._open[setting]

    def _ask(self, lane: int, asked: Asked, query: AskedQuery) -> Answered:
        server, identity = self._server(lane)
        prompt: Sequence[int] = [*asked.context.tolist(), *query.stem, *query.rest]
        answer = server.client.post("/v1/completions", {
            "model": identity.model, "prompt": prompt, "max_tokens": query.most,
            "temperature": 0, "stop": [STOP],
        })  # fmt: skip
        of = self._servers.name
        choice = field(answer, "choices", 0, of=of)
        tokens = field(answer, "usage", "completion_tokens", of=of)
        text = field(choice, "text", of=of)
        if not isinstance(text, str) or not isinstance(tokens, int):
            raise EngineError(f"{of} answered with something else than a text",
                              seen=str(answer)[:200])  # fmt: skip
        return Answered((), text, tokens, choice.get("finish_reason") == "stop")

    def close(self) -> None:
        """End the connections; the servers go on."""
        for server, _ in self._open.values():
            server.client.close()
        self._open = {}
