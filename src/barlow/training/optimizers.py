"""What turns gradients into steps: Muon, LARS as Barlow Twins used it, and torch's fused AdamW, Adam and SGD."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from barlow.devices import has_fast_bfloat16
from barlow.errors import InputError, suggest

OPTIMIZERS = ("muon", "lars", "adamw", "adam", "sgd")
FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")  # where torch has fused Adam, AdamW and SGD


class GuardedOptimizer(Optimizer):
    """An optimizer that leaves everything as it is where `found_inf`, torch's protocol, is not zero."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        skip: Tensor | None = getattr(self, "found_inf", None)  # torch's protocol: nonzero means leave all as it is
        if skip is not None and skip.device.type == "cpu":
            if skip.item():
                return loss
            skip = None
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            self._move_group(group, trained, skip)
        return loss

    def _move_group(self, group: dict[str, Any], trained: list[Tensor], skip: Tensor | None) -> None:
        """Move a group's parameters that have a gradient; `skip` is on a device that decides for itself, or None."""
        raise NotImplementedError


class LARS(GuardedOptimizer):
    """Layer-wise adaptive rate scaling (arXiv 1708.03888) with the semantics of Barlow Twins' released code.

    For a weight p with gradient g:  d = g + weight_decay * p;  d *= eta * ||p|| / ||d||  (1 where a norm is 0);
    mu = momentum * mu + d;  p -= lr * mu. Biases and norms (at most one dimension) skip decay and adaptation.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        eta: float = 0.001,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "eta": eta})

    def _move_group(self, group: dict[str, Any], trained: list[Tensor], skip: Tensor | None) -> None:
        weights = [p for p in trained if p.ndim > 1]
        others = [p for p in trained if p.ndim <= 1]
        self._move(weights, _adapted(weights, group["weight_decay"], group["eta"]), group, skip)
        self._move(others, [p.grad for p in others if p.grad is not None], group, skip)

    def _move(
        self, parameters: list[Tensor], directions: list[Tensor], group: dict[str, Any], skip: Tensor | None
    ) -> None:
        if not parameters:
            return
        momenta = [self._momentum(p) for p in parameters]
        if skip is not None:
            _move_unless(skip > 0, parameters, momenta, directions, group["momentum"], group["lr"])
            return
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, directions)
        torch._foreach_add_(parameters, momenta, alpha=-group["lr"])

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _move_unless(
    skip: Tensor, weights: list[Tensor], momenta: list[Tensor], directions: list[Tensor], momentum: float, lr: float
) -> None:
    """The same update, or none at all where the device says `skip`: the host does not need to know."""
    one, zero = torch.ones((), device=skip.device), torch.zeros((), device=skip.device)
    torch._foreach_mul_(momenta, torch.where(skip, one, momentum * one))
    torch._foreach_add_(momenta, [torch.where(skip, zero, d) for d in directions])
    torch._foreach_add_(weights, torch._foreach_mul(momenta, torch.where(skip, zero, -lr * one)))


def _adapted(weights: list[Tensor], weight_decay: float, eta: float) -> list[Tensor]:
    """Decayed gradients scaled to `eta` times the norm of their weight, one trust ratio per tensor, no host sync."""
    if not weights:
        return []
    gradients = [w.grad for w in weights if w.grad is not None]
    updates = list(torch._foreach_add(gradients, weights, alpha=weight_decay))
    weight_norms = torch.stack(torch._foreach_norm(weights))
    update_norms = torch.stack(torch._foreach_norm(updates))
    ratios = torch.where(
        (weight_norms > 0) & (update_norms > 0), eta * weight_norms / update_norms, torch.ones_like(weight_norms)
    )
    torch._foreach_mul_(updates, list(ratios.unbind()))
    return updates


class Muon(GuardedOptimizer):
    """Momentum orthogonalised by Newton-Schulz iterations for matrices and filters, AdamW for everything else.

    A weight p of two or more dimensions is seen as a matrix of its outputs against all its inputs, [m, n]; a filter
    bank [m, c, k, k] has n = c k k. With gradient g:  b = momentum * b + g;  u = g + momentum * b (Nesterov);
    p -= lr * (weight_decay * p + sqrt(max(1, m / n)) * orthogonal(u)). All singular values of the step are about 1, so
    that the rate does not depend on the width (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/).
    Biases and norms (at most one dimension) take AdamW's step with betas (.9, .999) and no decay.

    torch.optim.Muon (2.9 and later) refuses filters and has no part for biases.
    """

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float = 0.0, momentum: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    def _move_group(self, group: dict[str, Any], trained: list[Tensor], skip: Tensor | None) -> None:
        for weight in (p for p in trained if p.ndim > 1):
            self._orthogonal_step(weight, group, skip)
        self._adam_step([p for p in trained if p.ndim <= 1], group, skip)

    def _orthogonal_step(self, weight: Tensor, group: dict[str, Any], skip: Tensor | None) -> None:
        assert weight.grad is not None  # the caller picks weights that have one
        state, gradient = self.state[weight], weight.grad
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        moved = state["momentum_buffer"] * group["momentum"] + gradient
        update = orthogonalise((gradient + group["momentum"] * moved).flatten(1)).view_as(weight)
        rows, columns = weight.flatten(1).shape
        target = torch.lerp(weight, torch.zeros_like(weight), group["lr"] * group["weight_decay"])
        target.add_(update, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))
        if skip is not None:  # the device decides, so that the host does not wait for it
            moved = torch.where(skip > 0, state["momentum_buffer"], moved)
            target = torch.where(skip > 0, weight, target)
        state["momentum_buffer"].copy_(moved)
        weight.copy_(target)

    def _adam_step(self, members: list[Tensor], group: dict[str, Any], skip: Tensor | None) -> None:
        for p in members:
            if "step" not in self.state[p]:
                zeros = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
                self.state[p].update(step=torch.zeros((), device=p.device), **zeros)
        if members:
            states = [self.state[p] for p in members]
            adamw(
                members,
                [p.grad for p in members if p.grad is not None],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=members[0].device.type in FUSED_DEVICES,
                found_inf=skip,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=group["lr"],
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
            )


# Coefficients of an odd quintic that takes singular values from (0, 1] to about 1 (.7 to 1.2) in five iterations; its
# slope at 0 is as steep as it can be, which is why they do not come closer (Jordan et al., as above).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """U V' for a matrix [m, n] = U S V', up to singular values between about .7 and 1.2; zeros stay zeros.

    float32 matrices are worked on in bfloat16 where the device multiplies it natively: the iteration contracts errors.
    """
    fast = matrix.dtype == torch.float32 and has_fast_bfloat16(matrix.device)
    x = matrix.bfloat16() if fast else matrix
    tall = len(x) > x.shape[1]
    x = x.mT if tall else x
    x = x / (x.norm() + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrix.dtype)


def parameter_groups(*modules: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters as "weights" (two or more dimensions) and "biases_and_norms"; a shared one counts once."""
    unique = dict.fromkeys(p for module in modules for p in module.parameters() if p.requires_grad)
    return {
        "weights": [p for p in unique if p.ndim > 1],
        "biases_and_norms": [p for p in unique if p.ndim <= 1],
    }


