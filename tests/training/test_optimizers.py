"""Optimizers against literal transcriptions of their definitions."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from barlow.errors import InputError
from barlow.training.optimizers import (
    LARS,
    OPTIMIZERS,
    Muon,
    build_optimizer,
    clip_gradients,
    load_optimizer_state,
    orthogonalise,
    parameter_groups,
    set_lr,
)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 16), nn.Linear(16, 4)
    )
    with torch.no_grad():
        net.get_parameter("5.weight").zero_()  # a weight of norm 0: the trust ratio must be 1
    return net


def gradients(net: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for index, p in enumerate(net.parameters()):
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype) * 10.0 ** (index % 3 - 1)
        if step % 5 == 0 and index == 4:
            p.grad.zero_()


def official_lars_step(
    params: list[nn.Parameter], momenta: dict[int, Tensor], lrs: tuple[float, float], wd: float
) -> None:
    """The update of the released Barlow Twins optimizer, one tensor at a time."""
    for k, p in enumerate(params):
        assert p.grad is not None
        d = p.grad
        if p.ndim > 1:
            d = d.add(p.data, alpha=wd)
            size, change = torch.norm(p.data), torch.norm(d)
            q = 0.001 * size / change if size > 0 and change > 0 else torch.ones(())
            d = d.mul(q)
        mu = momenta.setdefault(k, torch.zeros_like(p))
        mu.mul_(0.9).add_(d)
        p.data.add_(mu, alpha=-(lrs[0] if p.ndim > 1 else lrs[1]))


@pytest.mark.parametrize("weight_decay", [0.0, 1e-2])
def test_lars_equals_the_official_update_bit_for_bit_over_50_steps(weight_decay: float) -> None:
    ours, theirs = network(), network()
    optimizer = build_optimizer("lars", parameter_groups(ours), lr=0.2, lr_biases=0.0048, weight_decay=weight_decay)
    momenta: dict[int, Tensor] = {}
    for step in range(50):
        multiplier = (step + 1) / 50
        gradients(ours, step)
        gradients(theirs, step)
        set_lr(optimizer, multiplier)
        optimizer.step()
        rates = (0.2 * multiplier, 0.0048 * multiplier)
        official_lars_step(list(theirs.parameters()), momenta, rates, weight_decay)
    for name, p in ours.named_parameters():
        assert torch.equal(p, theirs.get_parameter(name)), name


def literal_muon_step(params: list[nn.Parameter], momenta: dict[int, Tensor], lr: float, wd: float) -> None:
    """Nesterov momentum 0.9 and five Newton-Schulz steps on each weight as a matrix, one tensor at a time."""
    for k, p in enumerate(params):
        if p.ndim == 1:
            continue
        assert p.grad is not None
        momenta[k] = 0.9 * momenta.get(k, torch.zeros_like(p)) + p.grad
        u = (p.grad + 0.9 * momenta[k]).reshape(p.shape[0], -1)
        m, n = u.shape
        x = u.T if m > n else u
        x = x / (x.square().sum().sqrt() + 1e-7)
        for _ in range(5):
            x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
        x = x.T if m > n else x
        p.data = p.data - lr * wd * p.data - lr * max(1, m / n) ** 0.5 * x.reshape(p.shape)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_muon_equals_its_literal_update_on_filters_and_matrices_and_adamw_elsewhere(weight_decay: float) -> None:
    ours, theirs = network().double(), network().double()
    optimizer = build_optimizer("muon", parameter_groups(ours), lr=0.02, lr_biases=0.002, weight_decay=weight_decay)
    adamw = torch.optim.AdamW([p for p in theirs.parameters() if p.ndim == 1], lr=0.002, weight_decay=0)
    momenta: dict[int, Tensor] = {}
    for step in range(20):
        multiplier = (step + 1) / 20
        gradients(ours, step)
        gradients(theirs, step)
        set_lr(optimizer, multiplier)
        adamw.param_groups[0]["lr"] = 0.002 * multiplier
        optimizer.step()
        adamw.step()
        literal_muon_step(list(theirs.parameters()), momenta, 0.02 * multiplier, weight_decay)
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p, theirs.get_parameter(name), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(8, 8), (16, 40), (64, 8)])
def test_orthogonalised_the_directions_stay_and_the_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    result = u.mT @ orthogonalise(matrix) @ vh.mT
    kept = s > s.max() / 50  # smaller ones have not arrived after five iterations
    assert ((result.diagonal()[kept] > 0.6) & (result.diagonal()[kept] < 1.3)).all()
    torch.testing.assert_close(result, torch.diag(result.diagonal()), rtol=0, atol=1e-9)


def test_the_rate_of_muon_does_not_depend_on_the_scale_of_the_gradient() -> None:
    weights = [nn.Parameter(torch.zeros(4, 6, dtype=torch.float64)) for _ in range(2)]
    gradient = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for weight, scale in zip(weights, (1.0, 1e6), strict=True):
        weight.grad = gradient * scale
        Muon([weight], lr=0.1).step()
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=0)


def test_lars_given_one_flat_list_still_spares_biases_and_norms() -> None:
    weight, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    weight.grad, bias.grad = torch.zeros(2, 2), torch.zeros(2)
    LARS([weight, bias], lr=1.0, weight_decay=0.5).step()
    # weight: d = 0.5, ratio = 0.001 * 2 / 1, so it moves by 0.001; the bias has no decay and stays.
    assert torch.allclose(weight, torch.full((2, 2), 0.999))
    assert torch.equal(bias, torch.ones(2))


def test_lars_leaves_parameters_without_gradient_alone() -> None:
    net = network()
    before = copy.deepcopy(net.state_dict())
    gradients(net, 1)
    net.get_parameter("4.weight").grad = None
    LARS(net.parameters(), lr=0.1).step()
    changed = [name for name, p in net.named_parameters() if not torch.equal(p, before[name])]
    assert changed == ["0.weight", "0.bias", "1.weight", "1.bias", "4.bias", "5.weight", "5.bias"]


def reference(name: str, params: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """torch's plain loop: neither fused nor vectorised."""
    if name == "sgd":
        return torch.optim.SGD(params, lr=0.1, momentum=0.9, foreach=False)
    cls = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return cls(params, lr=0.1, foreach=False)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_fused_optimizers_equal_torchs_plain_loop_over_50_steps(name: str) -> None:
    ours, theirs = network().double(), network().double()
    optimizer = build_optimizer(name, parameter_groups(ours), lr=0.01, lr_biases=0.002, weight_decay=0.1)
    groups = parameter_groups(theirs)
    plain = reference(
        name,
        [
            {"params": groups["weights"], "lr": 0.01, "weight_decay": 0.1},
            {"params": groups["biases_and_norms"], "lr": 0.002, "weight_decay": 0.0},
        ],
    )
    for step in range(50):
        gradients(ours, step)
        gradients(theirs, step)
        optimizer.step()
        plain.step()
    for key, p in ours.named_parameters():
        torch.testing.assert_close(p, theirs.get_parameter(key), rtol=1e-9, atol=1e-12)


