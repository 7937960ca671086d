"""The estimate of a step's memory: counted by hand, against a real step, and what is advised from it."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from barlow.data.memory import group_rooms
from barlow.models.sync_norm import synchronise_norms
from barlow.training import memory
from barlow.training.memory import (
    MemoryEstimate,
    NotEstimated,
    available_bytes,
    estimate_memory,
    is_out_of_memory,
    loss_bytes,
)

GIB = 2**30


class Checkpointed(nn.Sequential):
    """Layers whose activations are made again in the backward pass."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        for layer in self:
            out = torch.utils.checkpoint.checkpoint(layer, input, use_reentrant=False)
            assert isinstance(out, torch.Tensor)
            input = out
        return input


def parts() -> tuple[nn.Module, nn.Module]:
    return nn.Sequential(nn.Linear(10, 20, bias=False), nn.ReLU()), nn.Linear(20, 6)


def test_a_small_network_is_counted_exactly_as_by_hand() -> None:
    encoder, projector = parts()
    found = estimate_memory(encoder, projector, view_shapes=[(10,)] * 3, batch=7, optimizer="adamw", ema=True)
    weights = 4 * (10 * 20 + 20 * 6 + 6)
    assert found.weights == weights + 4 * 10 * 20  # and the average of the encoder
    assert found.gradients == weights
    assert found.optimizer == 2 * weights
    assert found.activations == 3 * 4 * 7 * (10 + 20)  # the view, and ReLU's output; the linear layer's is freed
    assert found.projector == 3 * 4 * 7 * 6
    assert found.loss == loss_bytes(3, 7, 6)
    assert (
        found.total
        == sum((found.weights, found.gradients, found.optimizer, found.activations, found.projector, found.loss))
        + found.workspace
    )


def test_frozen_weights_have_no_gradient_and_no_momentum() -> None:
    encoder, projector = parts()
    encoder.requires_grad_(False)
    found = estimate_memory(encoder, projector, view_shapes=[(10,)] * 2, batch=7, optimizer="lars")
    assert found.gradients == found.optimizer == 4 * (20 * 6 + 6)


@pytest.mark.parametrize(
    ("form", "n", "expected"), [("gram", 8, 8), ("correlation", 8, 64), ("auto", 8, 8), ("auto", 128, 64)]
)
def test_the_loss_is_counted_in_the_form_that_is_used(form: str, n: int, expected: int) -> None:
    matrices = (2 if expected == n else 1) * 2 * expected**2
    assert loss_bytes(2, n, 64, form) == 4 * (3 * 2 * n * 64 + matrices)


def test_activations_grow_with_the_batch_and_shrink_with_micro_batches_and_checkpointing() -> None:
    def layers(kind: type[nn.Sequential]) -> nn.Sequential:
        return kind(*(nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU()) for _ in range(6)))

    plain, projector = layers(nn.Sequential), nn.Linear(64, 8)
    shapes = [(64,)] * 2
    one = estimate_memory(plain, projector, view_shapes=shapes, batch=512)
    two = estimate_memory(plain, projector, view_shapes=shapes, batch=1024)
    micro = estimate_memory(plain, projector, view_shapes=shapes, batch=1024, micro_batch=256)
    less = estimate_memory(layers(Checkpointed), projector, view_shapes=shapes, batch=1024)
    assert two.activations == 2 * one.activations
    assert micro.activations * 8 == two.activations
    assert less.activations + less.workspace < 0.5 * (two.activations + two.workspace)


def test_bfloat16_activations_take_about_half() -> None:
    encoder = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(6)))
    projector = nn.Sequential(nn.Flatten(), nn.Linear(8 * 16 * 16, 8))
    full, half = (
        estimate_memory(encoder, projector, view_shapes=[(8, 16, 16)], batch=64, precision=precision)
        for precision in ("float32", "bfloat16")
    )
    assert 0.45 < half.activations / full.activations < 0.7


def test_estimating_changes_nothing() -> None:
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten())
    projector = nn.Sequential(nn.Linear(4 * 36, 8), nn.BatchNorm1d(8))
    before = {k: v.clone() for m in (encoder, projector) for k, v in m.state_dict(prefix=str(id(m))).items()}
    rng = torch.get_rng_state()
    encoder.eval()
    estimate_memory(encoder, projector, view_shapes=[(3, 8, 8)] * 2, batch=16)
    after = {k: v for m in (encoder, projector) for k, v in m.state_dict(prefix=str(id(m))).items()}
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert all(p.grad is None for p in encoder.parameters())
    assert torch.equal(torch.get_rng_state(), rng)
    assert (encoder.training, projector.training) == (False, True)


