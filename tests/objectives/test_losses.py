"""The two losses against literal transcriptions of their papers' equations, in float64, and what must hold of them."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from barlow.errors import InputError
from barlow.objectives import BarlowTwinsLoss, MixedBarlowTwinsLoss, correlation
from barlow.objectives.correlation import Form, cheaper_form
from barlow.ranks import Ranks

FORMS: tuple[Form, ...] = ("gram", "correlation", "auto")
SHAPES = [(16, 40), (64, 20), (9, 9), (2, 5)]


def literal_standardize(z: Tensor) -> Tensor:
    return (z - z.mean(0)) / torch.sqrt(z.var(0, correction=0) + 1e-5)


def literal_barlow_twins(z_a: Tensor, z_b: Tensor, lambd: float) -> Tensor:
    c = literal_standardize(z_a).T @ literal_standardize(z_b) / len(z_a)
    dim = len(c)
    on = (1 - c.diagonal()).square().sum()
    off = c[~torch.eye(dim, dtype=torch.bool)].square().sum()
    return on + lambd * off


def literal_regulariser(z_a: Tensor, z_b: Tensor, z_m: Tensor, mix: Tensor | float, p: Tensor) -> Tensor:
    """Four matrices, as the paper writes them; a mix per sample weighs each sample's own product."""
    a, b, m = (literal_standardize(z) for z in (z_a, z_b, z_m))
    share = torch.as_tensor(mix, dtype=a.dtype).expand(len(a)).unsqueeze(1)
    c_ma, c_mb = m.T @ a / len(a), m.T @ b / len(a)
    c_ma_gt = (share * a).T @ a / len(a) + ((1 - share) * b[p]).T @ a / len(a)
    c_mb_gt = (share * a).T @ b / len(a) + ((1 - share) * b[p]).T @ b / len(a)
    return (c_ma - c_ma_gt).square().sum() + (c_mb - c_mb_gt).square().sum()


def literal_norms(a: Tensor, b: Tensor, m: Tensor, view: Tensor, share: float, p: Tensor) -> Tensor:
    """|| C^MV - C^MV_gt ||^2 for one view V, with both matrices built."""
    a, b, m, v = (literal_standardize(z) for z in (a, b, m, view))
    target = share * a.T @ v / len(a) + (1 - share) * b[p].T @ v / len(a)
    return (m.T @ v / len(a) - target).square().sum()


