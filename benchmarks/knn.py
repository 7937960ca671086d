"""k-NN at ImageNet's size: memory and time of 50,000 queries against a bank of 1,281,167 x 2,048, from a slice.

    python benchmarks/knn.py [--rows 32768]

Features are random: neither time nor memory of an exact search depends on their values. All 50,000 queries are
searched in a bank of `--rows` rows in float16 that lies on disk and is memory-mapped. Time grows linearly with the
rows; memory beside the bank does not grow with them, so its peak here is its peak there.
"""

import argparse
import platform
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from barlow.evaluation import nearest
from barlow.evaluation.knn import BANK_BLOCK

FULL_ROWS, WIDTH, QUERIES, K = 1_281_167, 2048, 50_000, 200
LIMIT_GIB = 8


def peak_gib() -> float:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def write_bank(path: Path, rows: int) -> np.ndarray:
    """A bank [rows, WIDTH] of random float16 rows in a file, block by block; opened for reading."""
    bank = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(rows, WIDTH))
    rng = np.random.default_rng(0)
    for start in range(0, rows, BANK_BLOCK):
        block = bank[start : start + BANK_BLOCK]
        block[:] = rng.standard_normal(block.shape, dtype=np.float32)
    bank.flush()
    mapped: np.ndarray = np.load(path, mmap_mode="r")
    return mapped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2 * BANK_BLOCK, help="rows of the slice of the bank")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "knn.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bank = write_bank(Path(folder) / "bank.npy", options.rows)
        queries = np.random.default_rng(1).standard_normal((QUERIES, WIDTH), dtype=np.float32)
        started = time.perf_counter()
        nearest(bank, queries, K)
        seconds = time.perf_counter() - started
    options.out.write_text(report(options.rows, seconds, peak_gib()))
    print(options.out.read_text())


def report(rows: int, seconds: float, peak: float) -> str:
    """The result as Markdown. The slice of the bank may be counted in the peak: then the true figure is smaller."""
    in_memory = peak + (FULL_ROWS - rows) * WIDTH * 2 / 2**30
    hours = seconds * FULL_ROWS / rows / 3600
    verdict = "fits" if in_memory <= LIMIT_GIB else "does not fit"
    return f"""# k-NN in bounded memory

`python benchmarks/knn.py --rows {rows}` on {platform.machine()}, {torch.get_num_threads()} threads, PyTorch
{torch.__version__.split("+")[0]}, one run, random features (seeds 0 and 1), exact cosine search, k = {K}.

| | measured | ImageNet's size (extrapolated) |
|---|---|---|
| bank | {rows:,} x {WIDTH:,}, float16, memory-mapped | {FULL_ROWS:,} x {WIDTH:,}, float16 |
| queries | {QUERIES:,} | {QUERIES:,} |
| time | {seconds:.0f} s | {hours:.1f} h (linear in the rows of the bank) |
| peak memory, bank on disk | {peak:.2f} GiB | {peak:.2f} GiB (independent of the rows) |
| peak memory, bank held in memory | | {in_memory:.2f} GiB: {verdict} in {LIMIT_GIB} GiB |

The peak includes the interpreter with PyTorch and the caller's queries.
"""


if __name__ == "__main__":
    main()
