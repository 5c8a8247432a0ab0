"""`scoring.compare` in torch, for logits that lie on a GPU or come out of torch anyway.

The same formula and the same rows. Exponentials are float32, sums over the vocabulary float64.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from nybble.scoring.compare import ROW, Rows


class TorchReference:
    """One block of a reference's logits, ready to be compared with.

    Args:
        logits: float32 [rows, n_vocab].
        tokens: int32 [rows], the true next tokens.
        first: position in the context of the first row.
    """

    def __init__(self, logits: torch.Tensor, tokens: npt.NDArray[np.int32], first: int) -> None:
        self._logits = logits
        self._tokens = torch.from_numpy(np.array(tokens, dtype=np.int64)).to(logits.device)
        two = logits.topk(2, dim=-1).values
        top = logits.argmax(-1)  # of equal ones the first, as `compare` takes it; topk takes any
        self._peak = two[:, :1]
        self._exp = torch.exp(logits - self._peak)
        self._sum = self._exp.sum(-1, dtype=torch.float64)
        self._lse = self._peak[:, 0].double() + self._sum.log()
        base = np.zeros(len(logits), dtype=ROW)
        base["position"] = np.arange(first, first + len(logits))
        base["token"] = tokens
        base["top_ref"] = top.cpu().numpy()
        base["margin_ref"] = (two[:, 0] - two[:, 1]).cpu().numpy()
        base["nll_ref"] = (self._lse - self._of_token(logits)).cpu().numpy()
        self._base = base

    def _of_token(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.gather(-1, self._tokens[:, None])[:, 0].double()

    def compare(self, logits: torch.Tensor) -> Rows:
        """Compare a candidate's logits of the same block.

        Args:
            logits: float32 [rows, n_vocab].

        Returns:
            ROW records [rows]; a row with non-finite logits has NaN in `kld` and `nll`.
        """
        out: Rows = self._base.copy()
        top = logits.max(-1)
        lse = (
            top.values.double()
            + torch.exp(logits - top.values[:, None]).sum(-1, dtype=torch.float64).log()
        )
        # Masked tokens have -inf on both sides; they carry no weight, so leave them out.
        drift = torch.where(self._exp > 0, self._exp * (self._logits - logits), 0.0)
        kld = drift.sum(-1, dtype=torch.float64) / self._sum - (self._lse - lse)
        # Rounding can leave -1e-9 where the two are equal up to a shift; KL is never negative.
        kld = kld.clamp(min=0)
        mine = self._of_token(logits)
        nll = lse - mine
        nan = torch.full_like(kld, torch.nan)
        out["kld"] = torch.where(kld.isfinite(), kld, nan).cpu().numpy()
        out["nll"] = torch.where(nll.isfinite(), nll, nan).cpu().numpy()
        out["top"] = top.indices.cpu().numpy()
        out["rank"] = (logits > mine[:, None].float()).sum(-1).cpu().numpy()
        return out
