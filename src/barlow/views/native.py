"""The inner loops of making views on a CPU, compiled from native.c by this machine's C compiler at first use.

A chain of torch calls walks over a batch some thirty times; the compiled loops keep one view in the nearest cache and
do everything to it. The build takes about a second, once, and is kept in BARLOW_CACHE. Without a compiler, or with
BARLOW_NATIVE=0, the same views come from torch, equal to float rounding (and the same bits in every run of either).
"""

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from barlow.files import cache_folder
from barlow.views.scratch import scratch

MOST_SIGMA = 60.0
"""Pixels: the widest blur whose taps native.c has room for."""
_MOST_TAPS = 512  # as in native.c
_LARGE = 2**22  # bytes: two of Linux's large pages
_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffinite-math-only")
_BUILD_S = 60  # a compiler that takes longer is not waited for


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled loops; None where they are turned off, or cannot be built or loaded."""
    if os.environ.get("BARLOW_NATIVE") == "0":
        return None
    try:
        return _typed(ctypes.CDLL(str(_built())))
    except (OSError, subprocess.SubprocessError):
        return None


def _built() -> Path:
    """The library for this source, compiler and processor. Raises OSError or SubprocessError."""
    source = Path(__file__).with_name("native.c")
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        raise FileNotFoundError("no C compiler")
    tuned = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    command = [compiler, *_FLAGS, tuned, "-shared", "-fPIC"]
    name = hashlib.sha256(repr((command, source.read_bytes(), _processor())).encode()).hexdigest()[:32]
    library = _private(cache_folder() / "native") / f"{name}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:  # ranks may build at the same time
            fresh = Path(folder) / "native.so"
            command += ["-o", str(fresh), str(source), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=_BUILD_S)
            fresh.replace(library)
    return library


def _processor() -> str:
    """What the code is tuned to: a cache folder may be shared by machines of different kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()} {platform.node()}"


def _private(folder: Path) -> Path:
    """The folder, made; refused (OSError) when someone else could put a library there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = folder.stat()
    if hasattr(os, "getuid") and (facts.st_uid != os.getuid() or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise PermissionError(f"{folder} is writable by others")
    return folder


def _typed(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    library.barlow_resample.argtypes = (*(number,) * 4, pointer, number, *(pointer,) * 5, number)
    library.barlow_planes.argtypes = (*(number,) * 4, *(pointer,) * 4)
    library.barlow_tone.argtypes = (*(number,) * 4, pointer, real, *(pointer,) * 10)
    library.barlow_advise.argtypes = (pointer, number)
    for name in ("advise", "planes", "resample", "tone"):
        getattr(library, f"barlow_{name}").restype = None
    return library


def resample(images: Tensor, which: Tensor, fields: Tensor, interpolation: str, out: Tensor) -> Tensor:
    """`geometry.resample` of images[which]: boxes int64 [n, 7] (no turns), out float32 [n, C, size, size]."""
    kernels = _loaded()
    n, channels, size = out.shape[:3]
    extent = -(-max(*images.shape[2:], size) // 16) * 16
    room = channels * extent * extent
    images = images if images.dtype in (torch.uint8, torch.float32) else images.float()
    strides = np.array(images.stride(), np.int64)
    which, fields = which.contiguous(), fields.contiguous()

    def part(start: int, stop: int) -> None:
        work = scratch("native", (3, room), out)
        kernels.barlow_resample(
            *(stop - start, channels, size, interpolation == "bicubic", images.data_ptr()),
            *(images.dtype == torch.uint8, strides.ctypes.data, which[start:].data_ptr(), fields[start:].data_ptr()),
            *(out[start:].data_ptr(), work.data_ptr(), room),
        )

    _in_threads(part, n)
    return out


def advise_large_pages(x: Tensor) -> None:
    """Ask the system to back new memory with large pages: touching 4 KiB pages for the first time takes longer than
    writing the views. Only Linux has it; it changes no value."""
    kernels = library()
    if kernels is not None and x.nbytes >= _LARGE:
        kernels.barlow_advise(x.data_ptr(), x.nbytes)


def planes(cuts: Tensor, out: Tensor) -> Tensor:
    """Float32 `out` [n, C, h, w], contiguous, filled with uint8 `cuts` of the same shape in any strides."""
    kernels = _loaded()
    n, channels, height, width = out.shape
    strides = np.array(cuts.stride(), np.int64)

    def part(start: int, stop: int) -> None:
        line = scratch("native", (width + 16,), out)
        kernels.barlow_planes(
            *(stop - start, channels, height, width, cuts[start:].data_ptr(), strides.ctypes.data),
            *(out[start:].data_ptr(), line.data_ptr()),
        )

    _in_threads(part, n)
    return out


def tone_(
    x: Tensor,
    top: float,
    luma: Tensor,
    orders: Tensor,
    order: Tensor,
    factors: Tensor,
    grayscale: Tensor,
    sigma: Tensor,
    solarize: Tensor,
    normalise: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """`colour.jitter_`, `grayscale_`, `gaussian_blur_`, `solarize_`, then (x - shift) * scale, on x [n, C, h, w].

    orders int8 [m, 4]: the ops (index in JITTER_OPS; -1: none) of each order; order int64 [n]: the row of each view
    (-1: none); factors float32 [n, 4]; grayscale and solarize bool [n]; sigma float32 [n]; shift and scale [C].
    """
    kernels = _loaded()
    n, channels, height, width = x.shape
    columns = [t.contiguous() for t in (order, factors, grayscale, sigma, solarize)]
    shift, scale = (0, 0) if normalise is None else (t.data_ptr() for t in normalise)

    def part(start: int, stop: int) -> None:
        work = scratch("native", ((height + 1) * (width + 16) + _MOST_TAPS,), x)
        kernels.barlow_tone(
            *(stop - start, channels, height, width, x[start:].data_ptr(), top, luma.data_ptr()),
            *(orders.data_ptr(), *(column[start:].data_ptr() for column in columns), shift, scale, work.data_ptr()),
        )

    _in_threads(part, n)
    return x


def _loaded() -> ctypes.CDLL:
    kernels = library()
    if kernels is None:
        raise RuntimeError("native.c was not built: ask library() first")
    return kernels


def _in_threads(part: Callable[[int, int], None], n: int) -> None:
    """part(start, stop) over 0 ... n in as many threads as torch uses; ctypes lets go of the interpreter's lock."""
    threads = min(torch.get_num_threads(), n)
    if threads <= 1:
        return part(0, n)
    edges = [n * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, edges[:-1], edges[1:]))
    return None
