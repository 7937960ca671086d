"""Time and peak memory of the objectives beside lightly's loss and a literal D x D one, forward and backward.

    python benchmarks/objective.py                  # this machine's processor, about five minutes on two idle cores
    python benchmarks/objective.py --quick          # the two shapes that matter most
    python benchmarks/objective.py --device cuda    # a GPU, embeddings in float32 and bfloat16

The extra `bench` brings its column. Writes objective-<device>.json and .md to the folder of --out after every shape, so
that a run cut short leaves what it has measured.
"""

import argparse
import ctypes
import datetime
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from lightly.loss import BarlowTwinsLoss as LightlyLoss
from torch import Tensor

from barlow.objectives import BarlowTwinsLoss, MixedBarlowTwinsLoss

SAMPLES = (128, 256, 512, 1024, 4096)
WIDTHS = (512, 1024, 2048, 4096, 8192, 16_384, 65_536)
QUICK = ((256, 8192), (256, 16_384))
MOST_FLOPS = {"cpu": 1.7e12, "cuda": 5e14}
"""Floating-point operations of a pass above which a cell is left out, to keep the whole run in minutes."""
MOST_BYTES = {"cpu": 12e9, "cuda": 1e11}
"""Memory for square matrices above which a cell is left out."""
SECONDS_PER_CELL = 0.6
MOST_REPEATS = 9
LONG_PASS_S = 2.0

Loss = Callable[[list[Tensor]], Tensor]


@dataclass(frozen=True)
class Contender:
    """A loss of three views (two unless mixed), with what a pass costs at [n, d]."""

    name: str
    loss: Loss
    flops: Callable[[int, int], float]
    bytes: Callable[[int, int], float]


@dataclass(frozen=True)
class Cell:
    """One measurement: median seconds of a forward and backward pass, or why there is none."""

    contender: str
    n: int
    d: int
    dtype: str
    median_s: float | None
    seconds: list[float]
    peak_bytes: int | None
    skipped: str


def literal_loss(z: list[Tensor]) -> Tensor:
    """Equation 1 and 2 as written, with the D x D matrix."""
    a, b = ((x - x.mean(0)) / torch.sqrt(x.var(0, correction=0) + 1e-5) for x in (z[0].float(), z[1].float()))
    c = a.T @ b / len(a)
    on = (1 - c.diagonal()).square().sum()
    off = c.flatten()[:-1].view(len(c) - 1, len(c) + 1)[:, 1:].square().sum()
    return on + 0.0051 * off


def mixed_loss(z: list[Tensor]) -> Tensor:
    """Mixed Barlow Twins, with a permutation that is the reverse."""
    permutation = torch.arange(len(z[0]), device=z[0].device).flip(0)
    return MixedBarlowTwinsLoss().forward(z[0], z[1], z[2], 0.3, permutation)


def contenders() -> list[Contender]:
    """Ours, ours mixed, and the two that build the D x D matrix (six of them are alive at once)."""

    def square(n: int, d: int) -> float:
        return 6 * 4.0 * d * d

    def product(n: int, d: int) -> float:
        return 6.0 * n * d * d

    def either(small: int, large: int) -> Callable[[int, int], float]:
        return lambda n, d: 2.0 * n * d * min(small * n, large * d)

    def rows(n: int, d: int) -> float:
        return 12 * 4.0 * n * d

    ours, lightly = BarlowTwinsLoss(), LightlyLoss(lambda_param=0.0051)
    return [
        Contender("barlow", lambda z: ours.forward(z[0], z[1]), either(4, 3), rows),
        Contender("barlow mixed", mixed_loss, either(6, 9), rows),
        Contender("lightly", lambda z: lightly.forward(z[0], z[1]), product, square),
        Contender("literal", literal_loss, product, square),
    ]


