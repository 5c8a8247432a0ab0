"""The comparator against a plain float64 specification of the same numbers."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

from nybble.scoring.compare import ROW, Reference, Rows
from nybble.scoring.statistics import Sample, ScoredChunk

N, ROWS = 3001, 7  # odd on purpose: no multiple of any vector width
Logits = npt.NDArray[np.float32]


def spec(reference: Logits, candidate: Logits, tokens: npt.NDArray[np.int32]) -> dict[str, Logits]:
    """Log-softmax of both in float64 and KL as the sum over the whole vocabulary."""

    def log_softmax(x: Logits) -> npt.NDArray[np.float64]:
        y = x.astype(np.float64)
        y = y - y.max(axis=1, keepdims=True)
        return y - np.log(np.exp(y).sum(axis=1, keepdims=True))

    lp, lq = log_softmax(reference), log_softmax(candidate)
    p = np.exp(lp)
    with np.errstate(invalid="ignore"):
        terms = np.where(p > 0, p * (lp - lq), 0.0)
    at = np.arange(len(tokens))
    ranked = np.sort(lp, axis=1)
    return {
        "kld": terms.sum(axis=1),
        "nll_ref": -lp[at, tokens],
        "nll": -lq[at, tokens],
        "margin_ref": ranked[:, -1] - ranked[:, -2],
        "top_ref": reference.argmax(axis=1),
        "top": candidate.argmax(axis=1),
        "rank": (candidate > candidate[at, tokens][:, None]).sum(axis=1),
    }  # type: ignore[dict-item]


def make_pair(kind: str, rows: int = ROWS) -> tuple[Logits, Logits]:
    """Reference and candidate logits of one character."""
    rng = np.random.default_rng(sum(map(ord, kind)))
    shape = (rows, N)
    a = rng.standard_normal(shape)
    b = a + 0.3 * rng.standard_normal(shape)
    if kind == "peaked":  # one token has nearly all weight, most underflow in float32
        a = np.where(rng.random(shape) < 0.01, 80.0, -80.0) + rng.standard_normal(shape)
        b = a + rng.standard_normal(shape)
    elif kind == "flat":
        a = np.zeros(shape) + 1e-3 * rng.standard_normal(shape)
        b = a + 0.05 * rng.standard_normal(shape)
    elif kind == "offset":  # softmax does not see a shift
        a, b = a + 1e4, b + 1e4
    elif kind == "apart":  # nor that of one side, but a - b then rounds to 2e-3 in float32
        a, b = a + 1e4, b - 1e4
    elif kind == "tiny":
        a = 3 * a
        b = a + 1e-4 * rng.standard_normal(shape)
    return a.astype(np.float32), b.astype(np.float32)


def tokens_of(rows: int = ROWS, n: int = N) -> npt.NDArray[np.int32]:
    return np.random.default_rng(1).integers(0, n, rows).astype(np.int32)


def run(a: Logits, b: Logits, tokens: npt.NDArray[np.int32], *, first: int = 5) -> Rows:
    return Reference(a, tokens, first).compare(b)


# Absolute tolerances; `peaked` and `apart` follow from float32's spacing at 160 and at 2e4.
@pytest.mark.parametrize(
    ("kind", "kld", "nll"),
    [
        ("random", 1e-6, 2e-6),
        ("peaked", 2e-5, 2e-5),
        ("flat", 2e-7, 2e-6),
        ("offset", 1e-6, 2e-6),
        ("apart", 5e-3, 1e-6),
        ("tiny", 2e-7, 2e-6),
    ],
)
def test_equals_the_specification(kind: str, kld: float, nll: float) -> None:
    (a, b), tokens = make_pair(kind), tokens_of()
    want, got = spec(a, b, tokens), run(a, b, tokens)
    np.testing.assert_allclose(got["kld"], want["kld"], atol=kld, rtol=1e-5)
    np.testing.assert_allclose(got["nll_ref"], want["nll_ref"], atol=nll, rtol=1e-6)
    np.testing.assert_allclose(got["nll"], want["nll"], atol=nll, rtol=1e-6)
    np.testing.assert_allclose(got["margin_ref"], want["margin_ref"], atol=2e-5, rtol=1e-6)
    for field in ("top_ref", "top", "rank"):
        np.testing.assert_array_equal(got[field], want[field], err_msg=field)
    np.testing.assert_array_equal(got["position"], np.arange(5, 5 + ROWS))
    np.testing.assert_array_equal(got["token"], tokens)
    assert (got["kld"] >= 0).all()


def test_tiny_drift_is_in_the_range_meant() -> None:
    a, b = make_pair("tiny")
    want = spec(a, b, tokens_of())["kld"]
    assert 1e-10 < want.min() and want.max() < 2e-8


def test_the_specification_itself() -> None:
    """Two tokens by hand: p = (3/4, 1/4), q = (1/4, 3/4), KL = 1/2 ln 3."""
    a = np.log(np.array([[3.0, 1.0]])).astype(np.float32)
    b = a[:, ::-1].copy()
    got = run(a, b, np.array([0], dtype=np.int32))
    assert got["kld"][0] == pytest.approx(0.5 * np.log(3), abs=1e-6)
    assert got["nll_ref"][0] == pytest.approx(np.log(4 / 3), abs=1e-6)
    assert got["nll"][0] == pytest.approx(np.log(4), abs=1e-6)
    assert got["margin_ref"][0] == pytest.approx(np.log(3), abs=1e-6)
    assert (got["top_ref"][0], got["top"][0], got["rank"][0]) == (0, 1, 1)


@pytest.mark.parametrize("kind", ["random", "peaked", "flat", "offset", "tiny"])
def test_identity_is_exactly_zero(kind: str) -> None:
    a, _ = make_pair(kind)
    got = run(a, a.copy(), tokens_of())
    assert not got["kld"].any()
    np.testing.assert_array_equal(got["nll"], got["nll_ref"])
    np.testing.assert_array_equal(got["top"], got["top_ref"])


def test_direction_is_reference_to_candidate() -> None:
    a, b = make_pair("random")
    b = 3 * b
    forth, back = run(a, b, tokens_of())["kld"], run(b, a, tokens_of())["kld"]
    assert not np.allclose(forth, back, rtol=0.05)
    np.testing.assert_allclose(forth, spec(a, b, tokens_of())["kld"], rtol=1e-5)


def test_rank_counts_strictly_better_tokens() -> None:
    a = np.zeros((1, 5), dtype=np.float32)
    b = np.array([[3, 2, 2, 1, 0]], dtype=np.float32)
    ranks = [int(run(a, b, np.array([t], dtype=np.int32))["rank"][0]) for t in range(5)]
    assert ranks == [0, 1, 1, 3, 4]


def test_ties_have_no_margin() -> None:
    a = np.array([[2, 2, 1]], dtype=np.float32)
    got = run(a, a, np.array([0], dtype=np.int32))
    assert got["margin_ref"][0] == 0 and got["top_ref"][0] == got["top"][0] == 0


class TestMasked:
    """-inf logits: tokens a model or a sampler forbids."""

    def test_on_both_sides_they_do_not_count(self) -> None:
        (a, b), tokens = make_pair("random"), tokens_of()
        hidden = np.random.default_rng(3).random(N) < 0.3
        hidden[tokens] = False
        am, bm = a.copy(), b.copy()
        am[:, hidden] = bm[:, hidden] = -np.inf
        got = run(am, bm, tokens)
        keep = np.flatnonzero(~hidden)
        want = spec(a[:, keep], b[:, keep], np.searchsorted(keep, tokens).astype(np.int32))
        for field in ("kld", "nll", "nll_ref", "margin_ref"):
            np.testing.assert_allclose(got[field], want[field], atol=3e-6, err_msg=field)
        np.testing.assert_array_equal(got["rank"], want["rank"])
        assert not run(am, am.copy(), tokens)["kld"].any()

    def test_reference_only_is_finite(self) -> None:
        (a, b), tokens = make_pair("random"), tokens_of()
        a[:, 17] = -np.inf
        tokens[tokens == 17] = 18
        got = run(a, b, tokens)
        np.testing.assert_allclose(got["kld"], spec(a, b, tokens)["kld"], rtol=1e-5)
        assert np.isfinite(got["nll"]).all()

    def test_candidate_only_is_infinite_and_left_out(self) -> None:
        (a, b), tokens = make_pair("random"), tokens_of()
        b[2, 17] = -np.inf  # the reference gives it weight, so KL is infinite
        got = run(a, b, tokens)
        assert np.isnan(got["kld"]).tolist() == [i == 2 for i in range(ROWS)]
        sample = Sample([ScoredChunk("c", "d", got)])
        assert (sample.n_nonfinite, sample.n_tokens) == (1, ROWS - 1)

    def test_candidate_masks_what_the_reference_cannot_say(self) -> None:
        """exp underflows to 0 in float32 there: no weight, so no infinity."""
        a, b = make_pair("random", 1)
        a[0, 17], b[0, 17] = -500.0, -np.inf
        tokens = np.array([3], dtype=np.int32)
        want = spec(a, np.where(np.isinf(b), -500, b).astype(np.float32), tokens)
        assert run(a, b, tokens)["kld"][0] == pytest.approx(want["kld"][0], rel=1e-5)

    def test_true_token_masked(self) -> None:
        a, b = make_pair("random", 1)
        b[0, 17] = -np.inf
        a[0, 17] = -np.inf
        got = run(a, b, np.array([17], dtype=np.int32))
        assert np.isnan(got["nll"][0])
        assert got["rank"][0] == N - 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["reference", "candidate", "both"])
def test_nonfinite_logits_spoil_their_row_only(bad: float, side: str) -> None:
    (a, b), tokens = make_pair("random"), tokens_of()
    clean = run(a, b, tokens)
    if side != "candidate":
        a[3, 100] = bad
    if side != "reference":
        b[3, 100] = bad
    got = run(a, b, tokens)
    others = np.arange(ROWS) != 3
    np.testing.assert_array_equal(got[others], clean[others])
    assert np.isnan(got["kld"][3])
    assert Sample([ScoredChunk("c", "d", got)]).n_nonfinite == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_all_logits_masked(side: str) -> None:
    a, b = make_pair("random", 1)
    (a if side == "reference" else b)[:] = -np.inf
    got = run(a, b, np.array([3], dtype=np.int32))
    assert np.isnan(got["kld"][0])
    assert Sample([ScoredChunk("c", "d", got)]).n_nonfinite == 1


@pytest.mark.parametrize("kind", ["random", "peaked", "tiny"])
def test_lanes_compare_from_their_own_threads(kind: str) -> None:
    """One reference block serves several threads at once, bit for bit as one after the other."""
    (a, b), tokens = make_pair(kind), tokens_of()
    candidates = [b + np.float32(i % 3) * np.roll(b, i) / 10 for i in range(24)]
    reference = Reference(a, tokens, 5)
    alone = [run(a, x, tokens).tobytes() for x in candidates]
    with ThreadPoolExecutor(8) as pool:
        beside = [rows.tobytes() for rows in pool.map(reference.compare, candidates)]
    assert beside == alone
    assert len(set(alone)) > 3


def test_blocks_of_one_row_give_the_same_bits() -> None:
    (a, b), tokens = make_pair("random"), tokens_of()
    whole = run(a, b, tokens, first=9)
    parts = [run(a[i : i + 1], b[i : i + 1], tokens[i : i + 1], first=9 + i) for i in range(ROWS)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_one_reference_serves_many_candidates() -> None:
    (a, b), tokens = make_pair("random"), tokens_of()
    c = make_pair("flat")[1]
    reference = Reference(a, tokens, 5)
    got = [reference.compare(x) for x in (b, c, b)]
    # What was returned before must not be a view of anything used again.
    for rows, x in zip(got, (b, c, b), strict=True):
        assert rows.tobytes() == run(a, x, tokens).tobytes()
    assert got[0].dtype == ROW


def test_the_engines_buffer_may_be_overwritten() -> None:
    (a, b), tokens = make_pair("random"), tokens_of()
    want = run(a, b, tokens).tobytes()
    buffer, ids = a.copy(), tokens.copy()
    reference = Reference(buffer, ids, 5)
    buffer[:], ids[:] = 0, 0
    assert reference.compare(b).tobytes() == want


def test_inputs_are_not_changed() -> None:
    (a, b), tokens = make_pair("random"), tokens_of()
    before = a.tobytes(), b.tobytes(), tokens.tobytes()
    run(a, b, tokens)
    assert before == (a.tobytes(), b.tobytes(), tokens.tobytes())


@pytest.fixture
def _traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize("masked", [False, True])
def test_memory_does_not_grow(masked: bool) -> None:
    n, rows = 40_000, 4
    rng = np.random.default_rng(0)
    a = rng.standard_normal((rows, n)).astype(np.float32)
    b = a + np.float32(0.1)
    if masked:
        a[:, :100] = b[:, :100] = -np.inf
    tokens = tokens_of(rows, n - 100) + np.int32(100)
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    for _ in range(50):
        reference = Reference(a, tokens, 0)
        for _ in range(3):
            reference.compare(b)
    peak = tracemalloc.get_traced_memory()[1] - before
    del reference
    assert tracemalloc.get_traced_memory()[0] - before < 100_000
    # Logits and exponentials of two blocks (the old one goes when the new one is there), one
    # float row of scratch, and what masked rows gather.
    assert peak < 4 * n * (2 * 2 * rows + 1 + (3 if masked else 1))
