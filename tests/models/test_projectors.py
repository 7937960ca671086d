"""The heads between encoder and objective."""

import pytest
import torch
from torch import Tensor, nn

from barlow.errors import InputError
from barlow.models import Prototypes, build_predictor, build_projector
from barlow.models.projectors import RadialBasis


def kinds(module: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in module.children()]


def test_without_norm_the_hidden_layers_have_biases_instead() -> None:
    plain = build_projector(10, (8, 4), norm=False)
    assert kinds(plain) == ["Linear", "ReLU", "Linear"]
    assert [layer.bias is not None for layer in plain if isinstance(layer, nn.Linear)] == [True, False]


def test_the_output_is_standardised_on_request_alone() -> None:
    h = torch.randn(64, 10)
    z = build_projector(10, (8, 4), last_norm=True)(h)
    torch.testing.assert_close(z.mean(0), torch.zeros(4), rtol=0, atol=1e-6)
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(4), rtol=1e-2, atol=0)
    assert kinds(build_projector(10, (8, 4)))[-1] == "Linear"


def test_radial_basis_functions_are_normalised_gaussians_of_the_distances_to_centres() -> None:
    layer, h = RadialBasis(5, 3).double(), torch.randn(7, 5, dtype=torch.float64)
    with torch.no_grad():
        layer.log_sharpness.add_(torch.tensor([0.0, 0.3, -0.2]))
    want = torch.zeros(7, 3, dtype=torch.float64)
    for n in range(7):
        answers = [
            torch.exp(-layer.log_sharpness[k].exp() * (h[n] - layer.centres[k]).square().sum()) for k in range(3)
        ]
        want[n] = 3 * torch.stack(answers).detach() / sum(answers).detach()  # type: ignore[union-attr]
    torch.testing.assert_close(layer(h), want)


def test_at_the_start_neither_one_centre_nor_all_of_them_answer() -> None:
    torch.manual_seed(0)
    for width in (32, 512):
        shares = RadialBasis(width, 256)(torch.randn(64, width)) / 256
        effective = (-(shares * shares.log()).sum(1)).exp().mean()
        assert 5 < effective < 200, effective


def test_distances_are_taken_in_float32_under_autocast() -> None:
    layer, h = RadialBasis(64, 16), torch.randn(8, 64).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        phi = layer(h)
    torch.testing.assert_close(phi, layer(h.float()), rtol=1e-6, atol=0)


def test_the_radial_projector_ends_in_a_linear_layer_of_the_asked_width() -> None:
    head = build_projector(10, (8, 6, 4), head="rbf")
    hidden = ["BatchNorm1d", "RadialBasis", "BatchNorm1d"]
    assert kinds(head) == [*hidden, *hidden, "Linear"]
    assert head(torch.randn(5, 10)).shape == (5, 4)


def test_prototypes_are_cosines() -> None:
    layer, z = Prototypes(6, 3).double(), torch.randn(4, 6, dtype=torch.float64)
    want = torch.cosine_similarity(z.unsqueeze(1), layer.weight.unsqueeze(0), dim=2)
    torch.testing.assert_close(layer(z), want)
    torch.testing.assert_close(layer(7 * z), want)


def test_a_predictor_keeps_the_width() -> None:
    def widths(module: nn.Module) -> list[tuple[int, int]]:
        return [(layer.in_features, layer.out_features) for layer in module.modules() if isinstance(layer, nn.Linear)]

    assert widths(build_predictor(6, 9)) == [(6, 9), (9, 6)]
    out: Tensor = build_predictor(6, 9)(torch.randn(4, 6))
    assert out.shape == (4, 6)


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(InputError, match="unknown head 'rfb'. Did you mean 'rbf'"):
        build_projector(10, (8, 4), head="rfb")
