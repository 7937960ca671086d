"""Files as every part of the package writes them: atomically, as JSON, under a lock, in the cache.

This module is on the ground floor: it imports nothing of the package but the errors and the check of what is read.
"""

import contextlib
import errno
import json
import os
import platform
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from filelock import FileLock, Timeout

from barlow.errors import InputError
from barlow.records import typed

T = TypeVar("T")

LOCK = ".lock"  # of a folder
DEEPEST = 12
"""Levels of lists and objects; no file of this package has as many, so that a deeper one is damaged."""


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; when the block ends, it takes the name `path` in one step.

    A reader sees the old file or the new one, also after a power cut. When the block fails, the temporary file is
    removed and `path` is as it was. The new file replaces a link rather than writing through it. Missing folders are
    made. Several processes may write to one path; the last one wins.

    Raises InputError when `path` is a folder or a device. An OSError such as a full disk names `path`.
    """
    if path.exists() and not path.is_file():  # to rename over /dev/null would remove the device
        raise InputError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}; name a file to write")
    # 40 characters: a name may have 255 bytes, and one character up to four.
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # or a power cut could leave an empty file under the name
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically, see `written`."""
    with written(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically in UTF-8; bytes of file names that are not text are escaped."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, see `written`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path, kind: type[T]) -> T:
    """The JSON value in a file, with all its fields, if it is a `kind`.

    Raises InputError when the file cannot be read or holds something else, with the place inside it.
    """
    return parsed(_text(path), kind, path)


def read_lines(path: Path, kind: type[T]) -> list[T]:
    """The lines of a file, each as `read_json` reads a file; what follows the last line break is a torn line."""
    lines = _text(path).split("\n")[:-1]
    return [parsed(line, kind, f"line {number} of {path}") for number, line in enumerate(lines, start=1)]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError:
        raise InputError(f"{path} is damaged: it is not text") from None


def parsed(text: str | bytes, kind: type[T], where: object) -> T:
    """A JSON text (NaN and infinity are read), with all its fields, if it is a `kind`; InputError as `typed`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{where} is damaged: not valid JSON") from None
    level = [value]
    for _ in range(DEEPEST):
        parts = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [child for part in parts for child in part]
    if level:
        raise InputError(f"{where} is damaged: nested more than {DEEPEST} levels deep")
    typed(value, kind, where)
    return cast(T, value)


def remove_leftovers(folder: Path, name: str) -> None:
    """Delete what killed processes left of `name` (a pattern) in `folder`; only the folder's one writer may call it."""
    for path in folder.glob(f".{name}.*.tmp"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(file: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file within the block; the system frees it when the process dies, however it dies.

    Forked workers do not hold it on. Raises InputError, naming the holder, when another process has it and `wait` is
    False. On a file system without locks the block runs without one.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        holder = file.read_text().strip() or "another process"
        raise InputError(f"{file.parent} is being written by {holder}; wait for it, or choose another --out") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
    else:
        file.write_text(f"process {os.getpid()} on {platform.node()}")
    try:
        yield
    finally:
        lock.release()


def cache_folder() -> Path:
    """BARLOW_CACHE, or ~/.cache/barlow: decoded pixels and shard indices; safe to delete."""
    return Path(os.environ.get("BARLOW_CACHE") or Path.home() / ".cache" / "barlow").expanduser()


def data_folder() -> Path:
    """BARLOW_DATA, or ~/.cache/barlow: where named data sets are looked for and downloaded to."""
    return Path(os.environ.get("BARLOW_DATA") or Path.home() / ".cache" / "barlow").expanduser()


def _sync_folder(folder: Path) -> None:
    """Make a renaming survive a power cut; not every system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
