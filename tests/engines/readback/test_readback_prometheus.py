"""Labels in Prometheus's text format: what is written is read back, whatever it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nybble.engines.readback.prometheus import has_metric, label_sets

NAME = "vllm:cache_config_info"
_KEYS = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,8}", fullmatch=True)
_LABELS = st.dictionaries(_KEYS, st.text(max_size=20), max_size=6)


def escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def sample(labels: dict[str, str], name: str = NAME) -> str:
    inner = ",".join(f'{key}="{escaped(value)}"' for key, value in labels.items())
    return f"{name}{{{inner}}} 1.0"


@given(st.lists(_LABELS, max_size=4))
def test_round_trip(sets: list[dict[str, str]]) -> None:
    text = "\n".join(["# HELP x", *map(sample, sets), sample({"a": "b"}, NAME + "_more")])
    assert label_sets(text, NAME) == sets


@given(st.text(), st.text(max_size=5))
def test_any_text(text: str, name: str) -> None:
    label_sets(text, name)
    label_sets(NAME + text, NAME)
    label_sets(NAME + "{" + text, NAME)
    has_metric(text, "vllm:")


@given(_LABELS, st.integers(1, 60))
def test_cut_off(labels: dict[str, str], cut: int) -> None:
    """A line that ends early tells nothing, rather than something else."""
    line = sample(labels)
    for found in label_sets(line[:-cut], NAME):
        assert found == labels


def test_forms() -> None:
    assert label_sets(NAME + ' { a = "1" , b="2", } 1 1700000000', NAME) == [{"a": "1", "b": "2"}]
    assert label_sets(NAME + " 1.0", NAME) == [{}]
    assert label_sets(NAME + "{} 1.0", NAME) == [{}]
    assert label_sets(NAME + '{a="x}y,z=\\"1\\""} 1', NAME) == [{"a": 'x}y,z="1"'}]
    assert label_sets(NAME + '{a="1" b="2"} 1', NAME) == []
    assert label_sets(NAME + "_total 1", NAME) == []


def test_has_metric() -> None:
    assert has_metric('# HELP\nvllm:num_requests_running{engine="0"} 0', "vllm:")
    assert not has_metric('# HELP vllm:x\nsglang:x{a="vllm:"} 0', "vllm:")
