"""The cards here, from outputs of the drivers' tools."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from nybble.planning import machine
from nybble.planning.machine import Run, this_machine

GIB = 2**30


def says(**answers: str) -> Run:
    """A machine whose tools print these; a key is in the command line, with _ for . and -."""
    return lambda command: next(
        (
            text
            for key, text in answers.items()
            if key in " ".join(command).replace("-", "_").replace(".", "_")
        ),
        None,
    )


def test_two_nvidia_cards() -> None:
    first, second = this_machine(
        says(nvidia_smi="NVIDIA GeForce RTX 3090, 24576\nNVIDIA T400 4GB, 3912\n")
    )
    assert (first.name, first.memory_bytes) == ("rtx-3090", 24576 * 2**20)
    assert (first.bandwidth_gbs, first.memory_from) == (936, "nvidia-smi")
    assert (second.name, second.memory_bytes) == ("NVIDIA T400 4GB", 3912 * 2**20)
    assert second.bandwidth_gbs is None
    assert "not in cards.csv" in second.note


def test_memory_is_the_drivers_own() -> None:
    (found,) = this_machine(says(nvidia_smi="NVIDIA H100 80GB HBM3, 81079\n"))
    assert (found.name, found.memory_bytes) == ("h100-sxm", 81079 * 2**20)


def test_a_unified_memory_is_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: 119 * GIB)
    (found,) = this_machine(says(nvidia_smi="NVIDIA GB10, [N/A]\n"))
    assert (found.name, found.memory_bytes) == ("dgx-spark", 119 * GIB)


def test_what_nvidia_smi_prints_without_a_driver() -> None:
    text = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    (found,) = this_machine(says(nvidia_smi=text))
    assert found.vendor == "cpu"


def amd(name: str, vram: int, gtt: int) -> str:
    return json.dumps(
        {
            "card0": {
                "Card Series": name, "VRAM Total Memory (B)": str(vram),
                "VRAM Total Used Memory (B)": "1", "GTT Total Memory (B)": str(gtt),
            },
            "system": {"Driver version": "6.16"},
        }
    )  # fmt: skip


def test_amd() -> None:
    (found,) = this_machine(says(rocm_smi=amd("AMD Radeon RX 7900 XTX", 25753026560, 33 * GIB)))
    # A card's own memory; what it may borrow of the machine is far slower.
    assert (found.name, found.memory_bytes) == ("rx-7900-xtx", 25753026560)
    (found,) = this_machine(says(rocm_smi=amd("Radeon 8060S", 512 * 2**20, 107 * GIB)))
    # Strix Halo: 512 MiB are set aside, the rest is lent.
    assert (found.name, found.memory_bytes) == ("strix-halo-128gb", 512 * 2**20 + 107 * GIB)


@pytest.mark.parametrize("text", ["", "WARNING: no devices", "[]", '{"card0": 1}', '{"card0": {}}',
                                  '{"card0": {"VRAM Total Memory (B)": "x"}}'])  # fmt: skip
def test_odd_output_of_rocm_smi(text: str) -> None:
    (found,) = this_machine(says(rocm_smi=text))
    assert found.vendor == "cpu"


@pytest.mark.parametrize(
    ("chip", "gib", "limit", "n_bytes"),
    [
        # recommendedMaxWorkingSetSize in llama.cpp's logs: 28991.03 MB, 11453.25 MB (10^6 bytes).
        ("Apple M3 Max", 36, "0", 28_991_029_248),
        ("Apple M1", 16, "0", 11_453_246_122),
        ("Apple M1", 16, "", 11_453_246_122),
        ("Apple M3 Ultra", 96, "90000", 90000 * 2**20),
    ],
)
def test_apple(chip: str, gib: int, limit: str, n_bytes: int) -> None:
    (found,) = this_machine(says(machdep=chip + "\n", memsize=str(gib * GIB), iogpu=limit))
    assert found.memory_bytes == n_bytes
    assert found.unified
    assert (found.bandwidth_gbs is not None) == ("Ultra" in chip)


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: 32 * GIB)
    (found,) = this_machine(says())
    assert (found.vendor, found.memory_bytes, found.unified) == ("cpu", 32 * GIB, True)
    assert found.bandwidth_gbs is None
    assert "calibrate" in found.note


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands in for the driver's tool")
def test_tools_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")

    def install(script: str) -> None:
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)

    install('[ "$1" = --query-gpu=name,memory.total ] && echo "NVIDIA L4, 23034"')
    assert [c.name for c in this_machine()] == ["l4"]
    install("echo NVIDIA L4, 23034; exit 9")  # as without a driver
    assert machine._run(["nvidia-smi"]) is None
    install("exec sleep 60")
    monkeypatch.setattr(machine, "_SECONDS", 0.2)
    assert machine._run(["nvidia-smi"]) is None
    assert machine._run(["no-such-tool-of-a-driver"]) is None
