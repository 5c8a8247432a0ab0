"""The native kernels: find the library, choose a variant, lend it torch's threads.

The library is plain C (csrc/), built with the package and absent where no compiler was. Importing
this module loads neither it nor torch.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from nybble.errors import NybbleError
from nybble.runtime.native_abi import ABI, declare

VARIABLE = "NYBBLE_KERNEL"
VARIANTS = ("avx512", "avx2", "baseline")
ALLOWED = ("reference", "native", *(f"native-{name}" for name in reversed(VARIANTS)))
_FILE = "_kernels.so"
_OPENMP = ("libgomp", "libomp", "libiomp5")


@dataclass(frozen=True)
class Kernel:
    """What reads packed pages on the CPU.

    Attributes:
        name: "native-avx512", "native-avx2", "native-baseline" or "reference".
        reason: why it is this one, in a few words.
    """

    name: str
    reason: str

    @property
    def native(self) -> bool:
        """Whether it is compiled code."""
        return self.name != "reference"


def active() -> Kernel:
    """The kernel in use: the best that this processor runs, or what NYBBLE_KERNEL says.

    Raises:
        NybbleError: NYBBLE_KERNEL names none, or one that cannot run here.
    """
    return _opened(os.environ.get(VARIABLE, ""))[0]


def library() -> ctypes.CDLL | None:
    """The loaded library with its variant chosen, or None where the reference is in use.

    Raises:
        NybbleError: as `active`.
    """
    kernel, found = _opened(os.environ.get(VARIABLE, ""))
    if found is None:
        return None
    if _STATE.variant != kernel.name:
        found.nyb_choose(kernel.name.removeprefix("native-").encode())
        _STATE.variant = kernel.name
    if not _STATE.lent and "torch" in sys.modules:
        _STATE.lent = True
        # torch keeps its OpenMP threads warm; without them the C code makes its own at each call.
        found.nyb_set_parallel(_openmp_entry())
    return found


@dataclass
class _State:
    """What was told to the library, which is one for the whole process."""

    variant: str = ""
    lent: bool = False


_STATE = _State()


@lru_cache(maxsize=8)
def _opened(wish: str) -> tuple[Kernel, ctypes.CDLL | None]:
    if wish and wish not in ALLOWED:
        raise NybbleError(f"{VARIABLE} names no kernel", seen=wish, allowed=ALLOWED)
    if wish == "reference":
        return Kernel("reference", f"{VARIABLE}=reference"), None
    found, why = _load(_find())
    if found is None:
        if wish:
            raise NybbleError(
                f"the kernel that {VARIABLE} names cannot run", seen=f"{wish}: {why}",
                allowed="reference", hint="pip install --force-reinstall --no-deps nybble",
            )  # fmt: skip
        return Kernel("reference", why), None
    runs = found.nyb_variants().decode().split()
    name = wish.removeprefix("native").removeprefix("-") or runs[0]
    if name not in runs:
        raise NybbleError(
            f"this processor or this build has no {wish}", seen=wish,
            allowed=["reference", *(f"native-{x}" for x in runs)],
        )  # fmt: skip
    chosen = f"{VARIABLE}={wish}" if wish else "the best this processor runs"
    return Kernel(f"native-{name}", chosen), found


def _find() -> Path | None:
    """The library lies beside this file, or, for an editable install, where wheels go."""
    import nybble.runtime

    folders = [Path(__file__).parent, *map(Path, nybble.runtime.__path__)]
    return next((f / _FILE for f in folders if (f / _FILE).is_file()), None)


def _load(path: Path | None) -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and why it cannot be used."""
    if path is None:
        return None, "nybble was installed without a C compiler"
    try:
        found = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"{path.name} does not load: {error}"
    # Asked before anything else is called: another build may mean other structs.
    version = found.nyb_abi() if hasattr(found, "nyb_abi") else 0
    if version != ABI:
        return None, f"{path.name} is of another build (interface {version}, not {ABI}): reinstall"
    declare(found)
    return found, ""


def _openmp_entry() -> int | None:
    """Address of GOMP_parallel in the OpenMP runtime of this process, or None."""
    for path in _openmp_paths():
        try:
            # Only one that is loaded already: a second OpenMP runtime would bring its own threads.
            runtime = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            return ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


def _openmp_paths() -> list[str]:
    maps = Path("/proc/self/maps")
    if maps.exists():
        found = {line.split(maxsplit=5)[-1].strip() for line in maps.read_text().splitlines()}
    else:
        folder = Path(sys.modules["torch"].__file__ or "").parent / "lib"
        found = {str(path) for path in folder.glob("*omp*")}
    return sorted(path for path in found if Path(path).name.startswith(_OPENMP))
