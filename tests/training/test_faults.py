"""NaN and infinity are named by quantity and step, and the state before the failing step is what remains."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from barlow.training.checkpoint import CheckpointError
from barlow.training.faults import Fault, NonFiniteWatch, load_replay, nonfinite_gradients, save_replay
from barlow.training.optimizers import LARS, OPTIMIZERS, build_optimizer, clip_gradients, parameter_groups

CPU = torch.device("cpu")


def values(loss: float, norm: float) -> dict[str, Tensor]:
    return {"loss": torch.tensor(loss, dtype=torch.float64), "gradient_norm": torch.tensor(norm)}


@pytest.mark.parametrize(
    ("faulty", "quantities"),
    [
        (values(float("nan"), 1.0), ("loss",)),
        (values(1.0, float("inf")), ("gradient_norm",)),
        (values(-float("inf"), float("nan")), ("loss", "gradient_norm")),
    ],
)
def test_the_first_bad_step_and_its_quantities_are_named(
    faulty: dict[str, Tensor], quantities: tuple[str, ...]
) -> None:
    watch = NonFiniteWatch(CPU)
    assert watch.poll() is None
    for step, seen in enumerate([values(1.0, 2.0)] * 3 + [faulty] + [values(float("nan"), float("nan"))] * 2):
        watch.update(step, seen)
    fault = watch.poll()
    assert fault == Fault(3, quantities)
    assert str(fault) == f"{' and '.join(quantities)} not finite at step 3"
    assert watch.poll(wait=True) == fault


def test_finite_steps_are_no_fault_however_large() -> None:
    watch = NonFiniteWatch(CPU)
    for step in range(5):
        watch.update(step, values(3e38, 0.0))
    assert watch.poll() is None
    assert watch.tripped.item() == 0


def train(net: nn.Module, name: str, steps: int, bad_step: int | None) -> torch.optim.Optimizer:
    optimizer = build_optimizer(name, parameter_groups(net), lr=0.1, weight_decay=0.01)
    watch = NonFiniteWatch(CPU)
    watch.guard(optimizer)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 4, generator=generator)
        loss = net(x).square().mean() * (float("nan") if step == bad_step else 1.0)
        optimizer.zero_grad()
        loss.backward()
        watch.update(step, {"loss": loss, "gradient_norm": clip_gradients(optimizer)})
        optimizer.step()
    return optimizer


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_from_the_fault_on_weights_and_momenta_stay_those_the_failing_step_began_with(name: str) -> None:
    faulty, clean = network(), network()
    stopped = train(faulty, name, steps=9, bad_step=5)
    reference = train(clean, name, steps=5, bad_step=None)
    for a, b in zip(faulty.parameters(), clean.parameters(), strict=True):
        assert torch.equal(a, b)
        for key, value in reference.state[b].items():
            assert torch.equal(stopped.state[a][key], value), key


@pytest.mark.parametrize("tripped", [0.0, 1.0])
def test_lars_skips_on_the_device_as_it_does_on_the_host(tripped: float) -> None:
    """What runs on a GPU: the flag stays on the device. Here the CPU computes it, through the same function."""
    from barlow.training.optimizers import _move_unless

    net, plain = network(), network()
    for step in range(3):
        for p, q in zip(net.parameters(), plain.parameters(), strict=True):
            p.grad = torch.full_like(p, float("nan") if tripped else 0.1 * (step + 1))
            q.grad = p.grad.clone()
    weights = [p.detach() for p in net.parameters() if p.ndim <= 1]
    momenta = [torch.ones_like(w) for w in weights]
    _move_unless(
        torch.tensor(tripped) > 0,
        weights,
        momenta,
        [p.grad for p in net.parameters() if p.grad is not None and p.ndim <= 1],
        0.9,
        0.1,
    )
    biases = [p for p in plain.parameters() if p.ndim <= 1]
    optimizer = LARS(biases, lr=0.1)
    for b in biases:
        optimizer.state[b]["momentum_buffer"] = torch.ones_like(b)
    if not tripped:
        optimizer.step()
    for w, m, b in zip(weights, momenta, biases, strict=True):
        torch.testing.assert_close(w, b.detach())
        torch.testing.assert_close(m, optimizer.state[b]["momentum_buffer"])


def test_parameters_with_a_bad_gradient_are_named() -> None:
    net = network()
    net(torch.randn(3, 4)).sum().backward()
    assert nonfinite_gradients(net) == []
    grad = net.get_parameter("2.weight").grad
    assert grad is not None
    grad[0, 0] = float("inf")
    assert nonfinite_gradients(net) == ["2.weight"]


def test_a_replay_gives_back_the_latest_fault_its_batch_and_its_state(tmp_path: Path) -> None:
    assert load_replay(tmp_path) is None
    for step in (3, 12):
        batch = {"ids": torch.arange(4) + step, "epoch": 1, "images": torch.rand(4, 3, 2, 2)}
        path = save_replay(tmp_path, Fault(step, ("loss",)), batch=batch, state={"w": torch.full((2,), float(step))})
    found = load_replay(tmp_path)
    assert found is not None
    fault, batch_back, state = found
    assert fault == Fault(12, ("loss",))
    assert batch_back.keys() == batch.keys()
    assert torch.equal(batch_back["ids"], torch.arange(12, 16))
    assert torch.equal(state["w"], torch.tensor([12.0, 12.0]))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="damaged"):
        load_replay(tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")  # said once by torch
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_on_a_gpu_the_fault_is_noticed_without_a_sync_and_the_guard_holds(name: str) -> None:
    torch.manual_seed(0)
    net = nn.Linear(4, 4, device="cuda")
    optimizer = build_optimizer(name, parameter_groups(net), lr=0.1)
    watch = NonFiniteWatch(torch.device("cuda"))
    watch.guard(optimizer)
    kept: list[Tensor] = []
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(20):
            if step == 7:
                kept = [p.detach().clone() for p in net.parameters()]
            for p in net.parameters():
                p.grad = torch.full_like(p, float("nan") if step == 7 else 0.01)
            watch.update(step, {"gradient_norm": clip_gradients(optimizer)})
            optimizer.step()
            watch.poll()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watch.poll(wait=True) == Fault(7, ("gradient_norm",))
    for p, q in zip(net.parameters(), kept, strict=True):
        assert torch.equal(p, q)