def embeddings(n: int, d: int, views: int = 2, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Views that share half of their variance, on unlike scales and offsets."""
    g = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, d, generator=g, dtype=torch.float64)
    own = [torch.randn(n, d, generator=g, dtype=torch.float64) for _ in range(views)]
    scale = torch.rand(d, generator=g, dtype=torch.float64) + 0.5
    return [((shared + x) * scale + 3 * k).to(dtype).requires_grad_() for k, x in enumerate(own)]


def gradients(loss: Tensor, views: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, views))


def assert_same(ours: Tensor, theirs: Tensor, views: list[Tensor], tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    for got, want in zip(gradients(ours, views), gradients(theirs, views), strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=[None, 600], ids=["one block", "many blocks"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param:
        monkeypatch.setattr(correlation, "BLOCK_BYTES", request.param)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_value_and_gradient_equal_the_papers_equation(form: Form, shape: tuple[int, int]) -> None:
    views = embeddings(*shape)
    assert_same(BarlowTwinsLoss(0.02, form)(*views), literal_barlow_twins(views[0], views[1], 0.02), views)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_mixed_value_and_gradient_equal_the_four_matrix_definition(
    form: Form, per_sample: bool, shape: tuple[int, int]
) -> None:
    views = embeddings(*shape, views=3)
    p = torch.randperm(shape[0], generator=torch.Generator().manual_seed(1))
    mix = torch.linspace(0, 1, shape[0], dtype=torch.float64) if per_sample else 0.3
    ours = MixedBarlowTwinsLoss(0.02, 3.0, form)(*views, mix, p)
    z_a, z_b, z_m = views
    theirs = literal_barlow_twins(z_a, z_b, 0.02) + 0.06 * literal_regulariser(z_a, z_b, z_m, mix, p)
    assert_same(ours, theirs, views)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("mix", "index"), [(1.0, 0), (0.0, 1)])
def test_the_mix_term_is_zero_when_the_mixed_view_is_one_of_the_views(form: Form, mix: float, index: int) -> None:
    z_a, z_b = embeddings(12, 20)
    p = torch.arange(12).flip(0)
    z_m = z_a if index == 0 else z_b[p]
    terms = MixedBarlowTwinsLoss(form=form).terms(z_a, z_b, z_m, mix, p)
    assert abs(terms["mix"].item()) < 1e-20
    plain = BarlowTwinsLoss(form=form).terms(z_a, z_b)
    torch.testing.assert_close(terms["loss"], plain["loss"])


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("form", ["gram", "correlation"])
def test_first_and_second_derivatives_pass_gradcheck(form: Form) -> None:
    views = embeddings(5, 6, views=3)
    loss, p = MixedBarlowTwinsLoss(0.1, form=form), torch.tensor([2, 0, 1, 4, 3])

    def scalar(z_a: Tensor, z_b: Tensor, z_m: Tensor) -> Tensor:
        return loss.forward(z_a, z_b, z_m, 0.4, p)

    assert torch.autograd.gradcheck(scalar, views)
    assert torch.autograd.gradgradcheck(scalar, views)


@pytest.mark.parametrize("form", ["gram", "correlation"])
def test_a_stopped_view_leaves_the_others_gradient_alone(form: Form) -> None:
    z_a, z_b = embeddings(8, 12)
    whole = gradients(BarlowTwinsLoss(form=form)(z_a, z_b), [z_a, z_b])
    (stopped,) = gradients(BarlowTwinsLoss(form=form)(z_a, z_b.detach()), [z_a])
    torch.testing.assert_close(stopped, whole[0])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 50), offset=st.floats(-50, 50), form=st.sampled_from(FORMS))
def test_the_loss_ignores_affine_changes_of_either_view(seed: int, scale: float, offset: float, form: Form) -> None:
    z_a, z_b = (z.detach() * 1e3 for z in embeddings(10, 14, seed=seed))  # far above the constant in the variance
    loss = BarlowTwinsLoss(form=form)
    torch.testing.assert_close(loss(z_a * scale + offset, z_b), loss(z_a, z_b), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(loss(z_a, z_b * scale + offset), loss(z_a, z_b), rtol=1e-6, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), form=st.sampled_from(FORMS))
def test_order_of_samples_of_features_and_of_views_does_not_matter(seed: int, form: Form) -> None:
    z_a, z_b = embeddings(10, 14, seed=seed)
    loss, g = BarlowTwinsLoss(form=form), torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(10, generator=g), torch.randperm(14, generator=g)
    for other in (loss(z_a[rows], z_b[rows]), loss(z_a[:, columns], z_b[:, columns]), loss(z_b, z_a)):
        torch.testing.assert_close(other, loss(z_a, z_b))


@pytest.mark.parametrize("form", FORMS)
def test_a_whitened_identical_pair_has_no_loss(form: Form) -> None:
    z = torch.randn(64, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    white = torch.linalg.qr(z - z.mean(0)).Q * 1e4  # orthogonal columns of mean zero; the constant is negligible
    assert BarlowTwinsLoss(form=form)(white, white.clone()).item() < 1e-12


@pytest.mark.parametrize(
    ("form", "shape", "tolerance"),
    [
        ("gram", (256, 64), 1e-3),
        ("gram", (256, 192), 1e-3),
        ("correlation", (256, 64), 1e-5),
        ("auto", (256, 64), 1e-5),
        ("auto", (64, 256), 1e-5),
    ],
)
def test_near_convergence_float32_keeps_the_redundancy_apart_from_the_diagonal(
    form: Form, shape: tuple[int, int], tolerance: float
) -> None:
    # At 256 x 64 the squared norm of C is 64 and its off-diagonal part 1.6e-3: a careless difference would lose it.
    views = nearly_whitened(shape, 0.01)
    exact = BarlowTwinsLoss(form="correlation").terms(*views)
    single = [view.detach().float().requires_grad_() for view in views]
    terms = BarlowTwinsLoss(form=form).terms(*single)
    assert terms["redundancy"].item() == pytest.approx(exact["redundancy"].item(), rel=tolerance)
    want = gradients(exact["loss"], views)
    error = relative_error(gradients(terms["loss"], single), want)
    assert error < 1e-4
    # What is lost is what any float32 gradient loses where it nearly vanishes.
    assert error < 2 * relative_error(gradients(literal_barlow_twins(single[0], single[1], 0.0051), single), want)


def nearly_whitened(shape: tuple[int, int], distance: float) -> list[Tensor]:
    """Two views in float64 of one matrix with orthogonal columns (rows, where they are fewer), with noise added."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(shape, dtype=torch.float64, generator=g)
    q = torch.linalg.qr(z - z.mean(0)).Q if shape[0] > shape[1] else torch.linalg.qr(z.T).Q.T
    q = q * shape[0] ** 0.5
    return [(q + distance * torch.randn(shape, dtype=torch.float64, generator=g)).requires_grad_() for _ in range(2)]


def relative_error(got: list[Tensor], want: list[Tensor]) -> float:
    return float((torch.cat(got).double() - torch.cat(want)).norm() / torch.cat(want).norm())


@pytest.mark.parametrize("shape", [(32, 256), (48, 64), (128, 32)])
def test_the_forms_agree_to_float32_rounding(shape: tuple[int, int]) -> None:
    views = embeddings(*shape, views=3, dtype=torch.float32)
    p = torch.arange(shape[0]).roll(1)
    gram, corr = (MixedBarlowTwinsLoss(form=form)(*views, 0.7, p) for form in ("gram", "correlation"))
    torch.testing.assert_close(gram, corr, rtol=1e-5, atol=0)
    for got, want in zip(gradients(gram, views), gradients(corr, views), strict=True):
        assert (got - want).norm() < 1e-5 * want.norm()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_embeddings_are_worked_on_in_float32_and_their_gradients_come_back_in_half(
    form: Form, dtype: torch.dtype
) -> None:
    views = embeddings(16, 24, dtype=dtype)
    single = [view.detach().float().requires_grad_() for view in views]
    loss, want = BarlowTwinsLoss(form=form)(*views), BarlowTwinsLoss(form=form)(*single)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, want)
    for got, exact in zip(gradients(loss, views), gradients(want, single), strict=True):
        assert got.dtype == dtype
        assert torch.equal(got, exact.to(dtype))


