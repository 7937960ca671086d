"""The exact algebra of cross-correlation losses, without the D x D matrix where that is the dearer way.

With standardised embeddings X_i [N, D], the squared norm of a correlation matrix is an inner product of Gram matrices,

    || X_i' X_j ||_F^2 = < X_i X_i', X_j X_j' >,

so a loss that needs only such norms and diagonals costs O(N^2 D) work and O(N D + N^2) memory instead of O(N D^2)
and O(N D + D^2). docs/objective.md has the derivation, the costs and the crossover.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

from barlow.errors import InputError, suggest
from barlow.ranks import Ranks

Form = Literal["auto", "gram", "correlation"]

EPS = 1e-5
"""Added to the variance inside the square root, as BatchNorm does; a dead feature stays finite."""

BLOCK_BYTES = 2**28
"""The most memory that the square matrices of one evaluation may take; larger ones are made in blocks, twice."""

MACS_PER_BYTE = 100
"""Multiply-adds worth one byte sent between ranks: gloo on CPU and NCCL on NVLink are both of this order."""


class Correlations(NamedTuple):
    """What the losses need to know about C_ij = X_i' X_j / N of views X_0, X_1, ..., for pairs i < j.

    The P pairs of leading views come first: they have a diagonal. Of the remaining pairs only norms are asked.
    """

    diagonals: Tensor
    """diag(C_ij) of the leading pairs, [P, D]."""
    off_diagonals: Tensor
    """Sums of the squared off-diagonal entries of the same C_ij, [P] (float64 where the device has it)."""
    others: Tensor
    """|| C_ij ||_F^2 of the remaining pairs, [pairs - P]."""


def check_form(form: str) -> Form:
    """`form` itself, or an InputError that names the ones there are."""
    if form not in get_args(Form):
        raise InputError(f"Unknown form '{form}'. {suggest(form, get_args(Form))}")
    return cast(Form, form)


def to_compute_dtype(views: Sequence[Tensor]) -> list[Tensor]:
    """float32, or float64 when any view is: half precision is never the type of the algebra."""
    double = any(view.dtype == torch.float64 for view in views)
    return [view.to(torch.float64 if double else torch.float32) for view in views]


def exact_matmul(device: torch.device) -> torch.autocast:
    """A region in which autocast leaves types alone."""
    return torch.autocast(device_type=device.type, enabled=False)


def standardize(z: Tensor, ranks: Ranks) -> Tensor:
    """Each feature of `z` [n, D] less its mean, over its biased standard deviation, both over the global batch."""
    if ranks.world == 1:
        return torch.nn.functional.batch_norm(z, None, None, training=True, eps=EPS)
    return cast(Tensor, _Standardize.apply(z, ranks)[0])


def centre(z: Tensor, ranks: Ranks) -> Tensor:
    """Each feature of `z` [n, D] less its mean over the global batch."""
    return z - ranks.sum(z.sum(dim=0)) / ranks.total


def correlate(views: Sequence[Tensor], ranks: Ranks, form: Form = "auto", paired: int | None = None) -> Correlations:
    """Diagonals and squared norms of the cross-correlations of two or more normalised views, each [n, D].

    paired: the number of leading views, at least 2; None: all of them.
    Exact in value and gradient in either form; see `Correlations` for the result.
    """
    if form == "auto":
        form = cheaper_form(ranks, views[0].shape[1], len(views), views[0].element_size())
    paired = len(views) if paired is None else paired
    return _by_gram(views, ranks, paired) if form == "gram" else _by_correlation(views, ranks, paired)


def cheaper_form(ranks: Ranks, dim: int, views: int = 2, bytes_each: int = 4) -> Form:
    """The form with less work per rank: multiply-adds of forward and backward, plus the bytes sent.

    A square matrix that is too large to be kept (of `bytes_each` an entry) is made, and sent, once more.
    """
    pairs = views * (views - 1) // 2
    rows, total, many = max(ranks.rows), ranks.total, ranks.world > 1
    again = _block_length(rows, total, views, bytes_each) < rows
    gram = (2 + again) * views * rows * total * dim + many * MACS_PER_BYTE * 4 * views * total * dim
    again = _block_length(dim, dim, pairs, bytes_each) < dim
    sent = many * MACS_PER_BYTE * 4 * 2 * (1 + again) * pairs * dim**2
    return "gram" if gram < (3 + again) * pairs * rows * dim**2 + sent else "correlation"


def _by_gram(views: Sequence[Tensor], ranks: Ranks, paired: int) -> Correlations:
    rows, total = views[0].shape[0], ranks.total
    block = _block_length(rows, total, len(views), views[0].element_size())
    gathered = [ranks.gather(view) for view in views] if ranks.world > 1 else []
    diagonals, norms, *_ = _GramTerms.apply(block, len(views), paired, *views, *gathered)
    diagonals, norms = ranks.sum(diagonals) / total, ranks.sum(norms) / total**2
    leading = len(diagonals)
    return Correlations(diagonals, norms[:leading] - _wide(diagonals).square().sum(dim=1), norms[leading:])


def _by_correlation(views: Sequence[Tensor], ranks: Ranks, paired: int) -> Correlations:
    dim, total = views[0].shape[1], ranks.total
    pairs = len(views) * (len(views) - 1) // 2
    block = _block_length(dim, dim, pairs, views[0].element_size())
    diagonals, norms, *_ = _CorrelationTerms.apply(block, ranks, paired, *views)
    leading, norms = len(diagonals), norms / total**2
    return Correlations(diagonals / total, norms[:leading], norms[leading:])


def _pairs(count: int, paired: int) -> list[tuple[int, int]]:
    """All pairs i < j of `count` views, those of the `paired` leading views first."""
    return sorted(itertools.combinations(range(count), 2), key=lambda pair: pair[1] >= paired)


def _block_length(rows: int, columns: int, matrices: int, bytes_each: int) -> int:
    return min(max(1, rows), max(1, BLOCK_BYTES // (matrices * columns * bytes_each)))


def _blocks(length: int, block: int) -> Iterator[slice]:
    return (slice(start, min(start + block, length)) for start in range(0, max(length, 1), block))


def _wide(x: Tensor) -> Tensor:
    """float64 for sums that are about to cancel; Apple's devices have none."""
    return x if x.device.type == "mps" else x.double()