def build_optimizer(
    name: str,
    groups: Mapping[str, Sequence[nn.Parameter]],
    *,
    lr: float,
    lr_biases: float | None = None,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
) -> Optimizer:
    """An optimizer over `parameter_groups`, decay on weights only; each group carries its name and `base_lr`.

    name: one of `OPTIMIZERS`. lr_biases: rate of the biases and norms, `lr` when None.
    momentum: of Muon, LARS and SGD. Raises InputError for an unknown name or when nothing is trainable.
    """
    if not any(groups.values()):
        raise InputError("nothing to train: no parameter of the given modules requires a gradient.")
    rates = {"weights": lr, "biases_and_norms": lr if lr_biases is None else lr_biases}
    decays = {"weights": weight_decay, "biases_and_norms": 0.0}
    params = [
        {
            "params": list(members),
            "name": group,
            "lr": rates[group],
            "base_lr": rates[group],
            "weight_decay": decays[group],
        }
        for group, members in groups.items()
        if members
    ]
    fused = all(p.device.type in FUSED_DEVICES for members in groups.values() for p in members)
    match name:
        case "muon":
            return Muon(params, lr=lr, momentum=momentum)
        case "lars":
            return LARS(params, lr=lr, momentum=momentum)
        case "adamw":
            return torch.optim.AdamW(params, lr=lr, fused=fused)
        case "adam":
            return torch.optim.Adam(params, lr=lr, fused=fused)
        case "sgd":
            return torch.optim.SGD(params, lr=lr, momentum=momentum, fused=fused)
        case _:
            raise InputError(f"unknown optimizer '{name}'. {suggest(name, OPTIMIZERS)}")


def set_lr(optimizer: Optimizer, multiplier: float) -> None:
    """Every group's rate becomes its `base_lr` times `multiplier`: the schedule's value at this step."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * multiplier


def clip_gradients(optimizer: Optimizer, max_norm: float = math.inf) -> Tensor:
    """Scale all gradients in place so that their joint L2 norm is at most `max_norm`; the norm before, on device."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    # torch takes all norms in one call on GPUs alone by itself; MPS cannot.
    foreach = None if any(p.device.type == "mps" for p in parameters) else True
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters], foreach=foreach)
    if math.isfinite(max_norm):  # else a pass over all gradients is saved
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load `optimizer.state_dict()` of the same optimizer over the same parameters, or raise InputError."""
    ours, theirs = optimizer.param_groups, state["param_groups"]
    if [(g["name"], len(g["params"])) for g in ours] != [(g.get("name"), len(g["params"])) for g in theirs]:
        raise InputError("the saved optimizer has other parameter groups: resume with the same model and optimizer.")
    if any(set(a) != set(b) for a, b in zip(ours, theirs, strict=True)):
        raise InputError("the saved optimizer is of another kind: resume with the optimizer that the run began with.")
    parameters = [p for group in ours for p in group["params"]]
    names = [index for group in theirs for index in group["params"]]
    for parameter, index in zip(parameters, names, strict=True):
        for key, value in state["state"].get(index, {}).items():
            if isinstance(value, Tensor) and value.ndim > 0 and value.shape != parameter.shape:
                raise InputError(
                    f"saved optimizer state '{key}' has shape {tuple(value.shape)} for a parameter of shape "
                    f"{tuple(parameter.shape)}: resume with the same model."
                )
    optimizer.load_state_dict(state)
