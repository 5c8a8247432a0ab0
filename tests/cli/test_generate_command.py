"""`nybble generate`: streams, exit codes, prefixes, refusals; Ctrl-C, a terminal and the server."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from click.testing import CliRunner, Result  # noqa: E402

from nybble.cli import generate_answer  # noqa: E402
from nybble.cli.generate import generate  # noqa: E402
from nybble.cli.main import main  # noqa: E402
from nybble.errors import NybbleError  # noqa: E402
from nybble.runtime.generate_report import Report  # noqa: E402
from torch_runs import write_folder  # noqa: E402

KV = ("--kv", "q8_0/q4_0", "--threads", "1")
CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def tiny(path: Path, **options: Any) -> Path:
    """A random model of bytes that are shown as they are."""
    from tokenizers import Tokenizer, decoders

    folder = write_folder(path, **options)
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.decoder = decoders.ByteLevel()
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("models") / "tiny-base", template=None)


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("models") / "tiny-instruct", template=CHAT)


def run(*args: object, stdin: bytes | None = None) -> Result:
    """The command in this process; errors come out as they are."""
    return CliRunner().invoke(
        generate, list(map(str, args)), input=stdin, standalone_mode=False, catch_exceptions=True
    )


def error(*args: object, stdin: bytes | None = None) -> str:
    """The error of a command that is refused."""
    done = run(*args, stdin=stdin)
    assert isinstance(done.exception, NybbleError), (done.exception, done.output)
    return str(done.exception)


class TestText:
    def test_goes_to_stdout_and_numbers_to_stderr(self, base: Path) -> None:
        done = run(base, *KV, "--prompt", "Once upon a time", "--max-new-tokens", 8)
        assert done.exception is None and done.return_value == 0
        assert done.stdout.endswith("\n") and "tokens/s" not in done.stdout
        assert re.search(
            r"^prompt 17 tokens, [\d.,]+ tokens/s; answer 8 tokens, [\d.,]+ tokens/s, ended by "
            r"--max-new-tokens; cache [\d.]+ KiB in q8_0/q4_0 \([\d.]+ KiB at 16 bits\); kernel: ",
            done.stderr,
            re.MULTILINE,
        ), done.stderr
        assert "loading the weights" in done.stderr

    def test_is_the_same_every_time_and_from_stdin(self, base: Path) -> None:
        one = run(base, *KV, "--prompt", "Once", "--max-new-tokens", 8, "--quiet")
        two = run(base, *KV, "--max-new-tokens", 8, "--quiet", stdin=b"Once")
        assert one.stdout == two.stdout and not one.stderr

    def test_as_json(self, base: Path) -> None:
        plain = run(base, *KV, "--prompt", "Once", "--max-new-tokens", 8)
        found = json.loads(
            run(base, *KV, "--prompt", "Once", "--max-new-tokens", 8, "--json", "-q").stdout
        )
        assert plain.stdout == found["text"] + "\n"
        assert found["new_tokens"] == 8 and found["finish"] == "length"
        assert found["bytes_stored"] > 0 and found["kv"] == "q8_0/q4_0"
        assert found["decode_tokens_per_second"] > 0

    def test_a_seed_repeats_a_draw(self, base: Path) -> None:
        def drawn(seed: int) -> str:
            return run(base, *KV, "--prompt", "Once", "--max-new-tokens", 12, "-q",
                       "--temperature", 1.5, "--seed", seed).stdout  # fmt: skip

        assert drawn(1) == drawn(1) != drawn(2)

    def test_the_template_and_the_system_prompt_are_read(self, instruct: Path) -> None:
        def tokens(*more: str) -> int:
            done = run(instruct, *KV, "--prompt", "Hi", "--max-new-tokens", 1, "--json", *more)
            return int(json.loads(done.stdout)["prompt_tokens"])

        # <s>user: Hi\n<s>assistant: and the model's own <s> in front, which is there already
        assert tokens() == 1 + len("user: Hi\n") + 1 + len("assistant: ")
        assert tokens("--system", "Be kind") == tokens() + 1 + len("system: Be kind\n")

    def test_a_gguf(self, tiny_instruct: Path) -> None:
        done = run(tiny_instruct, *KV, "--prompt", "Hi", "--max-new-tokens", 4, "--json")
        assert done.exception is None
        assert json.loads(done.stdout)["new_tokens"] <= 4

    def test_a_calibrated_setting_with_its_statistics(self, base: Path, tmp_path: Path) -> None:
        import torch

        from nybble.engines.transformers.calibration_file import save
        from nybble.environment import cache_dir
        from nybble.formats.calibration import Calibration, LayerCalibration
        from nybble.models.checkpoint import resolve

        def layer() -> LayerCalibration:
            return LayerCalibration(
                torch.zeros(2, 64), torch.ones(2, 64), torch.eye(64).repeat(2, 1, 1),
                torch.ones(2, 64), torch.zeros(2, 64), torch.ones(2),
            )  # fmt: skip

        both = {0: layer(), 1: layer()}
        mine = resolve(base).fingerprint(cache_dir())
        save(Calibration(both, mine, 4096), tmp_path / "of.safetensors")
        asked = ("--prompt", "Hi", "--max-new-tokens", 2, "--threads", 1)
        done = run(base, *asked, "--calibration", tmp_path / "of.safetensors")
        assert done.exception is None and "nyb4/nyb4" in done.stderr
        save(Calibration(both, "another", 4096), tmp_path / "other.safetensors")
        assert "of another model" in error(
            base, *asked, "--calibration", tmp_path / "other.safetensors"
        )
        assert "no such calibration" in error(base, *asked, "--calibration", tmp_path / "none")


class TestPrefix:
    def test_goes_on_from_what_was_saved(self, base: Path, tmp_path: Path) -> None:
        file = tmp_path / "talk.kv"
        first = run(base, *KV, "--prompt", "Once", "--max-new-tokens", 4, "--save-prefix", file)
        assert first.exception is None and "saved 9 tokens" in first.stderr
        asked = ("--prompt", " more", "--max-new-tokens", 6, "--json")
        again = json.loads(run(base, *KV, "--prefix", file, *asked).stdout)
        assert (again["cached_tokens"], again["prompt_tokens"]) == (9, 14)

    def test_a_turn_of_a_conversation(self, instruct: Path, tmp_path: Path) -> None:
        file = tmp_path / "talk.kv"
        run(instruct, *KV, "--prompt", "Hi", "--max-new-tokens", 0, "--save-prefix", file)
        asked = ("--prompt", "So?", "--max-new-tokens", 1, "--json")
        again = json.loads(run(instruct, *KV, "--prefix", file, *asked).stdout)
        turn = "\n" + "user: So?\n" + "assistant: "
        assert again["prompt_tokens"] == again["cached_tokens"] + len(turn) + 2

    def test_refusals(self, base: Path, instruct: Path, tmp_path: Path) -> None:
        file = tmp_path / "talk.kv"
        run(base, *KV, "--prompt", "Once", "--max-new-tokens", 2, "--save-prefix", file)
        other = tiny(tmp_path / "other", template=None, seed=7)
        asked = ("--prompt", "x", "--max-new-tokens", 1)
        assert "made with other weights" in error(other, *KV, "--prefix", file, *asked)
        assert "another KV setting" in error(base, "--kv", "q4_0/q4_0", "--prefix", file, *asked)
        (tmp_path / "junk").write_bytes(b"no prefix")
        assert "cannot be read" in error(base, *KV, "--prefix", tmp_path / "junk", *asked)
        assert "cannot be read" in error(base, *KV, "--prefix", tmp_path / "none", *asked)
        assert "no such folder" in error(base, *KV, "--save-prefix", tmp_path / "a" / "b", *asked)
        assert "begun already" in error(instruct, *KV, "--prefix", file, "--system", "s", *asked)


class TestRefused:
    @pytest.mark.parametrize(
        ("args", "words"),
        [
            (("--prompt", ""), "prompt is empty"),
            (("--prompt", " \n"), "prompt is empty"),
            ((), "prompt is empty"),
            (("--prompt", "x", "--kv", "q4_9"), "unknown KV type"),
            (("--prompt", "x", "--kv", "kivi_k4/kivi_v4"), "stores tokens together"),
            (("--prompt", "x", "--context", "1"), "context is out of range"),
            (("--prompt", "x", "--context", "9999"), "longer than the model was trained for"),
            (("--prompt", "x" * 90, "--context", "80"), "does not fit the context"),
            (("--prompt", "x", "--latent"), "keys follow from their values"),
            (("--prompt", "x", "--system", "be kind"), "no chat template"),
            (("--prompt", "x", "--temperature", "9"), "temperature is out of range"),
            (("--prompt", "x", "--top-p", "0"), "top-p is out of range"),
            (("--prompt", "x", "--dtype", "int3"), "unknown dtype"),
            (("--prompt", "x", "--device", "toaster"), "unknown device"),
            (("--prompt", "x", "--device", "meta"), "does not run on this device"),
            (("--prompt", "x", "--port", "9"), "only a server takes this"),
            (("--prompt", "x", "--serve"), "takes this from its requests"),
            (("--serve", "--json"), "takes this from its requests"),
            (("--serve", "--host", "0.0.0.0"), "needs an API key"),
            (("--serve", "--port", "99999"), "not a port"),
            (("--serve", "--api-key-file", "/nowhere"), "cannot read the API key"),
            (("--serve", "--api-key-file", "/dev/null"), "does not hold one API key"),
        ],
    )  # fmt: skip
    def test_with_a_reason(self, base: Path, args: tuple[str, ...], words: str) -> None:
        kv = () if "--kv" in args else KV
        assert words in error(base, *kv, *args, stdin=b"")

    def test_input_that_is_no_text(self, base: Path) -> None:
        assert "not UTF-8" in error(base, *KV, stdin=b"\xff\xfe")

    def test_weights_that_do_not_fit(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import psutil

        small = psutil.virtual_memory()._replace(available=1000)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: small)
        assert "weights do not fit memory" in error(base, *KV, "--prompt", "x")

    def test_without_the_servers_packages(
        self, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from nybble.cli import generate_server

        monkeypatch.setattr(generate_server, "_PACKAGES", ("no_such_package",))
        assert '".[runtime]"' in error(base, *KV, "--serve")

    def test_main_prints_it_and_returns_1(
        self, base: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["generate", str(base), "--prompt", ""]) == 1
        told = capsys.readouterr()
        assert told.err.startswith("error: the prompt is empty\n") and not told.out


@pytest.mark.parametrize("spoiled", [False, True])
def test_an_error_does_not_end_a_chat(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], spoiled: bool
) -> None:
    lines = iter(["too long", "  ", "/new"])

    class Stub:
        text = runtime = session = SimpleNamespace(has_template=True, session=object)

        def answer(self, prompt: str, *, shown: bool) -> object:
            raise NybbleError(f"{prompt}: it does not fit")

        def told(self, report: object) -> None:
            """Never reached."""

    def given(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", given)
    teller: Any = Stub()
    teller.spoiled = spoiled
    assert generate_answer.chat(teller) == 0
    told = capsys.readouterr().err
    assert "error: too long: it does not fit" in told and ("half a token" in told) is spoiled


def test_a_report_in_one_line() -> None:
    report = Report(3000, 1000, 50, 10.0, 5.0, 49, "stop", 3 << 20, 10 << 20, "native", "q4_0/q4_0")
    assert generate_answer.summary(report) == (
        "prompt 3,000 tokens (1,000 from the cache), 200 tokens/s; answer 50 tokens, 9.8 tokens/s, "
        "ended by its own end; cache 3.0 MiB in q4_0/q4_0 (10.0 MiB at 16 bits); kernel: native"
    )


@pytest.mark.slow
class TestProcesses:
    """In processes of their own, each of which imports torch: seconds."""

    def test_ctrl_c_ends_the_answer(self, start: Callable[..., Any], base: Path) -> None:
        child = start("generate", base, *KV, "--prompt", "Once upon", "--max-new-tokens", "2000",
                      cwd=base)  # fmt: skip
        assert child.stdout.read(3)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
        assert child.returncode == 130 and "ended by Ctrl-C" in err and "Traceback" not in err

    def test_a_chat_on_a_terminal(self, instruct: Path) -> None:
        parent, child = pty.openpty()
        words = [sys.executable, "-m", "nybble", "generate", str(instruct), *KV,
                 "--max-new-tokens", "5"]  # fmt: skip
        process = subprocess.Popen(words, stdin=child, stdout=child, stderr=child, close_fds=True)
        os.close(child)
        shown = ""

        def until(text: str) -> None:
            nonlocal shown
            end = time.monotonic() + 60
            while text not in shown and time.monotonic() < end:
                shown += os.read(parent, 4096).decode(errors="replace")
            assert text in shown, shown
            shown = shown.split(text, 1)[1]

        until("> ")
        os.write(parent, b"Hi\n")
        until("answer 5 tokens")
        until("> ")
        os.write(parent, b"And?\n")
        until("from the cache")
        until("> ")
        os.write(parent, b"/new\n")
        until("> ")
        os.write(parent, b"\x04")
        assert process.wait(30) == 0
        os.close(parent)

    @pytest.fixture
    def served(self, start: Callable[..., Any], instruct: Path, tmp_path: Path) -> Iterator[Any]:
        key = tmp_path / "key"
        key.write_text("a-secret\n")
        child = start("generate", instruct, *KV, "--serve", "--port", "0", "--api-key-file", key,
                      cwd=tmp_path)  # fmt: skip
        yield child
        child.kill()
        child.communicate()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_server_until_a_signal(self, served: Any, number: int) -> None:
        import openai

        url = served.stdout.readline().strip()
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="a-secret", max_retries=0)
        asked = [{"role": "user", "content": "Hi"}]
        found = client.chat.completions.create(model="tiny-instruct", messages=asked, max_tokens=3)
        assert found.usage.completion_tokens <= 3
        served.send_signal(number)
        _, err = served.communicate(timeout=60)
        assert served.returncode == 0 and "one answer at a time" in err
        assert err.endswith("ended\n") and "Traceback" not in err