def test_groups_split_by_dimension_and_hold_every_trainable_parameter_once() -> None:
    net = network()
    net.get_parameter("0.bias").requires_grad_(False)
    groups = parameter_groups(net, net.get_submodule("4"))
    assert [tuple(p.shape) for p in groups["weights"]] == [(8, 3, 3, 3), (16, 288), (4, 16)]
    assert [tuple(p.shape) for p in groups["biases_and_norms"]] == [(8,), (8,), (16,), (4,)]


def test_the_schedule_scales_each_group_from_its_own_base() -> None:
    optimizer = build_optimizer("sgd", parameter_groups(network()), lr=0.2, lr_biases=0.0048)
    set_lr(optimizer, 0.5)
    set_lr(optimizer, 0.25)
    assert [(g["name"], g["lr"]) for g in optimizer.param_groups] == [
        ("weights", 0.05),
        ("biases_and_norms", 0.0012),
    ]


def test_clipping_scales_the_joint_norm_and_returns_the_one_before() -> None:
    net = network()
    gradients(net, 1)
    grads = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    norm = torch.cat([g.flatten() for g in grads]).norm()
    returned = clip_gradients(build_optimizer("sgd", parameter_groups(net), lr=0.1), 0.5)
    torch.testing.assert_close(returned, norm)
    for p, g in zip(net.parameters(), grads, strict=True):
        torch.testing.assert_close(p.grad, g * (0.5 / norm))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_steps_and_ten_after_loading_equal_twenty_bit_for_bit(name: str) -> None:
    whole = network()
    optimizer = build_optimizer(name, parameter_groups(whole), lr=0.1, weight_decay=0.01)
    halves: Any = None
    resumed: Any = None
    for step in range(20):
        if step == 10:
            halves = copy.deepcopy(whole)
            resumed = build_optimizer(name, parameter_groups(halves), lr=0.5)
            load_optimizer_state(resumed, copy.deepcopy(optimizer.state_dict()))
        gradients(whole, step)
        optimizer.step()
        if halves is not None:
            gradients(halves, step)
            resumed.step()
    for key, p in whole.named_parameters():
        assert torch.equal(p, halves.get_parameter(key)), key


def saved(name: str, net: nn.Module) -> dict[str, Any]:
    optimizer = build_optimizer(name, parameter_groups(net), lr=0.1)
    gradients(net, 1)
    optimizer.step()
    return optimizer.state_dict()


def test_state_of_another_model_or_optimizer_is_refused() -> None:
    optimizer = build_optimizer("lars", parameter_groups(network()), lr=0.1)
    with pytest.raises(InputError, match="other parameter groups"):
        load_optimizer_state(optimizer, saved("lars", nn.Linear(2, 2)))
    with pytest.raises(InputError, match="of another kind"):
        load_optimizer_state(optimizer, saved("adam", network()))
    wider = network()
    wider[4] = nn.Linear(8 * 36, 17)
    with pytest.raises(InputError, match=r"shape \(17, 288\) for a parameter of shape \(16, 288\)"):
        load_optimizer_state(optimizer, saved("lars", wider))


def test_unknown_name_and_frozen_model_are_refused_in_one_line() -> None:
    with pytest.raises(InputError, match=r"unknown optimizer 'lasr'\. Did you mean 'lars'\?"):
        build_optimizer("lasr", parameter_groups(network()), lr=0.1)
    with pytest.raises(InputError, match="nothing to train"):
        build_optimizer("lars", parameter_groups(network().requires_grad_(False)), lr=0.1)
