"""The C sources, their Python mirror and how a wheel is made."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from nybble.environment import VERSION
from nybble.runtime import native_abi as abi
from nybble.runtime.layout import PAGE

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "csrc"
pytestmark = pytest.mark.skipif(not SOURCE.exists(), reason="not a checkout")

HEADER = SOURCE / "nybble.h"
STRUCTS = {
    "nyb_format": abi.CFormat,
    "nyb_latent": abi.CLatent,
    "nyb_call": abi.CCall,
    "nyb_stretch": abi.CStretch,
}


def number(name: str) -> int:
    found = re.search(rf"#define {name} (\d+)", HEADER.read_text())
    assert found
    return int(found[1])


def test_numbers_are_the_same_in_c_and_python() -> None:
    assert number("NYB_ABI") == abi.ABI
    assert number("NYB_PAGE") == PAGE
    assert number("NYB_MAX_DIM") == abi.MAX_DIM
    block = re.search(r"enum nyb_kind \{(.*?)NYB_KINDS", HEADER.read_text(), re.DOTALL)
    assert block
    kinds = re.findall(r"NYB_(\w+)", block[1])
    short = {"int8_per_token_head": "INT8", "int4_per_token_head": "INT4"}
    assert kinds == [short.get(name, name.upper()) for name in abi.KINDS]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_structs_are_the_same_in_c_and_python(tmp_path: Path) -> None:
    lines = []
    for name, struct in STRUCTS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        lines += [
            f'printf("{name}.{field[0]} %zu\\n", offsetof({name}, {field[0]}));'
            for field in struct._fields_
        ]
    code = '#include <stdio.h>\n#include <stddef.h>\n#include "nybble.h"\nint main(void) {\n'
    (tmp_path / "sizes.c").write_text(code + "\n".join(lines) + "\nreturn 0; }\n")
    program = tmp_path / "sizes"
    subprocess.run(["cc", f"-I{SOURCE}", tmp_path / "sizes.c", "-o", program], check=True)
    said = dict(line.split() for line in subprocess.check_output([program], text=True).splitlines())
    for name, struct in STRUCTS.items():
        assert int(said[name]) == ctypes.sizeof(struct)
        for field in struct._fields_:
            assert int(said[f"{name}.{field[0]}"]) == getattr(struct, field[0]).offset


def test_the_version_is_found_where_the_build_looks() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]
    version = build["metadata"]["version"]
    found = re.search(version["regex"], (ROOT / version["input"]).read_text())
    assert found and found["value"] == VERSION


def test_every_source_is_built_and_short() -> None:
    listed = (SOURCE / "CMakeLists.txt").read_text()
    for path in SOURCE.glob("*.c"):
        assert path.name in listed
    for path in SOURCE.iterdir():
        assert len(path.read_text().splitlines()) <= 500, path.name


def wheel(folder: Path, **env: str) -> Path:
    """A wheel of this checkout, built with what is installed."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation",
         "-w", str(folder), str(ROOT)],
        check=True, env={**os.environ, **env},
    )  # fmt: skip
    (made,) = folder.glob("*.whl")
    return made


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("scikit_build_core") is None, reason="scikit-build-core is missing"
)
@pytest.mark.parametrize("compiler", ["cc", "/bin/false"])
def test_a_wheel_holds_data_and_kernels_or_says_it_is_pure(tmp_path: Path, compiler: str) -> None:
    made = wheel(tmp_path, CC=compiler)
    names = set(zipfile.ZipFile(made).namelist())
    package = ROOT / "src"
    for suffix in ("csv", "json", "jsonl", "toml", "j2", "css", "js", "jinja", "py", "typed"):
        wanted = {str(path.relative_to(package)) for path in package.rglob(f"*.{suffix}")}
        assert wanted <= names, sorted(wanted - names)[:3]
    kernels = "nybble/runtime/_kernels.so" in names
    assert kernels == (compiler == "cc")
    assert ("py3-none-any" in made.name) != kernels


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cmake") is None, reason="no CMake")
def test_the_sources_compile_without_a_warning(tmp_path: Path) -> None:
    subprocess.run(
        ["cmake", "-S", SOURCE, "-B", tmp_path, "-DCMAKE_C_FLAGS=-Wall -Wextra -Werror"],
        check=True, capture_output=True,
    )  # fmt: skip
    subprocess.run(["cmake", "--build", tmp_path], check=True, capture_output=True)
    assert (tmp_path / "_kernels.so").exists()
