"""The comparator in torch against the one in NumPy, which has a specification of its own."""

from __future__ import annotations

import numpy as np
import pytest
from test_compare import ROWS, Logits, make_pair, spec, tokens_of

from nybble.scoring.compare import ROW, Reference, Rows

torch = pytest.importorskip("torch")

from nybble.scoring.compare_torch import TorchReference  # noqa: E402

KINDS = ("random", "peaked", "flat", "offset", "tiny")
EXACT = ("position", "token", "top_ref", "top", "rank")
Tokens = np.ndarray[tuple[int], np.dtype[np.int32]]


def run(a: Logits, b: Logits, tokens: Tokens, first: int = 5) -> Rows:
    return TorchReference(torch.from_numpy(a), tokens, first).compare(torch.from_numpy(b))


def agree(a: Logits, b: Logits, tokens: Tokens, absolute: float = 2e-7) -> Rows:
    """Both comparators on the same logits; what torch gives."""
    want, got = Reference(a, tokens, 5).compare(b), run(a, b, tokens)
    assert got.dtype == ROW
    for field in EXACT:
        np.testing.assert_array_equal(got[field], want[field], err_msg=field)
    # NumPy sums products in float32 (BLAS), torch in float64.
    np.testing.assert_allclose(got["kld"], want["kld"], rtol=1e-6, atol=absolute)
    for field in ("nll", "nll_ref"):
        np.testing.assert_allclose(got[field], want[field], rtol=1e-6, err_msg=field)
    np.testing.assert_allclose(got["margin_ref"], want["margin_ref"], rtol=1e-6, atol=2e-7)
    return got


@pytest.mark.parametrize("kind", KINDS)
def test_equals_numpy(kind: str) -> None:
    got = agree(*make_pair(kind), tokens_of(), 2e-6 if kind == "peaked" else 2e-7)
    assert (got["kld"] > 0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_specification(kind: str) -> None:
    a, b = make_pair(kind)
    want = spec(a, b, tokens_of())
    absolute = {"peaked": 2e-5, "offset": 1e-6}.get(kind, 2e-7)
    np.testing.assert_allclose(run(a, b, tokens_of())["kld"], want["kld"], rtol=1e-6, atol=absolute)


@pytest.mark.parametrize("kind", KINDS)
def test_identity_is_exactly_zero(kind: str) -> None:
    a, _ = make_pair(kind)
    got = agree(a, a.copy(), tokens_of())
    assert not got["kld"].any()
    np.testing.assert_array_equal(got["nll"], got["nll_ref"])
    np.testing.assert_array_equal(got["top"], got["top_ref"])


def test_of_equal_logits_the_first_is_the_top() -> None:
    """A float16 head or a small vocabulary has many ties; identity must not see flips in them."""
    a = np.random.default_rng(0).integers(0, 4, (64, 501)).astype(np.float32)
    got = agree(a, a.copy(), tokens_of(64, 501))
    assert not got["margin_ref"].any()
    np.testing.assert_array_equal(got["top"], a.argmax(-1))
    np.testing.assert_array_equal(got["top_ref"], a.argmax(-1))


class TestMasked:
    def test_both_sides(self) -> None:
        (a, b), tokens = make_pair("random"), tokens_of()
        hidden = np.random.default_rng(3).random(a.shape[1]) < 0.3
        hidden[tokens[1:]] = False  # the first true token is masked too
        hidden[tokens[0]] = True
        a[:, hidden] = b[:, hidden] = -np.inf
        got = agree(a, b, tokens)
        assert np.isfinite(got["kld"]).all()
        assert np.isnan(got["nll"]).tolist() == [i == 0 for i in range(ROWS)]
        assert not agree(a, a.copy(), tokens)["kld"].any()

    def test_reference_only(self) -> None:
        (a, b), tokens = make_pair("random"), tokens_of()
        a[:, 17] = -np.inf
        assert np.isfinite(agree(a, b, tokens)["kld"]).all()

    def test_candidate_only(self) -> None:
        (a, b), tokens = make_pair("random"), tokens_of()
        b[2, 17] = -np.inf
        assert np.isnan(agree(a, b, tokens)["kld"]).tolist() == [i == 2 for i in range(ROWS)]

    def test_candidate_where_the_reference_has_no_weight(self) -> None:
        (a, b), tokens = make_pair("random"), tokens_of()
        a[:, 17], b[:, 17] = -500.0, -np.inf
        assert np.isfinite(agree(a, b, tokens)["kld"]).all()

    def test_all_but_one(self) -> None:
        a = np.full((1, 9), -np.inf, dtype=np.float32)
        a[0, 4] = 1.0
        got = agree(a, a.copy(), np.array([4], dtype=np.int32))
        assert got["margin_ref"][0] == np.inf
        assert (got["kld"][0], got["nll"][0]) == (0, 0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["reference", "candidate", "both"])
def test_nonfinite_logits_spoil_their_row_only(bad: float, side: str) -> None:
    (a, b), tokens = make_pair("random"), tokens_of()
    clean = run(a, b, tokens)
    if side != "candidate":
        a[3, [100, 7]] = bad
    if side != "reference":
        b[3, [100, 7]] = bad
    want, got = Reference(a, tokens, 5).compare(b), run(a, b, tokens)
    assert np.isnan(got["kld"][3]) and np.isnan(want["kld"][3])
    for field in EXACT:
        np.testing.assert_array_equal(got[field], want[field], err_msg=field)
    others = np.arange(ROWS) != 3
    np.testing.assert_array_equal(got[others], clean[others])


def test_one_reference_serves_many_candidates() -> None:
    (a, b), tokens = make_pair("random"), tokens_of()
    c = make_pair("flat")[1]
    reference = TorchReference(torch.from_numpy(a), tokens, 5)
    got = [reference.compare(torch.from_numpy(x)) for x in (b, c, b)]
    for rows, x in zip(got, (b, c, b), strict=True):
        assert rows.tobytes() == run(a, x, tokens).tobytes()
