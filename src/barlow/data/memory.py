"""How much memory decoded data may take."""

import os
from pathlib import Path

MEMORY_SHARE = 0.25
"""Share of the available memory that one data set may fill, decoded; beyond it data is memory-mapped."""

UNPACK_RATIO = 4096
"""Bytes that one stored byte may stand for: a header that promises more is damaged, and nothing is allocated for it.
Deflate reaches 1,032, LZW 1,365."""


def available_memory() -> int:
    """Bytes this process may still take: of the machine, or of its container, divided by the machine's ranks."""
    return min([_machine_available(), *group_rooms()]) // local_ranks()


def _machine_available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux: the physical memory is the best known bound
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 4 << 30


def group_rooms(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Bytes that each control group around this process (a container, a scheduler's job) still allows; version 2 and
    version 1."""
    rooms: list[int] = []
    for line in membership.read_text().splitlines() if membership.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            base = root / controllers
            for folder in _upwards(base, path):
                room = _room(folder, version_2=not controllers)
                rooms += [] if room is None else [room]
    return rooms


def _upwards(base: Path, path: str) -> list[Path]:
    """The group's folder and its parents, up to the mount."""
    parts = [part for part in path.split("/") if part]
    return [base.joinpath(*parts[:k]) for k in range(len(parts), -1, -1)]


def _room(folder: Path, *, version_2: bool) -> int | None:
    limit_name, used_name, cache_name = (
        ("memory.max", "memory.current", "inactive_file")
        if version_2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    try:
        limit = (folder / limit_name).read_text().strip()
        used = int((folder / used_name).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return None  # no such group in this container's view
    if limit == "max":
        return None
    return max(0, int(limit) - used + int(stat.get(cache_name, 0)))  # the page cache gives way


def available_processors() -> int:
    """Processors this process may use, divided by the machine's ranks."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, count // local_ranks())


def local_ranks() -> int:
    """Processes of the run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun
