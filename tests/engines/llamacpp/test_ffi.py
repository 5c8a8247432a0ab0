"""Another version, another layout or a missing wheel is refused before anything is loaded."""

from __future__ import annotations

import ctypes.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from nybble.engines.llamacpp import ffi as module
from nybble.engines.llamacpp.ffi import (
    PINNED,
    engine_identity,
    engine_info,
    installed_version,
    library,
    take_log,
)
from nybble.errors import EngineError, MissingExtraError

load = library.__wrapped__  # without the cache


def test_loads_once() -> None:
    assert library() is library()
    assert installed_version() == PINNED
    info = engine_info()
    assert info["llama.cpp"] and "CPU" in info["features"]


@pytest.mark.parametrize("field", sorted(module._CONTEXT_DEFAULTS))
def test_context_layout(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {**module._CONTEXT_DEFAULTS, field: 77}
    monkeypatch.setattr(module, "_CONTEXT_DEFAULTS", changed)
    with pytest.raises(EngineError, match=f"unexpected layout: field {field}") as caught:
        load()
    assert caught.value.what.startswith("llama_context_params")
    assert caught.value.allowed == "77"
    assert caught.value.seen == str(getattr(library().llama_context_default_params(), field))


@pytest.mark.parametrize("field", sorted(module._MODEL_DEFAULTS))
def test_model_layout(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MODEL_DEFAULTS", {**module._MODEL_DEFAULTS, field: 77})
    with pytest.raises(EngineError, match=f"llama_model_params .* field {field}"):
        load()


def test_a_shifted_declaration_is_noticed() -> None:
    """A field more than the engine has moves all that follow."""
    from cffi import FFI

    other = FFI()
    other.cdef(module.CDEF.replace("uint32_t n_ctx, n_batch", "uint32_t extra, n_ctx, n_batch"))
    lib = other.dlopen(str(module._shared_object()))
    with pytest.raises(EngineError, match="unexpected layout"):
        module._check("x", lib.llama_context_default_params(), module._CONTEXT_DEFAULTS)


@pytest.mark.parametrize("version", ["2026.10.1", "0.0.1", f"{PINNED}.post1"])
def test_wrong_version(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "installed_version", lambda: version)
    with pytest.raises(EngineError) as caught:
        load()
    assert caught.value.seen == f"xllamacpp {version}"
    assert caught.value.allowed == f"xllamacpp {PINNED}"
    assert caught.value.hint == f"pip install xllamacpp=={PINNED}"


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise module.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(module.importlib.metadata, "version", missing)
    assert installed_version() is None
    with pytest.raises(MissingExtraError) as caught:
        load()
    assert caught.value.hint == f"pip install xllamacpp=={PINNED}"


def test_wheel_without_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(EngineError, match="holds no engine library"):
        load()
    (tmp_path / "xllamacpp.so").write_bytes(b"not a library")
    with pytest.raises(EngineError, match="cannot be loaded here") as caught:
        load()
    assert caught.value.hint == "nybble doctor"


def test_log_is_taken_once_and_bounded() -> None:
    take_log()
    keep, text = module._keep_log, module.ffi.new("char[]", b"line\n")
    keep(2, text, None)
    keep(module._DEBUG, text, None)
    keep(4, module.ffi.new("char[]", b"\xff\n"), None)
    assert take_log() == "line\n\ufffd\n"
    assert take_log() == ""
    for _ in range(20_000):
        keep(2, text, None)
    assert len(take_log()) < 5 * 4100


def test_own_library_is_named_by_its_content(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert engine_identity() == f"xllamacpp {PINNED}"
    wheel = module._shared_object()
    monkeypatch.setenv("NYBBLE_LLAMA_LIBRARY", str(wheel))
    assert engine_identity().startswith("own build ")
    assert engine_identity() in engine_info()["llama.cpp"]
    other = tmp_path / "libllama.so"
    other.write_bytes(b"not a library")
    before = engine_identity()
    monkeypatch.setenv("NYBBLE_LLAMA_LIBRARY", str(other))
    assert engine_identity() != before
    with pytest.raises(EngineError, match="cannot be loaded"):
        load()


def test_own_library_that_is_none_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NYBBLE_LLAMA_LIBRARY", str(tmp_path / "absent.so"))
    with pytest.raises(EngineError, match="NYBBLE_LLAMA_LIBRARY") as caught:
        load()
    assert caught.value.hint == "unset NYBBLE_LLAMA_LIBRARY"
    # A real library that is not llama.cpp.
    libm = ctypes.util.find_library("m")
    found = next(iter(Path("/").glob(f"lib/*/{libm}")), None)
    if found is None:
        pytest.skip("no libm found")
    monkeypatch.setenv("NYBBLE_LLAMA_LIBRARY", str(found))
    with pytest.raises(EngineError, match="lacks functions"):
        load()