@pytest.mark.parametrize("form", FORMS)
def test_autocast_changes_neither_the_loss_nor_its_gradient(form: Form) -> None:
    views, p = embeddings(16, 24, views=3, dtype=torch.float32), torch.arange(16).flip(0)
    loss = MixedBarlowTwinsLoss(form=form)
    outside = loss(*views, 0.5, p)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(*views, 0.5, p)
        got = gradients(inside, views)
    assert torch.equal(inside, outside)
    for one, other in zip(got, gradients(outside, views), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("form", FORMS)
def test_a_feature_dead_in_both_views_costs_one_and_the_gradient_stays_finite(form: Form) -> None:
    alive, views = ([z.detach() for z in embeddings(16, 24)] for _ in range(2))
    for z in views:
        z[:, 0] = 7.0
        z.requires_grad_()
    loss = BarlowTwinsLoss(form=form)(*views)
    torch.testing.assert_close(loss, BarlowTwinsLoss(form=form)(*(z[:, 1:] for z in alive)) + 1, rtol=1e-9, atol=0)
    assert all(grad.isfinite().all() for grad in gradients(loss, views))


def test_the_terms_add_up_to_the_loss() -> None:
    z_a, z_b, z_m = embeddings(10, 12, views=3)
    terms = MixedBarlowTwinsLoss().terms(z_a, z_b, z_m, 0.2, torch.arange(10).roll(3))
    assert list(terms) == ["loss", "invariance", "redundancy", "mix"]
    torch.testing.assert_close(terms["loss"], terms["invariance"] + terms["redundancy"] + terms["mix"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("block_bytes", [2**28, 300])
def test_of_many_views_the_loss_is_the_mean_over_all_pairs(
    monkeypatch: pytest.MonkeyPatch, block_bytes: int, n: int, d: int, form: Form
) -> None:
    monkeypatch.setattr(correlation, "BLOCK_BYTES", block_bytes)
    views = embeddings(n, d, views=4)
    pairs = [literal_barlow_twins(a, b, 0.1) for a, b in itertools.combinations(views, 2)]
    assert_same(BarlowTwinsLoss(0.1, form)(*views), torch.stack(pairs).mean(), views)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_of_many_views_mixing_is_held_to_all_of_them(n: int, d: int, form: Form) -> None:
    a, b, m, *more = views = embeddings(n, d, views=5)
    p = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    pairs = [literal_barlow_twins(x, y, 0.1) for x, y in itertools.combinations([a, b, *more], 2)]
    # two norms per pair of views (one for each member), so the mean over pairs is twice the mean over views
    norms = [literal_norms(a, b, m, x, 0.3, p) for x in (a, b, *more)]
    literal = torch.stack(pairs).mean() + 4 * 0.1 * 2 * torch.stack(norms).mean()
    assert_same(MixedBarlowTwinsLoss(0.1, 4.0, form)(a, b, m, 0.3, p, *more), literal, views)


def test_auto_takes_the_form_with_fewer_operations_and_bytes() -> None:
    assert cheaper_form(Ranks((256,)), 8192) == "gram"
    assert cheaper_form(Ranks((4096,)), 512) == "correlation"
    assert cheaper_form(Ranks((1024,)), 1024) == "correlation"  # 3 D^2 N products against 4 N^2 D
    assert cheaper_form(Ranks((1024,)), 1024, views=3) == "gram"  # 9 against 6
    assert cheaper_form(Ranks((128,) * 8), 8192) == "gram"
    assert cheaper_form(Ranks((512,) * 8), 1024) == "correlation"


def test_auto_counts_the_matrices_that_are_too_large_to_keep_and_made_twice() -> None:
    assert cheaper_form(Ranks((5700,)), 8192) == "gram"  # two strips of 5700^2 still fit
    assert cheaper_form(Ranks((6000,)), 8192) == "correlation"  # 6 N^2 D products instead of 4
    assert cheaper_form(Ranks((6000,)), 8193) == "correlation"  # 4 N D^2 instead of 3
    assert cheaper_form(Ranks((6000,)), 9100) == "gram"
    assert cheaper_form(Ranks((5400,)), 8192, bytes_each=8) == "gram"  # both are made twice in float64
    assert cheaper_form(Ranks((5700,)), 5792, bytes_each=8) == "correlation"


@pytest.mark.parametrize("form", ["gram", "correlation"])
def test_function_transforms_agree_with_autograd(form: Form) -> None:
    z_a, z_b = embeddings(6, 7)
    loss = BarlowTwinsLoss(0.1, form)
    torch.testing.assert_close(torch.func.grad(loss)(z_a, z_b), gradients(loss(z_a, z_b), [z_a])[0])
    stacked = torch.func.vmap(torch.func.grad(loss))(torch.stack([z_a, z_b]), torch.stack([z_b, z_a]))
    torch.testing.assert_close(stacked[1], torch.func.grad(loss)(z_b, z_a))

    def literal(x: Tensor, y: Tensor) -> Tensor:
        return literal_barlow_twins(x, y, 0.1)

    def gradient_norm(f: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        def norm(x: Tensor) -> Tensor:
            return torch.as_tensor(torch.func.grad(f)(x, z_b.detach())).square().sum()

        return torch.as_tensor(torch.func.grad(norm)(z_a.detach()))

    torch.testing.assert_close(gradient_norm(loss), gradient_norm(literal), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("form", ["gram", "correlation"])
def test_compiled_in_one_graph_the_loss_and_gradient_are_the_same(form: Form) -> None:
    views, p = embeddings(16, 20, views=3, dtype=torch.float32), torch.arange(16).flip(0)
    loss = MixedBarlowTwinsLoss(form=form)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    value, want = compiled(*views, 0.5, p), loss(*views, 0.5, p)
    torch.testing.assert_close(value, want)
    for got, exact in zip(gradients(value, views), gradients(want, views), strict=True):
        torch.testing.assert_close(got, exact)


BAD_PAIRS = {
    "another width": ((4, 3), (4, 5)),
    "another length": ((4, 3), (5, 3)),
    "no matrix": ((4, 3, 2), (4, 3, 2)),
    "no feature": ((4, 0), (4, 0)),
    "one sample": ((1, 3), (1, 3)),
}


@pytest.mark.parametrize("shapes", BAD_PAIRS.values(), ids=BAD_PAIRS.keys())
def test_unusable_shapes_are_refused_with_what_was_received(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(InputError, match=r"received|Received"):
        BarlowTwinsLoss()(*(torch.zeros(shape) for shape in shapes))


def test_integer_embeddings_are_refused() -> None:
    with pytest.raises(InputError, match=r"floating point; received torch\.int64"):
        BarlowTwinsLoss()(torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4, 3))


def test_a_mix_or_permutation_of_another_length_is_refused() -> None:
    z = [torch.zeros(4, 3)] * 3
    with pytest.raises(InputError, match=r"permutation must be int64 \[4\]; received torch.int64 \[3\]"):
        MixedBarlowTwinsLoss()(*z, 0.5, torch.arange(3))
    with pytest.raises(InputError, match=r"mix must be one number or \[4\]; received \[3\]"):
        MixedBarlowTwinsLoss()(*z, torch.zeros(3), torch.arange(4))
    with pytest.raises(InputError, match=r"permutation must be on cpu, as the embeddings are; received meta"):
        MixedBarlowTwinsLoss()(*z, 0.5, torch.arange(4, device="meta"))
    with pytest.raises(InputError, match=r"must be matrices \[N, D\] of one shape; received \(\), \(\), \(\)"):
        MixedBarlowTwinsLoss()(*[torch.tensor(1.0)] * 3, 0.5, torch.arange(4))


def test_unusable_settings_are_refused() -> None:
    with pytest.raises(InputError, match=r"Unknown form 'gramm'\. Did you mean 'gram'\?"):
        BarlowTwinsLoss(form="gramm")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"lambd must be a finite number, 0 or more; received -1"):
        BarlowTwinsLoss(-1)
    with pytest.raises(InputError, match="lambd_reg"):
        MixedBarlowTwinsLoss(lambd_reg=float("nan"))
    with pytest.raises(InputError, match=r"Received 1 view"):
        BarlowTwinsLoss()(torch.zeros(4, 3))
