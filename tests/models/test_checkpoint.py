"""From what a user names to a checked model: what is taken, and what each refusal says."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_folders import CONFIG, configure, refused, shard, weights

from nybble.errors import ModelFileError
from nybble.models.checkpoint import Checkpoint, resolve
from nybble.models.folder import INDEX


class TestFolder:
    def test_all_of_it(self, folder: Path) -> None:
        found = resolve(folder)
        assert found == Checkpoint(
            kind="folder",
            path=folder,
            name="tiny-llama",
            files=(folder / "model.safetensors",),
            config=CONFIG,
            size_bytes=(folder / "model.safetensors").stat().st_size,
            architecture="llama",
            context_length=2048,
            chat_template=None,
        )
        assert resolve(str(folder)) == found

    def test_the_folder_one_stands_in(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        assert resolve(".").name == "tiny-llama"

    def test_shards(self, folder: Path) -> None:
        weights(folder / "model-1.safetensors", "a", "b")
        weights(folder / "model-2.safetensors", "c")
        shard(folder, {"a": "model-1.safetensors", "b": "model-1.safetensors",
                       "c": "model-2.safetensors"})  # fmt: skip
        found = resolve(folder)
        assert [f.name for f in found.files] == ["model-1.safetensors", "model-2.safetensors"]
        assert found.size_bytes == sum(f.stat().st_size for f in found.files)

    @pytest.mark.parametrize(
        ("config", "context"),
        [
            ({"model_type": "gpt2", "n_positions": 1024}, 1024),
            ({"model_type": "gemma3", "text_config": {"max_position_embeddings": 99}}, 99),
            ({"model_type": "gemma3", "text_config": {}}, None),
            ({"model_type": "llama", "max_position_embeddings": True}, None),
            ({"model_type": "llama", "max_position_embeddings": float("nan")}, None),
            ({"model_type": "llama", "max_position_embeddings": -1}, None),
            ({"model_type": "llama", "max_position_embeddings": 10**30}, None),
            ({"model_type": "llama", "text_config": 7, "rope": float("inf")}, None),
        ],
    )
    def test_context_length(
        self, folder: Path, config: dict[str, Any], context: int | None
    ) -> None:
        (folder / "config.json").write_text(json.dumps(config))
        assert resolve(folder).context_length == context

    @pytest.mark.parametrize(
        ("files", "template"),
        [
            ({}, None),
            ({"tokenizer_config.json": {}}, None),
            ({"tokenizer_config.json": {"chat_template": "one"}}, "one"),
            ({"chat_template.jinja": "jinja", "tokenizer_config.json": {"chat_template": "one"}},
             "jinja"),
            ({"chat_template.json": {"chat_template": "old"}}, "old"),
            ({"tokenizer_config.json": {"chat_template": [
                {"name": "tool_use", "template": "tools"}, {"name": "default", "template": "d"}]}},
             "d"),
            ({"tokenizer_config.json": {"chat_template": [{"name": "rag", "template": "r"}, 3]}},
             None),
        ],
    )  # fmt: skip
    def test_chat_template(self, folder: Path, files: dict[str, Any], template: str | None) -> None:
        for name, value in files.items():
            text = value if isinstance(value, str) else json.dumps(value)
            (folder / name).write_text(text)
        assert resolve(folder).chat_template == template

    def test_damaged_chat_template(self, folder: Path) -> None:
        (folder / "tokenizer_config.json").write_text('{"chat_template": 7}')
        refused(folder, "chat template is no text", "7")
        (folder / "chat_template.jinja").write_bytes(b"\xff")
        refused(folder, "not UTF-8")
        (folder / "chat_template.jinja").write_bytes(b"x" * (2 << 20))
        refused(folder, "too large")

    def test_multimodal_is_left_to_the_loader(self, folder: Path) -> None:
        configure(folder, model_type="gemma3", architectures=["Gemma3ForConditionalGeneration"],
                  text_config={"model_type": "gemma3_text"}, vision_config={})  # fmt: skip
        assert resolve(folder).architecture == "gemma3"


class TestRefusedFolders:
    def test_no_config(self, folder: Path) -> None:
        (folder / "config.json").unlink()
        refused(folder, "no config.json", "tokenizer.json")

    def test_empty_and_strange_folders(self, tmp_path: Path) -> None:
        refused(tmp_path, "holds no model", "nothing")
        (tmp_path / "\x1b[31m.txt").touch()
        assert "\x1b" not in str(refused(tmp_path, "holds no model"))

    def test_folder_of_ggufs(self, tmp_path: Path) -> None:
        (tmp_path / "b.gguf").touch()
        assert refused(tmp_path, "GGUF").hint == f"name the file, such as {tmp_path / 'b.gguf'}"

    @pytest.mark.parametrize("kind", [None, 3, "", ["llama"]])
    def test_no_model_type(self, folder: Path, kind: object) -> None:
        configure(folder, model_type=kind)
        refused(folder, "does not say what model this is")

    @pytest.mark.parametrize("inside", [False, True])
    def test_remote_code(self, folder: Path, inside: bool) -> None:
        code = {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}}
        configure(folder, **({"text_config": code} if inside else code))
        refused(folder, "nybble runs no code from model folders", "auto_map")

    @pytest.mark.parametrize("inside", [False, True])
    @pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "mxfp4"])
    def test_quantized(self, folder: Path, method: str, inside: bool) -> None:
        found = {"quantization_config": {"quant_method": method}}
        configure(folder, **({"text_config": found} if inside else found))
        refused(folder, "are quantized", method, "unquantized weights")

    def test_no_quantization_after_all(self, folder: Path) -> None:
        configure(folder, quantization_config=None)
        assert resolve(folder)

    @pytest.mark.parametrize(
        "changed",
        [
            {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
            {"architectures": ["LlamaForSequenceClassification"]},
            {"model_type": "t5", "is_encoder_decoder": True},
        ],
    )
    def test_not_causal(self, folder: Path, changed: dict[str, Any]) -> None:
        configure(folder, **changed)
        refused(folder, "does not predict the next token")

    def test_adapter(self, folder: Path) -> None:
        (folder / "adapter_config.json").write_text("{}")
        refused(folder, "adapter", "merge")
        (folder / "config.json").unlink()
        refused(folder, "only an adapter")

    def test_weights_of_another_name(self, folder: Path) -> None:
        configure(folder, transformers_weights="other.safetensors")
        refused(folder, "other.safetensors", "transformers_weights")

    @pytest.mark.parametrize(
        "name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "last.ckpt"]
    )
    def test_pickles(self, folder: Path, name: str) -> None:
        (folder / "model.safetensors").rename(folder / name)
        refused(folder, "pickle, which can run code", name, "save_pretrained")

    def test_no_weights(self, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
        refused(folder, "not in model.safetensors", "consolidated.safetensors")
        (folder / "consolidated.safetensors").rename(folder / "m.gguf")
        refused(folder, "no weights", "m.gguf")
        (folder / "m.gguf").unlink()
        refused(folder, "no weights", "download")

    def test_empty_weights(self, folder: Path) -> None:
        weights(folder / "model.safetensors")
        refused(folder, "no tensors")

    def test_cut_weights(self, folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        refused(folder, "after the end")

    @pytest.mark.parametrize("others", [(), ("tokenizer_config.json", "special_tokens_map.json")])
    def test_no_tokenizer(self, folder: Path, others: tuple[str, ...]) -> None:
        (folder / "tokenizer.json").unlink()
        for name in others:
            (folder / name).write_text("{}")
        refused(folder, "has no tokenizer", "tokenizer.json", *others[:1])

    @pytest.mark.parametrize("names", [("tokenizer.model",), ("vocab.json", "merges.txt")])
    def test_slow_tokenizer(self, folder: Path, names: tuple[str, ...]) -> None:
        (folder / "tokenizer.json").unlink()
        for name in names:
            (folder / name).write_text("{}")
        refused(folder, "does not read", "save_pretrained", *names)


class TestIndex:
    def test_missing_parts_are_named(self, folder: Path) -> None:
        shard(folder, {f"t{i}": f"model-{i}.safetensors" for i in range(9)})
        weights(folder / "model-0.safetensors", "t0")
        refused(folder, "model-1.safetensors", "model-5.safetensors", "and 3 more", "all 9")

    @pytest.mark.parametrize(
        "name",
        ["/etc/passwd.safetensors", "../up.safetensors", "a/b.safetensors", "..",
         "x\\y.safetensors", "pytorch_model-1.bin", "a\n.safetensors", "", None, 5, ["m"]],
    )  # fmt: skip
    def test_paths_that_lead_out(self, folder: Path, name: object) -> None:
        shard(folder, {"a": name})
        refused(folder, "not one of the folder's")

    @pytest.mark.parametrize("value", [None, [], {}, "model.safetensors", 3])
    def test_no_map(self, folder: Path, value: object) -> None:
        shard(folder, value)
        refused(folder, "does not say where the weights are")

    def test_not_matching(self, folder: Path) -> None:
        weights(folder / "m1.safetensors", "a")
        weights(folder / "m2.safetensors", "b")
        shard(folder, {"a": "m1.safetensors", "c": "m2.safetensors"})
        refused(folder, "m2.safetensors lacks a tensor", "'c'")
        weights(folder / "m2.safetensors", "b", "a")
        shard(folder, {"a": "m1.safetensors", "b": "m2.safetensors"})
        refused(folder, "m2.safetensors repeats a tensor", "'a'")

    def test_damaged_part(self, folder: Path) -> None:
        (folder / "m1.safetensors").write_bytes(b"")
        shard(folder, {"a": "m1.safetensors"})
        refused(folder, "not a safetensors file")

    def test_too_many(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nybble.models.folder.MAX_SHARDS", 3)
        shard(folder, {f"t{i}": f"m{i}.safetensors" for i in range(4)})
        refused(folder, "too many files")


HOSTILE = {
    "not JSON": b"{model_type: llama}",
    "is not JSON": b'{"a": ' + b"9" * 5000 + b"}",
    "nests too deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "does not hold a JSON object": b"[1, 2]",
    "not UTF-8": b'{"model_type": "\xff"}',
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\n",
    "JSON": b"",
}


class TestHostileJSON:
    @pytest.mark.parametrize("words", HOSTILE)
    @pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", INDEX])
    def test_every_file(self, folder: Path, name: str, words: str) -> None:
        if name == INDEX:
            (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(HOSTILE[words])
        refused(folder, words, name)

    def test_huge(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nybble.models.open_file.MAX_JSON_BYTES", 1000)
        (folder / "config.json").write_bytes(b" " * 2000)
        refused(folder, "too large", "2,000 bytes")

    def test_no_plain_file(self, folder: Path) -> None:
        (folder / "config.json").unlink()
        os.mkfifo(folder / "config.json")
        refused(folder, "a pipe or a device")
        (folder / "config.json").unlink()
        (folder / "config.json").symlink_to(folder / "gone")
        refused(folder, "points to a file that is gone")
        (folder / "config.json").unlink()
        (folder / "config.json").mkdir()
        refused(folder, "config.json")

    @settings(max_examples=100, deadline=None,
              suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
    @given(st.dictionaries(
        st.sampled_from(["model_type", "architectures", "text_config", "auto_map", "n_positions",
                         "quantization_config", "transformers_weights", "is_encoder_decoder"]),
        st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=4),
                     lambda x: st.lists(x, max_size=2)
                     | st.dictionaries(st.sampled_from(["auto_map", "n_positions"]), x),
                     max_leaves=4),
    ))  # fmt: skip
    def test_any_config(self, folder: Path, config: dict[str, Any]) -> None:
        text = json.dumps(config).encode("utf-8", "surrogatepass")
        (folder / "config.json").write_bytes(text)
        try:
            assert resolve(folder).architecture == config["model_type"]
        except ModelFileError as e:
            assert all(line.isprintable() for line in str(e).splitlines())


class TestFiles:
    def test_gguf(self, tiny_instruct: Path) -> None:
        found = resolve(tiny_instruct)
        assert (found.kind, found.name, found.architecture) == ("gguf", "tiny instruct", "llama")
        assert (found.files, found.size_bytes) == ((tiny_instruct,), tiny_instruct.stat().st_size)
        assert found.context_length == 4096
        assert found.chat_template is not None and "bos_token" in found.chat_template
        assert dict(found.config) == {}

    def test_one_part_of_a_folder(self, folder: Path) -> None:
        for name in ("model.safetensors", "config.json"):
            assert refused(folder / name, "one part").hint == f"name the folder: {folder}"

    def test_other_files(self, tmp_path: Path) -> None:
        (tmp_path / "model.bin").write_bytes(b"PK\x03\x04" + bytes(60))
        refused(tmp_path / "model.bin", "pickle")
        os.mkfifo(tmp_path / "pipe")
        refused(tmp_path / "pipe", "pipe")

    def test_nothing_there(self, tmp_path: Path, tiny_model: Path) -> None:
        (tmp_path / "model.gguf").symlink_to(tmp_path / "gone.gguf")
        refused(tmp_path / "model.gguf", "no such model")
        refused(tmp_path / "no" / "model", "no such model")
        near = refused(tiny_model.with_name("tinny.gguf"), "no such model")
        assert near.hint == f"did you mean {tiny_model}"

    @pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "", "~", "..", "a//b", "-", "a/b/c"])
    def test_odd_names(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        refused(name)


class TestSplitGGUF:
    def test_all_files(self, tmp_path: Path) -> None:
        import gguf
        import numpy as np

        stem = tmp_path / "m.gguf"
        writer = gguf.GGUFWriter(stem, "llama", split_max_tensors=1)
        writer.add_name("split")
        writer.add_block_count(1)
        writer.add_context_length(64)
        writer.add_embedding_length(4)
        writer.add_head_count(1)
        writer.add_vocab_size(8)
        for name in ("a", "b"):
            writer.add_tensor(name, np.ones((2, 4), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths = sorted(tmp_path.glob("*.gguf"))
        assert len(paths) == 2
        found = resolve(paths[0])
        assert found.files == tuple(paths)
        assert found.size_bytes == sum(p.stat().st_size for p in paths)
        assert len(found.fingerprint(tmp_path)) == 64