def inner_wide(x: Tensor, y: Tensor) -> Tensor:
    """< x, y > of two matrices: rows in the type given, the sum of the rows in float64 where the device has it."""
    return _wide((x * y).sum(dim=1)).sum()


class _Standardize(torch.autograd.Function):
    """BatchNorm over all ranks. The scale is returned too, so that the backward pass is itself differentiable."""

    @staticmethod
    def forward(z: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
        centred = z - ranks.sum(z.sum(dim=0)) / ranks.total
        variance = ranks.sum(centred.square().sum(dim=0)) / ranks.total
        scale = (variance + EPS).rsqrt()
        return centred * scale, scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.ranks = inputs[1]
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_scale: Tensor) -> tuple[Tensor, None]:
        x, scale = ctx.saved_tensors
        ranks: Ranks = ctx.ranks
        shift = ranks.sum(grad.sum(dim=0)) / ranks.total
        stretch = ranks.sum((grad * x).sum(dim=0) + scale * grad_scale) / ranks.total
        return torch.addcmul(torch.addcmul(-shift * scale, grad, scale), x, -stretch * scale), None


class _GramTerms(torch.autograd.Function):
    """This rank's rows' share of diag(X_i' X_j) of the leading pairs and of < X_i X_i', X_j X_j' > of all pairs i < j.

    Takes the block length, the number of views, how many of them lead, this rank's rows of each view and, on many
    ranks, all rows of each. V views cost V Gram matrices: what the pairs add is of size N x N.
    The terms are symmetric in the samples, so the rows' whole gradient, through all ranks' shares, is computed from
    the rows' own strip of the Gram matrices, and none is sent. Strips that fit in one block are kept for the backward
    pass; others are made again there, block by block, as they are when a derivative of the gradient is wanted.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(block: int, count: int, paired: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        rows, whole = tensors[:count], tensors[-count:]
        diagonals = torch.stack([(rows[i] * rows[j]).sum(dim=0) for i, j in _pairs(paired, paired)])
        norms, strips = [], []
        for part in _blocks(len(rows[0]), block):
            strips = _strips(rows, whole, part)
            norms.append(torch.stack([inner_wide(strips[i], strips[j]) for i, j in _pairs(count, paired)]))
        kept = strips if block >= len(rows[0]) else []
        return (diagonals, torch.stack(norms).sum(dim=0), *kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.block, ctx.count, ctx.paired, *tensors = inputs
        ctx.save_for_backward(*tensors, *output[2:])
        ctx.mark_non_differentiable(*output[2:])
        ctx.views = len(tensors)

    @staticmethod
    def backward(ctx: Any, grad_diagonals: Tensor, grad_norms: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        tensors, kept = ctx.saved_tensors[: ctx.views], ctx.saved_tensors[ctx.views :]
        rows, whole = tensors[: ctx.count], tensors[-ctx.count :]
        with exact_matmul(rows[0].device):
            weights = _pair_weights(2 * grad_norms.to(rows[0].dtype), ctx.count, ctx.paired)
            grads: list[list[Tensor]] = [[] for _ in rows]
            for part in _blocks(len(rows[0]), ctx.block):
                # The kept strips are constants to autograd: right for a gradient, wrong for its derivative.
                strips = kept if kept and not torch.is_grad_enabled() else _strips(rows, whole, part)
                for i in range(ctx.count):
                    grads[i].append(_mixed(weights[i], strips) @ whole[i])
            joined = [part[0] if len(part) == 1 else torch.cat(part) for part in grads]
            for (i, j), grad in zip(_pairs(ctx.paired, ctx.paired), grad_diagonals, strict=True):
                joined[i] = torch.addcmul(joined[i], rows[j], grad)
                joined[j] = torch.addcmul(joined[j], rows[i], grad)
        return (None, None, None, *joined, *[None] * (ctx.views - ctx.count))


def _strips(rows: Sequence[Tensor], whole: Sequence[Tensor], part: slice) -> list[Tensor]:
    return [x[part] @ y.mT for x, y in zip(rows, whole, strict=True)]


def _pair_weights(grads: Tensor, count: int, paired: int) -> list[dict[int, Tensor]]:
    """For each view i, the weight of the Gram matrix of each other view j in its gradient."""
    weights: list[dict[int, Tensor]] = [{} for _ in range(count)]
    for (i, j), grad in zip(_pairs(count, paired), grads.unbind(), strict=True):
        weights[i][j] = weights[j][i] = grad
    return weights


def _mixed(weights: dict[int, Tensor], matrices: Sequence[Tensor]) -> Tensor:
    (first, weight), *rest = weights.items()
    total = matrices[first] * weight
    for j, weight in rest:
        total = torch.addcmul(total, matrices[j], weight)
    return total


class _CorrelationTerms(torch.autograd.Function):
    """diag(X_i' X_j) and || X_i' X_j ||_F^2 for all pairs i < j, over all ranks' rows.

    Only leading pairs have a diagonal, and their norm leaves it out. Takes the block length, the ranks, how many views
    lead, and this rank's rows of each view. Matrices that fit in one block are kept for
    the backward pass, which then sends D numbers and no matrix.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(block: int, ranks: Ranks, paired: int, *views: Tensor) -> tuple[Tensor, ...]:
        dim = views[0].shape[1]
        diagonals, norms, kept = [], [], []
        for i, j in _pairs(len(views), paired):
            diagonal, norm = [], []
            for part, product in _products(views[i], views[j], block, ranks):
                if j < paired:
                    diagonal.append(product.diagonal(offset=part.start).clone())
                    product = _with_diagonal(product, part, torch.zeros_like(diagonal[-1]))
                norm.append(inner_wide(product, product))
            diagonals += [torch.cat(diagonal)] if diagonal else []
            norms.append(torch.stack(norm).sum())
            kept.append(product)
        return (torch.stack(diagonals), torch.stack(norms), *(kept if block >= dim else []))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.block, ctx.ranks, ctx.paired, *views = inputs
        ctx.save_for_backward(*views, *output[2:])
        ctx.mark_non_differentiable(*output[2:])
        ctx.count = len(views)

    @staticmethod
    def backward(ctx: Any, grad_diagonals: Tensor, grad_norms: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        views, kept = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        if torch.is_grad_enabled():  # as above: the kept matrices are constants to autograd
            kept = ()
        with exact_matmul(views[0].device):
            weights = 2 * ctx.ranks.sum(grad_norms).to(views[0].dtype)
            diagonals = iter(ctx.ranks.sum(grad_diagonals))
            grads: list[Tensor | None] = [None] * ctx.count
            for pair, (i, j) in enumerate(_pairs(ctx.count, ctx.paired)):
                x, y = views[i], views[j]
                products = [(slice(0, None), kept[pair])] if kept else _products(x, y, ctx.block, ctx.ranks)
                diagonal = next(diagonals) if j < ctx.paired else None
                grad_x, grad_y = _pair_gradients(x, y, products, weights[pair], diagonal)
                grads[i], grads[j] = _plus(grads[i], grad_x), _plus(grads[j], grad_y)
        return (None, None, None, *grads)


def _products(x: Tensor, y: Tensor, block: int, ranks: Ranks) -> Iterator[tuple[slice, Tensor]]:
    """X'Y over all ranks' rows, a block of its rows at a time."""
    return ((part, ranks.sum(x[:, part].mT @ y)) for part in _blocks(x.shape[1], block))


def _pair_gradients(
    x: Tensor, y: Tensor, products: Iterable[tuple[slice, Tensor]], weight: Tensor, diagonal: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What X and Y get from X'Y, whose own gradient is `weight` times itself, except on a diagonal that has its own."""
    grad_x, grad_y = [], None
    for part, product in products:
        grad = product * weight
        if diagonal is not None:
            grad = _with_diagonal(grad, part, diagonal[part])
        grad_x.append(y @ grad.mT)
        grad_y = x[:, part] @ grad if grad_y is None else torch.addmm(grad_y, x[:, part], grad)
    assert grad_y is not None  # a matrix has at least one block
    return grad_x[0] if len(grad_x) == 1 else torch.cat(grad_x, dim=1), grad_y


def _with_diagonal(product: Tensor, part: slice, diagonal: Tensor) -> Tensor:
    """Rows `part` of a square matrix, with these entries on the square matrix's diagonal."""
    return product.diagonal_scatter(diagonal, offset=part.start)


def _plus(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total + term
