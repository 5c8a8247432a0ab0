"""What the fold finds in a model, and every model it must not touch."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from foldable import FOLDERS, GGUFS, plan, random_energies, write_gguf, write_hf  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from gguf_models import write_tiny_gemma4, write_tiny_qwen3  # noqa: E402
from nybble.errors import EngineError, ModelFileError, NybbleError  # noqa: E402
from nybble.formats.energies import Energies, LayerEnergies  # noqa: E402
from nybble.hardening.families import FOLDER, GGUF, family  # noqa: E402
from nybble.hardening.sites import Site, find_sites  # noqa: E402
from nybble.models.checkpoint import resolve  # noqa: E402

Edit = Callable[[dict[str, Any]], object]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["proportional", "full_attention", 0, 1, 2, 64, 0.5]),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)  # fmt: skip
NORM_FAMILIES = ("qwen3", "qwen3moe", "gemma3", "gemma4", "gemma4-alike", "gemma4-shared")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every family: folders by their kind, and GGUFs."""
    path = tmp_path_factory.mktemp("models")
    for kind in FOLDERS:
        write_hf(path / kind, kind)
    for kind in GGUFS:
        write_gguf(path / f"{kind}.gguf", kind)
    return path


def sites_of(path: Path) -> list[Site]:
    return find_sites(resolve(path))[1]


