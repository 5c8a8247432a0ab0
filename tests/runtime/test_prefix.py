"""Prefixes in files: what is read is what was written, and nothing else is read."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packed_runs import packed_model, run
from tiny_torch import build, config_of, text

from nybble.errors import NybbleError
from nybble.runtime.attention import attach
from nybble.runtime.cache import Cache
from nybble.runtime.prefix import tokens_of


@pytest.mark.parametrize("setting", ["q4_0/q8_0", "q5_1/iq4_nl+first3+recent6"])
@pytest.mark.parametrize("kind", ["llama", "gemma3", "gemma4-shared", "gpt-oss"])
def test_a_prefix_goes_on_as_if_it_had_stayed(kind: str, setting: str, tmp_path: Path) -> None:
    model, tokens = packed_model(kind), text(90)
    cache = Cache(model, setting)
    run(model, tokens[:80], cache, [70, 10])
    cache.save(tmp_path / "p.safetensors", torch.tensor([tokens[:80]]))
    loaded = Cache.load(tmp_path / "p.safetensors", model)
    assert loaded.get_seq_length() == 80 and loaded.setting == cache.setting
    assert tokens_of(tmp_path / "p.safetensors").tolist() == [tokens[:80]]
    expected = run(model, tokens[80:], cache, [4, *[1] * 6])
    got = run(model, tokens[80:], loaded, [4, *[1] * 6])
    # The recent window lies elsewhere on its pages, so its sums may run in another order, and a
    # later value over the edge to the next code.
    assert (got - expected).norm() < 0.05 * expected.norm()
    torch.testing.assert_close(got[0], expected[0], atol=1e-4, rtol=1e-4)


def test_a_latent_prefix(tmp_path: Path) -> None:
    model, tokens = packed_model("gemma4"), text(40)
    cache = Cache(model, "q8_0/q8_0", latent=True)
    run(model, tokens[:30], cache, [30])
    cache.save(tmp_path / "p")
    loaded = Cache.load(tmp_path / "p", model)
    assert torch.equal(run(model, tokens[30:], loaded, [10]), run(model, tokens[30:], cache, [10]))


def test_the_file_holds_the_types_own_rows(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from nybble.formats.registry import kv_type

    model = packed_model("llama")
    cache = Cache(model.config, "q8_0/q4_0-norot")
    values = torch.randn(1, 2, 5, 64)
    for layer in range(2):
        cache.update(values, values, layer)
    cache.save(tmp_path / "p")
    rows = load_file(tmp_path / "p")["layer.1.body.v"]
    assert torch.equal(rows, kv_type("q4_0").quantize(values))


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = packed_model("llama")
    cache = Cache(model, "q4_0/q4_0")
    run(model, text(20), cache, [20])
    path = tmp_path_factory.mktemp("prefix") / "p.safetensors"
    cache.save(path)
    return path


def test_another_model_is_refused(prefix: Path) -> None:
    with pytest.raises(NybbleError, match="a model of another shape"):
        Cache.load(prefix, packed_model("gemma3"))
    tuned = attach(build(config_of("llama"), seed=9).stock)
    with pytest.raises(NybbleError, match="other weights of the same shape"):
        Cache.load(prefix, tuned)


def rewritten(prefix: Path, to: Path, **changes: str) -> Path:
    """The file with other metadata."""
    data = prefix.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header: dict[str, Any] = json.loads(data[8 : 8 + size])
    header["__metadata__"] |= changes
    new = json.dumps(header).encode()
    to.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + size :])
    return to


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"format": "2"}, "another format version"), ({"kind": "weights"}, "no prefix"),
     ({"length": "99"}, "damaged"), ({"length": "x"}, "damaged"), ({"dtype": "int4"}, "length"),
     ({"setting": "q8_0/q8_0"}, "damaged"), ({"setting": "kivi_k4/kivi_v4"}, "tokens together"),
     ({"setting": "nyb4/nyb4"}, "calibration")],
)  # fmt: skip
def test_metadata_that_does_not_fit(
    prefix: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    path = rewritten(prefix, tmp_path / "q", **changes)
    config = packed_model("llama").config
    with pytest.raises(NybbleError) as error:
        Cache.load(path, config)
    assert message in str(error.value)


def test_no_file_and_no_prefix(tmp_path: Path) -> None:
    config = packed_model("llama").config
    with pytest.raises(NybbleError, match="cannot be read"):
        Cache.load(tmp_path / "nothing", config)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(NybbleError, match="cannot be read"):
        Cache.load(tmp_path / "text", config)
    with pytest.raises(NybbleError, match="nothing to save"):
        Cache(config, "q4_0/q4_0").save(tmp_path / "p")
    with pytest.raises(NybbleError, match="cannot be written"):
        cache = Cache(config, "q4_0/q4_0")
        run(packed_model("llama"), text(3), cache, [3])
        cache.save(tmp_path / "no" / "such" / "folder")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.integers(0, 1500), byte=st.integers(0, 255), cut=st.integers(0, 40))
def test_a_damaged_header_is_refused_or_harmless(
    prefix: Path, tmp_path: Path, place: int, byte: int, cut: int
) -> None:
    data = bytearray(prefix.read_bytes())
    data[place % len(data)] = byte
    path = tmp_path / "fuzzed"
    path.write_bytes(bytes(data[: len(data) - cut]))
    try:
        cache = Cache.load(path, packed_model("llama").config)
    except NybbleError:
        return
    run(packed_model("llama"), text(2), cache, [2])  # bytes of codes are any bytes
