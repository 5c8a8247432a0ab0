"""Capabilities held against models and cards; the listener; checkpoints."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from nybble.engines.known.base import release
from nybble.engines.known.registry import NAMES, engine, engines
from nybble.errors import NybbleError
from nybble.formats.setting import parse
from nybble.models.found import find
from nybble.planning.memory.registry import ENGINES
from nybble.planning.request import CardChoice
from nybble.planning.seats import cards_of
from nybble.serving.listener import asked_types, listener, log_text, port_of
from nybble.serving.matrix import choice_lines, engine_line, notes


def works(
    name: str, model: str | None, card: str | None, version: str | None = None
) -> dict[str, str]:
    found = find(model) if model else None
    seats = cards_of(CardChoice(name=card)) if card else None
    return {x.name: x.works or "" for x in choice_lines(engine(name), found, seats, version)}


def test_planning_and_capabilities_know_the_same_engines() -> None:
    assert set(NAMES) == set(ENGINES)


@pytest.mark.parametrize("name", NAMES)
def test_data_is_complete(name: str) -> None:
    found = engine(name)
    assert found.name == name and found.read_on.startswith("2026-") and found.sources
    assert found.flags and found.readback and found.choices
    release(found.version.split()[0])
    for choice in found.choices:
        assert choice.source and (choice.kv is None or parse(choice.kv))
        for version in (choice.since, choice.until):
            assert version is None or release(version)
    for trap in found.traps:
        assert trap.what and trap.source


def test_every_engine_has_a_line() -> None:
    assert [engine_line(e).name for e in engines()] == list(NAMES)


def test_vllm_for_gemma_on_a_24_gb_card() -> None:
    found = works("vllm", "gemma-4-31b", "rtx-4090")
    assert found["int4_per_token_head"].startswith("yes")
    assert found["turboquant_4bit_nc"].startswith("no")  # not settled with sliding windows
    assert works("vllm", "gpt-oss-20b", "rtx-4090")["nvfp4"].startswith("no")  # sinks


def test_a_value_is_not_there_before_its_version() -> None:
    assert works("vllm", None, None, "0.24.0")["int4_per_token_head"] == "no: from 0.25.0"
    assert works("vllm", None, None, "0.25.0")["int4_per_token_head"].startswith("yes")


def test_metal_wants_one_type() -> None:
    seats = cards_of(CardChoice(name="m4-max-128gb"))
    told = notes(engine("llama.cpp"), None, seats, None)
    assert any("sliding windows" in text for text in told)
    assert works("llama.cpp", None, "m4-max-128gb")["iq4_nl"].startswith("no")


def test_traps_of_other_versions_are_left_out() -> None:
    old = notes(engine("llama.cpp"), None, None, "b10000")
    new = notes(engine("llama.cpp"), None, None, "b11549")
    assert any("8 to 45 times" in text for text in old)
    assert not any("8 to 45 times" in text for text in new)


@pytest.mark.parametrize(
    ("command", "types"),
    [
        (["llama-server", "-ctk", "q8_0", "--cache-type-v=q4_0"], ("q8_0", "q4_0")),
        (["llama-server", "-m", "x"], (None, None)),
        (["vllm", "serve", "m", "--kv-cache-dtype", "fp8"], ("fp8", "fp8")),
        (["lmdeploy", "--quant-policy=4"], ("4", "4")),
        (["vllm", "--kv-cache-dtype"], (None, None)),
    ],
)
def test_types_of_a_command_line(command: list[str], types: tuple[str | None, str | None]) -> None:
    assert asked_types(command) == types


def test_ports_of_command_lines() -> None:
    assert port_of(["x", "--port", "81"]) == 81 and port_of(["x", "--port=82"]) == 82
    assert port_of(["x", "--port", "http"]) is None and port_of(["x"]) is None


def test_who_listens() -> None:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        own.listen()
        found = listener(own.getsockname()[1])
    assert found is not None and "python" in found.command[0]
    assert listener(1) is None


def test_a_rotated_log_is_one_text(tmp_path: Path) -> None:
    for name, text in (("a.log.2", "1"), ("a.log.1", "2"), ("a.log", "3")):
        (tmp_path / name).write_text(text)
    assert log_text(tmp_path / "a.log") == "123"
    assert log_text(tmp_path / "none.log") is None


def test_an_unknown_engine_names_the_nearest() -> None:
    with pytest.raises(NybbleError) as caught:
        engine("vlm")
    assert caught.value.hint == "nybble engines vllm"
