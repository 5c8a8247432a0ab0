"""Which kernel runs, why, and what NYBBLE_KERNEL may say."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nybble import doctor
from nybble.errors import NybbleError
from nybble.runtime import native
from nybble.runtime.native_abi import ABI


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(native.VARIABLE, raising=False)
    native._opened.cache_clear()
    yield
    native._opened.cache_clear()


def test_the_best_variant_is_taken_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = native.active()
    if not kernel.native:
        pytest.skip(kernel.reason)
    assert kernel.name.removeprefix("native-") in native.VARIANTS
    monkeypatch.setenv(native.VARIABLE, "native")
    assert native.active().name == kernel.name
    monkeypatch.setenv(native.VARIABLE, "native-baseline")
    assert native.active() == native.Kernel("native-baseline", "NYBBLE_KERNEL=native-baseline")
    monkeypatch.setenv(native.VARIABLE, "reference")
    assert not native.active().native
    assert native.library() is None


def test_an_unknown_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.VARIABLE, "native-avx9")
    with pytest.raises(NybbleError, match="names no kernel") as caught:
        native.active()
    assert "native-baseline" in str(caught.value.allowed)


def test_a_variant_this_machine_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = native.library()
    lacking = (
        [v for v in native.VARIANTS if v not in found.nyb_variants().decode()] if found else []
    )
    if not lacking:
        pytest.skip("all variants run here, or none")
    monkeypatch.setenv(native.VARIABLE, f"native-{lacking[0]}")
    with pytest.raises(NybbleError, match="processor or this build") as caught:
        native.active()
    assert "native-baseline" in str(caught.value.allowed)


def test_without_a_library_the_reference_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_find", lambda: None)
    assert native.active() == native.Kernel(
        "reference", "nybble was installed without a C compiler"
    )
    monkeypatch.setenv(native.VARIABLE, "native")
    with pytest.raises(NybbleError, match="cannot run"):
        native.active()


def test_a_file_that_is_no_library_is_not_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "_kernels.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(native, "_find", lambda: broken)
    kernel = native.active()
    assert not kernel.native
    assert "does not load" in kernel.reason


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("source", [f"int nyb_abi(void) {{ return {ABI + 1}; }}", "int x;"])
def test_a_library_of_another_version_is_not_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str
) -> None:
    (tmp_path / "old.c").write_text(source)
    old = tmp_path / "_kernels.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", old, tmp_path / "old.c"], check=True)
    monkeypatch.setattr(native, "_find", lambda: old)
    kernel = native.active()
    assert not kernel.native
    assert "of another build" in kernel.reason


def test_asking_does_not_import_torch() -> None:
    code = (
        "import sys; from nybble.runtime.native import active; active(); "
        "from nybble.doctor import kernel; kernel(); print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_doctor_says_which_kernel_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    said = doctor.kernel()
    assert native.active().name in said.detail
    monkeypatch.setattr(native, "_find", lambda: None)
    native._opened.cache_clear()
    said = doctor.kernel()
    assert (said.state, bool(said.fix)) == ("missing", True)
    assert "without a C compiler" in said.detail
    monkeypatch.setenv(native.VARIABLE, "reference")
    assert doctor.kernel().state == "ok"
    monkeypatch.setenv(native.VARIABLE, "quick")
    said = doctor.kernel()
    assert (said.state, "native-avx2" in str(said.fix)) == ("broken", True)
