"""Mixed Barlow Twins: guarding the representation against overfitting (Bandara et al., 2023, arXiv 2312.02151)."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from barlow.objectives.barlow_twins import LAMBD, barlow_twins_terms, check_weight, named_terms
from barlow.objectives.correlation import Form, check_form, correlate, exact_matmul, standardize, to_compute_dtype
from barlow.objectives.ranks import share_batch

LAMBD_REG = 4.0
"""The released small-data weight of the regulariser, relative to lambd."""


class MixedBarlowTwinsLoss(nn.Module):
    """The Barlow Twins loss plus lambd_reg * lambd * (|| C^MA - C^MA_gt ||^2 + || C^MB - C^MB_gt ||^2).

    The third view embeds y_m = a y_A + (1 - a) y_B[p]; were the encoder linear along the mix, its correlations would
    be C^MA_gt = a Za'Za/N + (1 - a) Zb[p]'Za/N and C^MB_gt = a Za'Zb/N + (1 - a) Zb[p]'Zb/N. With the residual
    R = Zm - a Za - (1 - a) Zb[p] the two norms are || R'Za ||^2 / N^2 and || R'Zb ||^2 / N^2, and computed as such.
    The gradient flows through every term.

    Args:
        lambd: weight of the redundancy term.
        lambd_reg: weight of the regulariser, relative to lambd.
        form: "correlation" builds D x D matrices, "gram" N x N ones; "auto" takes the cheaper. The value is the same.
        mix_global: a sample's partner may be on another rank: permutations name rows of the global batch, the ranks'
            rows in order (batch-shuffled mixing over the whole batch, as TESSERA does).
        group: the process group that shares the batch; None is the default group.

    Raises:
        InputError: for a negative or infinite weight, or an unknown `form`.
    """

    def __init__(
        self,
        lambd: float = LAMBD,
        lambd_reg: float = LAMBD_REG,
        form: Form = "auto",
        group: dist.ProcessGroup | None = None,
        *,
        mix_global: bool = False,
    ) -> None:
        super().__init__()
        self.lambd = check_weight("lambd", lambd)
        self.lambd_reg = check_weight("lambd_reg", lambd_reg)
        self.form = check_form(form)
        self.group = group
        self.mix_global = mix_global

    def forward(
        self, z_a: Tensor, z_b: Tensor, z_m: Tensor, mix: Tensor | float, permutation: Tensor, *more: Tensor
    ) -> Tensor:
        """The loss of embeddings [n, D] of two views, of their mix, and of more views; see `terms`."""
        return self.terms(z_a, z_b, z_m, mix, permutation, *more)["loss"]

    def terms(
        self, z_a: Tensor, z_b: Tensor, z_m: Tensor, mix: Tensor | float, permutation: Tensor, *more: Tensor
    ) -> dict[str, Tensor]:
        """`loss` and what it is the sum of: `invariance`, `redundancy` and `mix`, weights included.

        Args:
            z_a, z_b, z_m: embeddings [n, D] of the two views and of the mixed images.
            mix: the share a of view A in each mix: one number for the batch, or one per sample [n].
            permutation: p, int64 [n]: mixed image k holds view B of sample p[k] of this rank (of the global batch with
                `mix_global`).
            more: embeddings [n, D] of further views. The first two terms are then the mean over all pairs, and the
                regulariser's two norms are twice the mean over all views.

        Raises:
            InputError: for embeddings that are not floating-point matrices of one shape on one device, a mix or
                permutation of another length, fewer than two samples in all, or ranks that disagree; on every rank
                alike.
        """
        ranks = share_batch((z_a, z_b, z_m, *more), self.group, _fault(z_a, mix, permutation))
        with exact_matmul(z_a.device):
            x_a, x_b, x_m, *rest = (standardize(z, ranks) for z in to_compute_dtype((z_a, z_b, z_m, *more)))
            views = [x_a, x_b, *rest]
            partners = ranks.gather(x_b) if self.mix_global else x_b
            c = correlate([*views, residual(x_a, partners, x_m, mix, permutation)], ranks, self.form, paired=len(views))
            terms = barlow_twins_terms(c, self.lambd)
            terms["mix"] = self.lambd_reg * self.lambd * 2 * c.others.mean()
            return named_terms(terms, x_a.dtype)

    def extra_repr(self) -> str:
        """The settings, for `print(model)`."""
        return f"lambd={self.lambd}, lambd_reg={self.lambd_reg}, form='{self.form}'"


def residual(x_a: Tensor, x_b: Tensor, x_m: Tensor, mix: Tensor | float, permutation: Tensor) -> Tensor:
    """R = Zm - a Za - (1 - a) Zb[p], [n, D]: how far the mixed view's embeddings are from the mix of the embeddings.

    Zb holds all rows that p may name: this rank's, or those of the global batch.
    """
    share = torch.as_tensor(mix, dtype=x_a.dtype, device=x_a.device)
    share = share.unsqueeze(1) if share.ndim else share
    return x_m - torch.lerp(x_b.index_select(0, permutation), x_a, share)


def _fault(z: Tensor, mix: Tensor | float, permutation: Tensor) -> str:
    rows = list(z.shape[:1])
    if list(permutation.shape) != rows or permutation.dtype != torch.int64:
        return f"The permutation must be int64 {rows}; received {permutation.dtype} {list(permutation.shape)}."
    if permutation.device != z.device:
        return f"The permutation must be on {z.device}, as the embeddings are; received {permutation.device}."
    if isinstance(mix, Tensor) and list(mix.shape) not in ([], rows):
        return f"The mix must be one number or {rows}; received {list(mix.shape)}."
    return ""
