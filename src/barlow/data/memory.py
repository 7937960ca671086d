"""How much memory decoded data may take, and where caches live on disk."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

MEMORY_SHARE = 0.25
"""Share of the available memory that one data set may fill, decoded; beyond it data is memory-mapped."""


def available_memory() -> int:
    """Bytes this process may still take: of the machine, or of its container, divided by the machine's ranks."""
    machine = _machine_available()
    return min(machine, _container_available(machine)) // local_ranks()


def _machine_available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux: the physical memory is the best known bound
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 4 << 30


def _container_available(otherwise: int) -> int:
    """What the control group (version 2) leaves, its file cache counted as free; `otherwise` without a limit."""
    group = Path("/sys/fs/cgroup")
    try:
        used, limit = (int((group / name).read_text()) for name in ("memory.current", "memory.max"))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(limit - used + int(statistics["inactive_file"]), 0)
    except (OSError, ValueError, KeyError):  # no control group, or "max": no limit
        return otherwise


def cache_folder() -> Path:
    """BARLOW_CACHE, or ~/.cache/barlow: decoded pixels and shard indices; safe to delete."""
    return Path(os.environ.get("BARLOW_CACHE") or Path.home() / ".cache" / "barlow").expanduser()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a cache file, its folder made: of several ranks one builds it and the others find it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        if sys.platform != "win32":  # there, one process per machine is expected
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def data_folder() -> Path:
    """BARLOW_DATA, or ~/.cache/barlow: where named data sets are looked for and downloaded to."""
    return Path(os.environ.get("BARLOW_DATA") or Path.home() / ".cache" / "barlow").expanduser()


def available_processors() -> int:
    """Processors this process may use, divided by the machine's ranks."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, count // local_ranks())


def local_ranks() -> int:
    """Processes of the run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun
