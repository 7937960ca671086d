"""Checkpoints that survive a kill at any moment, a full disk and a torn file.

A checkpoint is one file, `step-000001200.pt`: what `torch.save` writes, with its SHA-256 in the zip comment, so that
`torch.load(path, weights_only=True)` reads it as it is. `last.pt` is a hard link to the newest. A file appears under
its name only when all of its bytes are on the disk.
"""

import contextlib
import errno
import hashlib
import os
import random
import re
import shutil
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from torch import Tensor

from barlow.files import remove_leftovers, written

State: TypeAlias = dict[str, Any]  # tensors and plain values, nested in dicts, lists and tuples

_MARK = b"sha256:"
_COMMENT = len(_MARK) + 64  # bytes of the zip comment: the mark and the hexadecimal digest
_SHARE = 1 / 50  # of the time, at most, may go into checkpoints on a schedule in minutes
_SHORTEST_S = 10.0  # between two of these
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read: one line with the reason; earlier checkpoints are untouched."""


def save(state: State, folder: Path, step: int, keep: int) -> Path:
    """Write `state` as the checkpoint of `step`, point `last.pt` at it, and keep the newest `keep` files.

    One process may write to a folder. Returns the file's path; raises CheckpointError when it could not be written.
    """
    path = checkpoint_path(folder, step)
    save_file(state, path)
    with _explained(path):
        with written(folder / "last.pt") as temporary:
            _link(path, temporary)
        _prune(folder, step, keep)
    return path


def save_file(state: State, path: Path) -> Path:
    """Write one file atomically, with its checksum; `load` reads it. Raises CheckpointError when it cannot."""
    with _explained(path):
        remove_leftovers(path.parent, "*.pt")
        with written(path) as temporary:
            _write(state, temporary)
    return path


def load(path: Path) -> State:
    """Read one checkpoint to the CPU. Raises CheckpointError when the file is torn, truncated or altered."""
    if not _intact(path):
        raise CheckpointError(f"checkpoint {path} is damaged: its checksum does not match its content.")
    state: State = torch.load(path, map_location="cpu", weights_only=True)
    return state


def load_latest(folder: Path) -> State | None:
    """The newest intact checkpoint, or None where there is no file; every damaged one passed over is warned about.

    Raises CheckpointError when all are damaged and OSError when one cannot be read: a run that began anew instead
    would delete what a person may still rescue.
    """
    paths = _newest_first(folder)
    for path in paths[:-1]:
        try:
            return load(path)
        except CheckpointError as error:
            warnings.warn(f"{error} Falling back to the one before.", stacklevel=2)
    return load(paths[-1]) if paths else None


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:09d}.pt"


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint file, ascending."""
    found = (re.fullmatch(r"step-(\d{9,})\.pt", path.name) for path in folder.glob("step-*.pt"))
    return sorted(int(match[1]) for match in found if match)


def pause(took_s: float, longest_s: float) -> float:
    """Seconds until the next checkpoint when the last one took `took_s`: as few as cost little, at most `longest_s`."""
    return min(longest_s, max(_SHORTEST_S, took_s / _SHARE))


class CheckpointWriter:
    """Writes checkpoints in a background thread; training waits only for a copy of the state in memory.

    A failed write does not stop the run: the next `write` or `wait` raises its CheckpointError, once. The new write
    is under way all the same.

    took_s: seconds that the last checkpoint took, from the call to the file on the disk.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep
        self.took_s = 0.0
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None

    def write(self, state: State, step: int) -> None:
        """Copy `state` now, write it later. Waits for the write before it, so that at most one copy is held."""
        began = time.monotonic()
        self._join()
        copy, self._error, failed = snapshot(state), None, self._error
        # Not a daemon: an interpreter that ends finishes its last checkpoint first.
        self._thread = threading.Thread(target=self._save, args=(copy, step, began), name="checkpoint", daemon=False)
        self._thread.start()
        if failed:
            raise failed

    def wait(self) -> None:
        """Return once the last checkpoint is on the disk; raise CheckpointError if it is not."""
        self._join()
        failed, self._error = self._error, None
        if failed:
            raise failed

    def _save(self, state: State, step: int, began: float) -> None:
        try:
            save(state, self.folder, step, self.keep)
        except CheckpointError as error:
            self._error = error
        except Exception as error:  # a state that cannot be saved must not die unseen in a thread
            self._error = CheckpointError(f"the checkpoint of step {step} failed: {type(error).__name__}: {error}")
        self.took_s = time.monotonic() - began

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def snapshot(state: State) -> State:
    """A copy of `state` in CPU memory that later training steps cannot change; one wait for the device at most."""
    copy: State = _copied(state)
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()
    return copy


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _copied_tensor(value.detach())
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_copied(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if not isinstance(value, int | float | str | bytes | None) or isinstance(value, np.generic):
        raise TypeError(f"a checkpoint holds tensors and plain values only, not {type(value).__name__}: {value!r}")
    return value


def _copied_tensor(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cpu":
        return tensor.clone()
    pinned = tensor.device.type == "cuda"  # page-locked memory lets the copy run at the bus's speed
    return torch.empty_like(tensor, device="cpu", pin_memory=pinned).copy_(tensor, non_blocking=pinned)


class _HashedFile:
    """A file for `torch.save` that hashes what passes and keeps the first error for later.

    torch's C++ writer cannot unwind from a failing write (it ends the process), so the rest is swallowed instead.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        if self.error is None:
            self.digest.update(data)
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """torch.save asks for it; `_write` flushes."""


def _write(state: State, path: Path) -> None:
    with path.open("wb") as file:
        hashed = _HashedFile(file)
        torch.save(state, hashed)  # type: ignore[arg-type]  # it needs write and flush alone
        if hashed.error:
            raise hashed.error
        file.seek(-2, os.SEEK_END)  # the empty zip comment's length
        file.write(_COMMENT.to_bytes(2, "little") + _MARK + hashed.digest.hexdigest().encode())


def _intact(path: Path) -> bool:
    size = path.stat().st_size - _COMMENT - 2
    if size <= 0:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (block := file.read(min(size, 1 << 20))):
            digest.update(block)
            size -= len(block)
        digest.update(b"\0\0")  # the comment's length as torch.save wrote it
        return file.read() == _COMMENT.to_bytes(2, "little") + _MARK + digest.hexdigest().encode()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _prune(folder: Path, step: int, keep: int) -> None:
    """Keep `keep` checkpoints up to `step`. A later one is damaged or of an abandoned run: it was not resumed from."""
    steps = checkpoint_steps(folder)
    kept = [s for s in steps if s <= step][-max(1, keep) :]
    for s in set(steps) - set(kept):
        checkpoint_path(folder, s).unlink(missing_ok=True)


def _newest_first(folder: Path) -> list[Path]:
    """All step files, newest first, then `last.pt` where it is a file of its own."""
    paths = [checkpoint_path(folder, step) for step in reversed(checkpoint_steps(folder))]
    last = folder / "last.pt"
    if last.exists() and not any(last.samefile(path) for path in paths):
        paths.append(last)
    return paths


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns an error of the file system into one line."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(_reason(error, path)) from error


def _reason(error: OSError, path: Path) -> str:
    if error.errno in _NO_SPACE:
        return f"no space left for checkpoint {path}: the one before is kept; free some space. ({error.strerror})"
    return f"checkpoint {path} could not be written: {error.strerror or error}; the one before is kept."


def capture_rng(device: torch.device | None = None) -> State:
    """State of Python's, NumPy's and torch's generators, and of CUDA's on `device`, as plain values and tensors."""
    version, internal, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)
    numpy_state["state"] = {"key": numpy_state["state"]["key"].tolist(), "pos": numpy_state["state"]["pos"]}
    state: State = {
        "python": [version, list(internal), gauss],
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
    }
    if device is not None and device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def seed_generators(seed: int, step: int) -> None:
    """Give Python's, NumPy's and torch's generators, on all devices, the state that belongs to a step of a run."""
    whole = (seed << 32) + step
    random.seed(whole)
    np.random.seed([seed & 0xFFFFFFFF, step])
    torch.manual_seed(whole % 2**64)


@contextlib.contextmanager
def generators_given_back(device: torch.device) -> Iterator[None]:
    """The caller's generators are after this block as they were before it, whatever it draws."""
    state = capture_rng(device)
    try:
        yield
    finally:
        restore_rng(state, device)


def restore_rng(state: State, device: torch.device | None = None) -> None:
    """Put every generator back to where `capture_rng` found it."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    key = np.asarray(state["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state({**state["numpy"], "state": {"key": key, "pos": state["numpy"]["state"]["pos"]}})
    torch.set_rng_state(state["torch"])
    if device is not None and device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
