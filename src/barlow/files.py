"""Files as every part of the package writes them: atomically, as JSON, under a lock, in the cache.

This module is on the ground floor: it imports nothing of the package but the errors and the check of what is read.
"""

import contextlib
import errno
import json
import os
import platform
import secrets
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from filelock import FileLock, Timeout

from barlow.errors import InputError
from barlow.records import typed

T = TypeVar("T")

LOCK = ".lock"  # of a folder
MARK = "written by barlow, which replaces this file when it writes it again"
"""Every output that a person names carries this text near its beginning or its end."""
COMMENT = f"<!-- {MARK}; remove this line to keep your edits -->\n"  # in Markdown and HTML
_SEARCHED = 1 << 20  # bytes at each end of a file: a Parquet footer may be long
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
    _expect_file(path)
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


def check_outputs(outputs: Iterable[Path], *, inputs: Iterable[Any] = (), overwrite: bool = False) -> None:
    """Raise InputError where writing `outputs` would lose a file that no command wrote there before.

    With `overwrite`, only what the command reads is kept: files that are, or lie inside of, one of `inputs` (those
    that are no paths do not count).
    """
    read = [user_path(value).resolve() for value in inputs if isinstance(value, str | Path)]
    for path in outputs:
        _expect_file(path)
        place, ours = path.resolve(), is_output(path)
        if place in read or (path.is_file() and not ours and any(place.is_relative_to(of) for of in read)):
            raise InputError(f"{path} is a part of what this command reads; name another place with --out")
        if path.exists() and not ours and not overwrite:
            raise InputError(f"{path} exists and was not written by barlow; name another --out, or add --overwrite")


def is_output(path: Path) -> bool:
    """Whether the file carries the mark. For weights, which are copied as they are, the JSON beside them may do so."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        ends = file.read(_SEARCHED)
        file.seek(max(0, path.stat().st_size - _SEARCHED))
        ends += file.read()
    return MARK.encode() in ends or (path.suffix == ".safetensors" and is_output(path.with_suffix(".json")))


def mark_zip(file: Path | BinaryIO) -> None:
    """Put the mark into the comment of a zip archive, as `.npz`, `.pth` and `.pt2` files are."""
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = MARK.encode()


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
    return user_path(os.environ.get("BARLOW_CACHE") or "~/.cache/barlow")


def data_folder() -> Path:
    """BARLOW_DATA, or ~/.cache/barlow: where named data sets are looked for and downloaded to."""
    return user_path(os.environ.get("BARLOW_DATA") or "~/.cache/barlow")


def user_path(text: str | os.PathLike[str]) -> Path:
    """The path with `~` and `~name` expanded. Raises InputError for an unknown person, and for a zero byte in it."""
    if "\0" in os.fspath(text):
        raise InputError(f"{os.fspath(text)!r} holds a zero byte, which no path may")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"{text}: there is no such file or folder; this machine has no such user.") from error


def _expect_file(path: Path) -> None:
    """To rename a file over a device such as /dev/null would remove the device."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}; name a file to write")


def _sync_folder(folder: Path) -> None:
    """Make a renaming survive a power cut; not every system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