class Branching(nn.Linear):
    """Asks for a value on its way."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        out = super().forward(input)
        return out.relu() if out.abs().max() > 0 else out


class Numeric(nn.Linear):
    """Leaves torch on its way."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.from_numpy(input.numpy() * 2))


@pytest.mark.parametrize(
    ("kind", "reason"), [(Branching, "depends on the values"), (Numeric, "RuntimeError on tensors")]
)
def test_what_does_not_run_without_data_is_not_estimated_and_the_reason_is_said(
    kind: type[nn.Linear], reason: str
) -> None:
    with pytest.raises(NotEstimated, match=reason):
        estimate_memory(kind(10, 20), nn.Linear(20, 6), view_shapes=[(10,)] * 2, batch=7)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_norms_that_ask_other_ranks_are_counted_with_what_they_hold_and_without_the_ranks(device: str) -> None:
    """Outside a process group; the activation after the norm leaves what it leaves in timm's own."""

    def estimated(norm: nn.Module) -> MemoryEstimate:
        encoder = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten())
        return estimate_memory(encoder, nn.Linear(4 * 36, 8), view_shapes=[(3, 8, 8)] * 2, batch=16)

    plain = BatchNormAct2d(4, act_layer=nn.GELU, inplace=False)
    bare = nn.BatchNorm2d(4)
    assert estimated(synchronise_norms(copy.deepcopy(plain), device)) == estimated(plain)
    assert estimated(plain).activations > estimated(bare).activations


REAL = """
import ctypes, re, torch
from pathlib import Path
from barlow.models import build_encoder, build_projector
from barlow.training.memory import estimate_memory
torch.set_num_threads(1)
encoder, shape = build_encoder("resnet10-narrow", image_size=32), (3, 32, 32)
projector = build_projector(encoder.feature_dim, (256, 256))

def step(samples):
    views = [torch.rand(samples, *shape) for _ in range(2)]
    loss = sum(projector(encoder(v)).sum() for v in views)
    del views
    loss.backward()

def status(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

step(2)  # gradients and libraries are in place
ctypes.CDLL("libc.so.6").malloc_trim(0)
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
step(128)
found = estimate_memory(encoder, projector, view_shapes=[shape] * 2, batch=128)
print(status("VmHWM") - before, found.activations + found.projector + found.workspace)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux's /proc")
def test_the_estimate_is_within_a_tenth_of_the_peak_of_a_real_step() -> None:
    """Every tensor in a memory mapping of its own, so that the peak shows the tensors and not the allocator."""
    done = subprocess.run(
        [sys.executable, "-c", REAL],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    real, estimated = map(int, done.stdout.split())
    assert 0.9 * real < estimated < 1.1 * real


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a memory object"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("could not create a primitive descriptor for a convolution forward propagation"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_running_out_of_memory_is_recognised(error: BaseException, answer: bool) -> None:
    assert is_out_of_memory(error) is answer


def test_a_real_failed_allocation_is_recognised() -> None:
    with pytest.raises(RuntimeError, match="allocate") as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def group(folder: Path, version: int, limit: str, used: int, cache: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    (folder / names[0]).write_text(limit + "\n")
    (folder / names[1]).write_text(f"{used}\n")
    key = "inactive_file" if version == 2 else "total_inactive_file"
    (folder / "memory.stat").write_text(f"anon 5\n{key} {cache}\n")


def test_the_containers_limit_counts_without_its_page_cache(tmp_path: Path) -> None:
    group(tmp_path / "pod" / "box", 2, "1000", 700, 200)
    group(tmp_path / "pod", 2, "max", 900, 0)
    group(tmp_path / "memory" / "job", 1, "5000", 1000, 0)
    membership = tmp_path / "membership"
    membership.write_text("0::/pod/box\n4:memory:/job\n3:cpuset:/elsewhere\n2:cpu,cpuacct:/\n")
    assert sorted(group_rooms(tmp_path, membership)) == [500, 4000]


def test_the_cpu_has_what_the_tighter_of_machine_and_container_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_machine_bytes", lambda: 7 * GIB)
    for rooms, expected in (([], 7 * GIB), ([9 * GIB, 3 * GIB], 3 * GIB)):
        monkeypatch.setattr(memory, "group_rooms", lambda rooms=rooms: rooms)
        assert available_bytes("cpu") == expected