def halves(dim: int, turning: int | None = None) -> list[int]:
    """Pairs D/2 apart, the first `turning` of them; numbered in the order they first appear."""
    turning = dim // 2 if turning is None else turning
    rest = range(dim // 2, dim - turning)
    return [*range(dim // 2), *range(turning), *rest]


class TestNames:
    @pytest.mark.parametrize("kind", GGUFS)
    def test_gguf(self, models: Path, kind: str) -> None:
        there = {t.name for t in gguf.GGUFReader(models / f"{kind}.gguf").tensors}
        for site in sites_of(models / f"{kind}.gguf"):
            i = site.layer
            ends = ["_norm.weight"] if kind in NORM_FAMILIES else [".weight", ".bias"]
            for side, found in (("q", site.queries), ("k", site.keys)):
                names = [f"blk.{i}.attn_{side}{end}" for end in ends]
                assert list(found) == [n for n in names if n in there]

    @pytest.mark.parametrize("kind", FOLDERS)
    def test_folder(self, models: Path, kind: str) -> None:
        there = load_file(models / kind / "model.safetensors")
        for site in sites_of(models / kind):
            prefix = f"model.layers.{site.layer}.self_attn."
            ends = ["_norm.weight"] if kind in NORM_FAMILIES else ["_proj.weight", "_proj.bias"]
            for side, found in (("q", site.queries), ("k", site.keys)):
                names = [f"{prefix}{side}{end}" for end in ends]
                assert list(found) == [n for n in names if n in there]

    @pytest.mark.parametrize(
        "name", ["qwen2", "llama-bias", "qwen2.gguf"]
    )  # Mistral and Llama have none
    def test_biases(self, models: Path, name: str) -> None:
        for site in sites_of(models / name):
            assert len(site.queries) == len(site.keys) == 2


class TestShapes:
    @pytest.mark.parametrize("kind", FOLDERS[:7])
    def test_folder(self, models: Path, kind: str) -> None:
        dim = {"llama": 64, "llama-bias": 64, "mistral": 64, "qwen3": 64}.get(kind, 32)
        found = sites_of(models / kind)
        assert [s.layer for s in found] == list(range(3 if kind == "gemma3" else 2))
        for site in found:
            assert (site.owner, site.heads, site.kv_heads) == (site.layer, 4, 2)
            assert site.ties.tolist() == halves(dim)

    @pytest.mark.parametrize("kind", GGUFS[:6])
    def test_gguf(self, models: Path, kind: str) -> None:
        dim = 64 if kind in ("gemma3", "qwen3") else 32
        for site in sites_of(models / f"{kind}.gguf"):
            assert (site.owner, site.heads, site.kv_heads) == (site.layer, 4, 2)
            beside = kind in ("llama", "mistral3")
            pairs = [i for i in range(dim // 2) for _ in range(2)]
            assert site.ties.tolist() == (pairs if beside else halves(dim))

    def test_gemma4_k_equals_v(self, models: Path) -> None:
        """Global layers have one KV head of 64, of which a quarter turns: 8 pairs."""
        found = sites_of(models / "gemma4")
        assert [s.owner for s in found] == [0, 1, 2, 3, 4, 5]
        assert [s.kv_heads for s in found] == [2, 2, 1, 2, 2, 1]
        for site in found:
            globe = site.layer in (2, 5)
            assert site.ties.tolist() == (halves(64, 8) if globe else halves(32))
            assert site.keys

    def test_gemma4_shared(self, models: Path) -> None:
        for name, kv_heads in (("gemma4-shared", 2), ("gemma4.gguf", 1), ("gemma4-alike.gguf", 1)):
            found = sites_of(models / name)
            assert [s.owner for s in found] == [0, 1, 2, 1, 1, 2]
            assert [bool(s.keys) for s in found] == [True] * 3 + [False] * 3
            assert [s.kv_heads for s in found] == [2, 2, kv_heads] * 2
            sliding = halves(64 if "alike" in name else 32)
            for site in found:
                assert site.ties.tolist() == (halves(64, 8) if site.layer in (2, 5) else sliding)

    @pytest.mark.parametrize("weights", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
    def test_what_must_stay_exact(
        self, make_tiny: Callable[..., Path], tmp_path: Path, weights: str
    ) -> None:
        found = sites_of(make_tiny(tmp_path / "m.gguf", weight_type=weights))
        assert [s.coarse for s in found] == [weights not in ("F32", "F16")] * 2
        norms = sites_of(write_tiny_qwen3(tmp_path / "n.gguf", weight_type=weights))
        assert not any(s.coarse for s in norms)


@pytest.fixture
def edited(models: Path, tmp_path: Path) -> Callable[[str, Edit], Path]:
    """A folder with its config.json changed."""

    def make(kind: str, edit: Edit) -> Path:
        path = Path(shutil.copytree(models / kind, tmp_path / "edited"))
        config = json.loads((path / "config.json").read_text())
        edit(config)
        (path / "config.json").write_text(json.dumps(config))
        return path

    return make


class TestConfigs:
    """Configs other than what transformers writes."""

    def test_text_part_of_a_multimodal_model(self, edited: Any) -> None:
        def nest(config: dict[str, Any]) -> None:
            text = dict(config)
            config.clear()
            config.update(model_type="gemma3", text_config=text)

        path = edited("gemma3", nest)
        tensors = load_file(path / "model.safetensors")
        tensors = {k.replace("model.", "language_model.model.", 1): v for k, v in tensors.items()}
        vision = "vision_tower.encoder.layers.0.self_attn.q_proj.weight"
        save_file({**tensors, vision: torch.zeros(4, 4)}, path / "model.safetensors")
        found = sites_of(path)
        assert [s.queries for s in found] == [
            (f"language_model.model.layers.{i}.self_attn.q_norm.weight",) for i in range(3)
        ]

    @pytest.mark.parametrize("key", ["rope_parameters", "layer_types", "head_dim"])
    def test_left_to_the_class(self, edited: Any, models: Path, key: str) -> None:
        """Without rope_parameters more channels are tied than need be, which is no error."""
        for kind in ("qwen3", "gemma3"):
            path = edited(kind, lambda c: c.pop(key, None))
            for site, whole in zip(sites_of(path), sites_of(models / kind), strict=True):
                assert site.ties.tolist() == whole.ties.tolist()
            shutil.rmtree(path)

    def test_layers_behind_the_last(self, edited: Any) -> None:
        path = edited("llama", lambda c: c.update(num_hidden_layers=1))
        assert [s.layer for s in sites_of(path)] == [0]

    def test_partial_rotation(self, edited: Any) -> None:
        path = edited("llama", lambda c: c["rope_parameters"].update(partial_rotary_factor=0.5))
        ties = [*range(16), *range(16), *range(16, 48)]
        assert [s.ties.tolist() for s in sites_of(path)] == [ties] * 2


def refused(path: Path, *words: str) -> NybbleError:
    with pytest.raises(NybbleError) as error:
        sites_of(path)
    for word in words:
        assert word in str(error.value)
    return error.value


BAD: Sequence[tuple[str, dict[str, Any]]] = [
    *[("llama", {"num_hidden_layers": v}) for v in (None, "2", [2], -1, 2.0, True, {})],
    *[("gemma4-shared", {"num_kv_shared_layers": v}) for v in ("3", 6, 99, -1, [3])],
    *[("gemma3", {"layer_types": v}) for v in ("full_attention", [], ["full_attention"], {})],
    *[("llama", {"head_dim": v}) for v in ("64", 0, 63, 65, 1 << 40, -64, [64])],
    *[("llama", {"head_dim": None, "hidden_size": v}) for v in (None, "64", 0, [])],
    *[("llama", {"head_dim": None, "num_attention_heads": v}) for v in (None, "4", 0, {})],
    *[("llama", {"partial_rotary_factor": v}) for v in ("half", -1, 2, [1], float("nan"))],
    *[("llama", {"text_config": v}) for v in ([1], "text", 7)],
]


class TestHostileConfigs:
    @pytest.mark.parametrize(("kind", "changes"), BAD)
    def test_named(self, edited: Any, kind: str, changes: dict[str, Any]) -> None:
        error = refused(edited(kind, lambda c: c.update(changes)))
        assert isinstance(error, ModelFileError)

    @pytest.mark.parametrize("value", [[], [1], "yarn", 3, {"full_attention": [1]}, {"a": {}}])
    @pytest.mark.parametrize("kind", ["llama", "gemma4"])
    def test_rope_parameters_that_say_nothing(self, edited: Any, kind: str, value: Any) -> None:
        """All pairs are tied then, which is right whatever the class makes of it."""
        found = sites_of(edited(kind, lambda c: c.update(rope_parameters=value)))
        assert all(s.ties.tolist() == halves(len(s.ties)) for s in found)

    @pytest.mark.parametrize("value", [["llama"], {"a": 1}, 3, "LlamA\x1b[31m"])
    def test_model_type(self, edited: Any, value: Any) -> None:
        error = refused(edited("llama", lambda c: c.update(text_config={"model_type": value})))
        assert "\x1b" not in str(error)

    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    @pytest.mark.parametrize("kind", ["llama", "gemma4-shared"])
    def test_any_value_anywhere(self, models: Path, kind: str, data: st.DataObject) -> None:
        """Sites that are whole, or an error of ours."""
        checkpoint = resolve(models / kind)
        config = json.loads(json.dumps(dict(checkpoint.config)))
        for _ in range(data.draw(st.integers(1, 3))):
            part = config
            rope = config.get("rope_parameters")
            if isinstance(rope, dict) and data.draw(st.booleans()):
                part = data.draw(st.sampled_from([rope, *filter(_is_dict, rope.values())]))
            key = data.draw(st.sampled_from(sorted(part) or ["rope_type"]))
            part[key] = data.draw(JSON)
        try:
            _, found = find_sites(dataclasses.replace(checkpoint, config=config))
        except NybbleError:
            return
        layers = {s.layer for s in found if s.keys}
        for site in found:
            assert site.owner in layers
            assert len(site.ties) >= site.ties.max() + 1


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


class TestRefused:
    @pytest.mark.parametrize("kind", ["gemma2", "gpt-oss"])
    def test_a_folder_of_another_family(self, tmp_path: Path, kind: str) -> None:
        words = ("no rule to harden", repr(kind.replace("-", "_")), "gemma3_text", "qwen2")
        refused(write_hf(tmp_path / "m", kind), *words)

    def test_a_gguf_of_another_family(self, tmp_path: Path) -> None:
        error = refused(write_gguf(tmp_path / "m.gguf", "gemma2"), "no rule to harden", "'gemma2'")
        assert "which is not gemma" in str(error) and error.hint

    @pytest.mark.parametrize("known", [GGUF, FOLDER])
    def test_all_known_ones_are_listed(self, known: Any) -> None:
        with pytest.raises(NybbleError) as error:
            family("rwkv", known)
        assert all(name in str(error.value.allowed) for name in known)

    def test_rows_with_a_norm_behind(self, models: Path, tmp_path: Path) -> None:
        path = Path(shutil.copytree(models / "llama", tmp_path / "m"))
        tensors = load_file(path / "model.safetensors")
        tensors["model.layers.1.self_attn.q_norm.weight"] = torch.ones(64)
        save_file(tensors, path / "model.safetensors")
        refused(path, "not built like Llama", "model.layers.1.self_attn.q_norm.weight")

    @pytest.mark.parametrize("left_out", ["k_norm.weight", "k_proj.weight", "q_proj.weight"])
    def test_a_folder_without(self, models: Path, tmp_path: Path, left_out: str) -> None:
        path = Path(shutil.copytree(models / "qwen3", tmp_path / "m"))
        tensors = load_file(path / "model.safetensors")
        kept = {k: v.clone() for k, v in tensors.items() if not k.endswith(left_out)}
        save_file(kept, path / "model.safetensors")
        refused(path, left_out if left_out != "q_proj.weight" else "no layer with")

    @pytest.mark.parametrize(
        ("kind", "name", "into"),
        [
            ("qwen3", "blk.1.attn_k_norm.weight", "blk.1.attn_x_norm.weight"),
            ("llama", "blk.0.attn_q.weight", "blk.0.attn_x.weight"),
            ("llama", "blk.1.ffn_norm.weight", "blk.1.attn_q_norm.weight"),
        ],
    )
    def test_a_gguf_with_other_tensors(
        self, models: Path, tmp_path: Path, kind: str, name: str, into: str
    ) -> None:
        """Renamed in place, with as many letters less elsewhere: offsets keep."""
        data = (models / f"{kind}.gguf").read_bytes()

        def text(value: str) -> bytes:
            return len(value).to_bytes(8, "little") + value.encode()

        assert data.count(text(name)) == 1
        longer = len(into) - len(name)
        data = data.replace(text(name), text(into))
        if longer:
            # The general name, "base", makes up for it.
            short = "base" + "." * 60
            data = data.replace(text("base"), text(short[: 4 - longer]), 1)
        (tmp_path / "m.gguf").write_bytes(data)
        refused(
            tmp_path / "m.gguf", "not built like", into if "x" not in into else f"no tensor {name}"
        )

    def test_norms_that_are_not_f32(self, tmp_path: Path) -> None:
        path = write_tiny_qwen3(tmp_path / "m.gguf")
        data = path.read_bytes()
        name = b"blk.1.attn_k_norm.weight"
        at = data.index(name) + len(name) + 4 + 8  # dimensions, the one size
        assert data[at : at + 4] == bytes(4)
        path.write_bytes(data[:at] + (1).to_bytes(4, "little") + data[at + 4 :])
        refused(path, "not F32", "blk.1.attn_k_norm.weight is F16", "convert_hf_to_gguf")

    @pytest.mark.parametrize("shared", [5, 6, 1000])
    def test_sharing_what_is_not_there(self, tmp_path: Path, shared: int) -> None:
        path = write_tiny_gemma4(tmp_path / "m.gguf", shared=3)
        refused(_set(path, "gemma4.attention.shared_kv_layers", shared), "shared_kv_layers")

    @pytest.mark.parametrize("dim", [0, 1, 63, 128, 1 << 30])
    @pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
    def test_a_head_size_that_is_not_the_tensors(
        self, models: Path, tmp_path: Path, kind: str, dim: int
    ) -> None:
        path = Path(shutil.copy(models / f"{kind}.gguf", tmp_path / "m.gguf"))
        assert isinstance(refused(_set(path, f"{kind}.attention.key_length", dim)), ModelFileError)

    @pytest.mark.parametrize("rotated", [1, 31, 34, 1 << 30])
    def test_rotation_beyond_the_head(self, models: Path, tmp_path: Path, rotated: int) -> None:
        path = Path(shutil.copy(models / "llama.gguf", tmp_path / "m.gguf"))
        refused(_set(path, "llama.rope.dimension_count", rotated), "rope.dimension_count")


def _set(path: Path, key: str, value: int) -> Path:
    """Overwrite a number of a GGUF's header."""
    reader: Any = gguf.GGUFReader(path, "r+")
    field = reader.get_field(key)
    field.parts[field.data[0]][0] = value
    reader.data.flush()
    return path


class TestStatisticsOfAnotherModel:
    def test_other_layers(self, models: Path) -> None:
        fam, sites = find_sites(resolve(models / "gemma4-shared"))
        energies = random_energies(sites, False)
        for layers in ({0: energies.layers[0]}, {**energies.layers, 3: energies.layers[0]}):
            other = Energies(layers, False, 1, "", "transformers")
            with pytest.raises(EngineError, match="do not fit the model's layers"):
                plan(fam, sites, gguf=False, energies=other)

    @pytest.mark.parametrize("shape", [(1, 64), (2, 32), (64, 2)])
    def test_other_heads(self, models: Path, shape: tuple[int, int]) -> None:
        fam, sites = find_sites(resolve(models / "llama"))
        layers = {i: LayerEnergies(np.ones(shape), np.ones(shape)) for i in range(2)}
        with pytest.raises(EngineError, match="do not fit the model's heads"):
            plan(fam, sites, gguf=False, energies=Energies(layers, False, 1, "", "llama.cpp"))
