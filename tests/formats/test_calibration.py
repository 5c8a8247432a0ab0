"""Means, scales and bases from moments."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from nybble.formats import calibration  # noqa: E402
from nybble.formats.calibration import LayerCalibration, LayerMoments  # noqa: E402

HEADS, DIM = 2, 16


def moments(
    seed: int = 0,
    dim: int = DIM,
    spread: float = 1.0,
    still: tuple[int, ...] = (),
    size: float = 1.0,
) -> LayerMoments:
    """Of random keys and queries; `still` channels never move, others differ by e^spread."""
    g = torch.Generator().manual_seed(seed)

    def matrix() -> torch.Tensor:
        x = torch.randn(HEADS, 8 * dim, dim, generator=g, dtype=torch.float64)
        x = x @ torch.randn(HEADS, dim, dim, generator=g, dtype=torch.float64)
        x = x * torch.exp(spread * torch.randn(dim, generator=g, dtype=torch.float64)) * size
        x[..., list(still)] = 0
        return x.mT @ x / x.shape[1]

    mean = torch.randn(HEADS, dim, generator=g, dtype=torch.float64)
    return LayerMoments(mean, matrix(), matrix(), mean, torch.ones(HEADS, dtype=torch.float64))


def random(*shape: int) -> torch.Tensor:
    """Two of a shape."""
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, *shape, generator=g, dtype=torch.float64)


def fitted(m: LayerMoments) -> LayerCalibration:
    found = LayerCalibration.fit(m)
    for name, value in vars(found).items():
        assert value.dtype == torch.float32 and value.isfinite().all(), name
    return found


def product(found: LayerCalibration, m: LayerMoments) -> tuple[torch.Tensor, torch.Tensor]:
    """Second moments of stored keys T k and of the queries T^-T q that read them."""
    t = found.basis.double()
    inverse = torch.linalg.inv(t)
    return t @ m.keys @ t.mT, inverse.mT @ m.queries @ inverse


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """No shrinking: moments are taken as they are."""
    monkeypatch.setattr(calibration, "SHRINK", 0.0)


class TestBasis:
    @settings(max_examples=20, deadline=None)
    @given(seed=st.integers(0, 1000))
    def test_both_moments_are_equal_and_diagonal(self, seed: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(calibration, "SHRINK", 0.0)
            m = moments(seed, dim=8, spread=0.3)
            found = fitted(m)
        right = torch.diag_embed(found.weight.double())
        for moment in product(found, m):
            assert torch.allclose(moment, right, atol=1e-3 * float(right.max()))

    def test_weights_fall(self, exact: None) -> None:
        weight = fitted(moments(spread=1.5)).weight
        assert (weight[:, :-1] >= weight[:, 1:]).all() and (weight > 0).all()

    def test_scores_stay(self) -> None:
        """T k and T^-T q have the score of k and q, whatever was shrunk."""
        found = fitted(moments(spread=1.0))
        k, q = random(HEADS, 5, DIM)
        t = found.basis.double()
        turned = (q @ torch.linalg.inv(t)) @ (k @ t.mT).mT
        assert torch.allclose(turned, q @ k.mT, rtol=1e-4, atol=1e-4)

    def test_no_other_basis_is_better(self, exact: None) -> None:
        """E|k|^2 E|q|^2 against the plain basis, the scaled one and random ones."""
        m = moments(spread=1.0)
        found = fitted(m)

        def cost(t: torch.Tensor) -> torch.Tensor:
            inverse = torch.linalg.inv(t)
            keys, queries = t @ m.keys @ t.mT, inverse.mT @ m.queries @ inverse
            traces = [x.diagonal(dim1=-2, dim2=-1).sum(-1) for x in (keys, queries)]
            return traces[0] * traces[1]

        best = cost(found.basis.double())
        plain = torch.eye(DIM, dtype=torch.float64).expand(HEADS, DIM, DIM)
        scaled = torch.diag_embed(1 / found.scale.double())
        assert (best < cost(scaled)).all() and (cost(scaled) < cost(plain)).all()
        g = torch.Generator().manual_seed(5)
        for _ in range(20):
            near = torch.eye(DIM) + 0.1 * torch.randn(HEADS, DIM, DIM, generator=g)
            assert (best <= cost(near.double() @ found.basis.double()) * (1 + 1e-5)).all()

    def test_equal_moments_need_no_stretching(self, exact: None) -> None:
        """K = Q: T is a rotation."""
        m = moments(spread=0.5)
        found = fitted(LayerMoments(m.mean, m.keys, m.keys, m.mean, m.value_size))
        t = found.basis.double()
        assert torch.allclose(t @ t.mT, torch.eye(DIM, dtype=torch.float64), atol=1e-3)


class TestScale:
    def test_by_hand(self) -> None:
        """e = (16 / 1) ** (1/4) = 2, (1 / 81) ** (1/4) = 1/3."""
        keys, queries = (
            torch.diag(torch.tensor(d).double())[None] for d in ([16.0, 1.0], [1.0, 81.0])
        )
        zero = torch.zeros(1, 2)
        found = fitted(LayerMoments(zero, keys, queries, zero, torch.ones(1)))
        assert torch.allclose(found.scale, torch.tensor([[2.0, 1 / 3]]))

    def test_diagonal_moments_come_out_equal(self) -> None:
        m = moments(spread=1.0)
        e2 = fitted(m).scale.double().square()
        k, q = (x.diagonal(dim1=-2, dim2=-1) for x in (m.keys, m.queries))
        assert torch.allclose(k / e2, q * e2, rtol=1e-5)


class TestOddMoments:
    @pytest.mark.parametrize("still", [(3,), (0, 7, 15), tuple(range(15)), tuple(range(16))])
    def test_channels_that_never_move(self, still: tuple[int, ...]) -> None:
        """They are left as they are, and T stays invertible."""
        found = fitted(moments(still=still))
        assert torch.equal(found.scale[:, list(still)], torch.ones(HEADS, len(still)))
        assert (found.scale > 0).all()
        inverse = torch.linalg.inv(found.basis.double())
        there_and_back = found.basis.double() @ inverse
        assert torch.allclose(there_and_back, torch.eye(DIM, dtype=torch.float64), atol=1e-6)

    def test_queries_that_never_come(self) -> None:
        m = moments()
        fitted(LayerMoments(m.mean, m.keys, torch.zeros_like(m.keys), m.mean, m.value_size))
        fitted(LayerMoments(m.mean, torch.zeros_like(m.keys), m.queries, m.mean, m.value_size))

    @pytest.mark.parametrize("size", [1e-6, 1e-3, 1e4])
    def test_sizes(self, size: float) -> None:
        """All keys and queries larger by one factor: the same basis, weights by its square."""
        found, plain = fitted(moments(size=size)), fitted(moments())
        assert torch.allclose(found.scale, plain.scale, rtol=1e-4)
        assert torch.allclose(found.weight, plain.weight * size**2, rtol=1e-3)

    def test_fewer_tokens_than_channels(self) -> None:
        """Moments of little text are singular; shrinking fills them."""
        x, y = random(HEADS, 5, 64)
        mean = x.mean(1)
        found = fitted(LayerMoments(mean, x.mT @ x / 5, y.mT @ y / 5, mean, x.std((1, 2))))
        condition = torch.linalg.cond(found.basis.double())
        assert (condition < 100).all()

    def test_one_dominant_direction(self) -> None:
        """A spread of e^12 between channels neither overflows nor loses rank."""
        found = fitted(moments(spread=6.0))
        assert (torch.linalg.matrix_rank(found.basis.double(), rtol=1e-12) == DIM).all()