def reset_peak(device: str) -> int:
    """Start a new peak; the bytes in use now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)  # else the pass reuses memory that the last one freed, and its peak is hidden
    Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def peak(device: str) -> int:
    """The most bytes in use since `reset_peak`."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def one_pass(loss: Loss, z: list[Tensor], device: str) -> float:
    """Seconds of one forward and backward pass."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    loss(z).backward()  # type: ignore[no-untyped-call]
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    for x in z:
        x.grad = None
    return seconds


def measure(contender: Contender, n: int, d: int, dtype: torch.dtype, device: str) -> Cell:
    """The median of 3 to 9 passes, after one that warms up and gives the peak memory; a long one is not repeated."""
    name = str(dtype).removeprefix("torch.")
    for reason, cost, most in (
        ("time", contender.flops(n, d), MOST_FLOPS[device]),
        ("memory", contender.bytes(n, d), MOST_BYTES[device]),
    ):
        if cost > most:
            return Cell(contender.name, n, d, name, None, [], None, reason)
    z = [torch.randn(n, d, device=device).to(dtype).requires_grad_() for _ in range(3)]
    before = reset_peak(device)
    first = one_pass(contender.loss, z, device)
    extra = peak(device) - before
    repeats = max(3, min(MOST_REPEATS, int(SECONDS_PER_CELL / first)))
    times = [first] if first > LONG_PASS_S else [one_pass(contender.loss, z, device) for _ in range(repeats)]
    return Cell(contender.name, n, d, name, statistics.median(times), times, extra, "")


def run(shapes: list[tuple[int, int]], dtypes: list[torch.dtype], device: str) -> Iterator[Cell]:
    """All cells, the contenders side by side within each shape, so that other load meets them alike."""
    for dtype in dtypes:
        for n, d in shapes:
            for contender in contenders():
                yield measure(contender, n, d, dtype, device)


def hardware(device: str) -> str:
    """The machine in one line."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.processor())
    memory = next(line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines())
    return f"{model}, {sum(line.startswith('processor') for line in info)} cores, {int(memory) / 2**20:.0f} GiB"


def by_shape(cells: list[Cell]) -> dict[tuple[str, int, int], dict[str, Cell]]:
    """The cells of each type and shape, by contender."""
    table: dict[tuple[str, int, int], dict[str, Cell]] = {}
    for cell in cells:
        table.setdefault((cell.dtype, cell.n, cell.d), {})[cell.contender] = cell
    return table


def ratio(row: dict[str, Cell], top: str, bottom: str) -> float | None:
    """How many times longer `top` takes than `bottom`."""
    first, second = row[top].median_s, row[bottom].median_s
    return None if first is None or second is None else first / second


def markdown(cells: list[Cell], facts: dict[str, str]) -> str:
    """A table of medians and peaks, one line per shape."""
    names = [contender.name for contender in contenders()]
    head = ["type", "N", "D", *(f"{name}, ms" for name in names), *(f"{name}, MiB" for name in names)]
    head += ["lightly / barlow", "literal / barlow", "mixed / barlow"]
    lines = ["# The objectives, forward and backward", "", *(f"- {key}: {value}" for key, value in facts.items()), ""]
    lines += ["Medians; MiB is the peak above what was in use before. A dash: left out, over the limit in time (1.7e12"]
    lines += ["operations on a processor, 5e14 on a GPU) or memory (12 GB, 100 GB for the square matrices).", ""]
    lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for (dtype, n, d), row in by_shape(cells).items():
        times = [_shown(row[name].median_s, 1e3) for name in names]
        peaks = [_shown(row[name].peak_bytes, 2**-20) for name in names]
        pairs = (("lightly", "barlow"), ("literal", "barlow"), ("barlow mixed", "barlow"))
        ratios = [_shown(ratio(row, *pair), 1.0, 2) for pair in pairs]
        lines.append(f"| {' | '.join([dtype, str(n), str(d), *times, *peaks, *ratios])} |")
    return "\n".join(lines) + "\n"


def _shown(value: float | None, scale: float, digits: int = 1) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"


def main() -> None:
    """Run, print and write as it goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="two shapes only")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.manual_seed(0)
    shapes = list(QUICK) if options.quick else [(n, d) for n in SAMPLES for d in WIDTHS]
    dtypes = [torch.float32, torch.bfloat16] if options.device == "cuda" else [torch.float32]
    stem = options.out / f"objective-{options.device}{'-quick' if options.quick else ''}"
    options.out.mkdir(parents=True, exist_ok=True)
    load, cells = os.getloadavg()[0], list[Cell]()
    for cell in run(shapes, dtypes, options.device):
        print(cell, flush=True)
        cells.append(cell)
        if len(cells) % len(contenders()) == 0:
            write(stem, cells, facts(options.device, load))


def facts(device: str, load: float) -> dict[str, str]:
    """What the figures depend on; `load` is the load average when the run began."""
    return {
        "command": shlex.join(["python", "benchmarks/objective.py", *sys.argv[1:]]),
        "hardware": hardware(device),
        "software": f"torch {torch.__version__}, Python {platform.python_version()}",
        "threads": str(torch.get_num_threads()),
        "seed": "0",
        "load average before and after": f"{load:.1f}, {os.getloadavg()[0]:.1f}",
        "date": datetime.date.today().isoformat(),
    }


def write(stem: Path, cells: list[Cell], known: dict[str, str]) -> None:
    """Both files, with the cells measured so far."""
    stem.with_suffix(".json").write_text(json.dumps({**known, "cells": [asdict(c) for c in cells]}, indent=1) + "\n")
    stem.with_suffix(".md").write_text(markdown(cells, known))


if __name__ == "__main__":
    main()
