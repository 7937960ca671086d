"""Peak memory of one forward and backward pass, in a process of its own."""

import os
import subprocess
import sys

import pytest

STEP = """
import resource, sys, torch
from barlow.objectives import BarlowTwinsLoss, MixedBarlowTwinsLoss, correlation
n, d, form, block, mixed = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5] == "mixed"
correlation.BLOCK_BYTES = block or correlation.BLOCK_BYTES
z = [torch.randn(n, d, requires_grad=True) for _ in range(3 if mixed else 2)]
extra = (0.5, torch.arange(n)) if mixed else ()
loss = MixedBarlowTwinsLoss(form=form) if mixed else BarlowTwinsLoss(form=form)
loss(*(x[:8, :8] for x in z), *((0.5, torch.arange(8)) if mixed else ())).backward()  # loads the kernels
for x in z:
    x.grad = None
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
value = loss(*z, *extra)
value.backward()
assert value.isfinite() and all(x.grad.isfinite().all() for x in z)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def extra_bytes(n: int, d: int, form: str = "auto", block: int = 0, kind: str = "plain") -> int:
    # glibc gives freed memory back at once above 32 MiB, which blocks are by default; small test blocks need telling.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", STEP, str(n), str(d), form, str(block), kind]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=280, env=environment)
    return 1024 * int(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "d"), [(256, 262_144), (65_536, 256)])
def test_extreme_shapes_run_forward_and_backward_under_four_gibibytes(n: int, d: int) -> None:
    assert extra_bytes(n, d) < 4 * 2**30


@pytest.mark.slow
@pytest.mark.parametrize(("n", "d", "form"), [(6144, 32, "gram"), (32, 6144, "correlation")])
def test_neither_square_matrix_has_to_be_whole_in_memory(n: int, d: int, form: str) -> None:
    one_matrix = 4 * 6144**2
    assert extra_bytes(n, d, form, block=2**22) < one_matrix / 2
    assert extra_bytes(n, d, form, block=2**22, kind="mixed") < one_matrix / 2
