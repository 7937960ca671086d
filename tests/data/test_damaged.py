"""Damaged files of every kind of data end in one clear line or are read: no traceback, no hang, no memory blown up.

Each file is small and sound; a seed cuts it, flips bytes, or writes nonsense over its beginning or its end, where
headers, footers and indices lie.
"""

import gzip
import io
import json
import struct
import tarfile
import time
import tracemalloc
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from barlow.data import CorruptSample, open_source
from barlow.errors import InputError

SIDE, COUNT = 12, 4
PATIENCE_S = 20.0
MEMORY = 512 << 20  # bytes that damage may make Python allocate


def pixels(channels: int = 3, dtype: Any = np.uint8) -> npt.NDArray[Any]:
    rng = np.random.default_rng(0)
    return rng.integers(0, np.iinfo(dtype).max, (COUNT, SIDE, SIDE, channels), dtype=dtype)


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels()[0]).save(stream, kind)
    return stream.getvalue()


def npy(array: npt.NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(compressed: bool) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, x=pixels(), y=np.array(["a", "b"] * (COUNT // 2)))
    return stream.getvalue()


def tiff(stack: bool) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(
        stream, pixels(1, np.uint16)[..., 0] if stack else pixels()[0], photometric="minisblack" if stack else "rgb"
    )
    return stream.getvalue()


def idx() -> bytes:
    array = pixels(1)[..., 0]
    return struct.pack(">BBBB3I", 0, 0, 8, 3, *array.shape) + array.tobytes()


def tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for i in range(COUNT):
            for name, data in ((f"é{i}.png", encoded("PNG")), (f"é{i}.json", json.dumps({"label": i}).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def table(write: Callable[[pa.Table, Any], None]) -> bytes:
    stream = io.BytesIO()
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    noted = {"huggingface": json.dumps({"info": {"features": features}})}
    images = [{"bytes": encoded("PNG"), "path": "x.png"}] * COUNT
    write(pa.table({"image": images, "label": [0, 1] * (COUNT // 2)}).replace_schema_metadata(noted), stream)
    return stream.getvalue()


def arrow(open_writer: Any) -> Callable[[pa.Table, Any], None]:
    def write(rows: pa.Table, stream: Any) -> None:
        with open_writer(stream, rows.schema) as writer:
            writer.write_table(rows)

    return write


SOUND: dict[str, Callable[[], bytes]] = {
    **{f"images/a.{kind}": partial(encoded, kind) for kind in ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "PPM")},
    "images/a.jp2": partial(encoded, "JPEG2000"),
    "images/a.tif": lambda: tiff(stack=False),
    "images/a.npy": lambda: npy(pixels()[0]),
    "stack.tif": lambda: tiff(stack=True),
    "x.npy": lambda: npy(pixels()),
    "x.npz": lambda: npz(compressed=False),
    "packed.npz": lambda: npz(compressed=True),
    "x.idx": idx,
    "x.idx.gz": lambda: gzip.compress(idx()),
    "s.tar": tar,
    "t.parquet": lambda: table(pq.write_table),
    "stream.arrow": lambda: table(arrow(pa.ipc.new_stream)),
    "file.arrow": lambda: table(arrow(pa.ipc.new_file)),
}


def damaged(data: bytes, rng: np.random.Generator, way: int) -> bytes:
    changed = bytearray(data)
    if way == 0:
        return data[: int(rng.integers(0, len(data)))]
    if way == 1:  # anywhere
        places = rng.integers(0, len(data), 1 + int(rng.integers(0, 16)))
    elif way == 2:  # in the header
        places = rng.integers(0, min(len(data), 160), 3)
    else:  # in the footer
        places = len(data) - 1 - rng.integers(0, min(len(data), 160), 3)
    for place in places:
        changed[int(place)] = int(rng.choice([0, 255, 128, int(rng.integers(0, 256)), changed[int(place)] ^ 1]))
    return bytes(changed)


def read_all(path: Path) -> None:
    """Open and read every sample, as training does. Raises InputError; counts a corrupt sample as read."""
    source = open_source(path.parent if path.parent.name == "images" else path)
    for i in range(min(len(source), 50)):
        try:
            sample = source.read(i)
        except CorruptSample:
            continue
        assert sample.shape[0] == source.channels


@pytest.mark.slow
@pytest.mark.parametrize("name", SOUND)
def test_damage_of_any_kind_ends_in_one_line_or_is_read(tmp_path: Path, name: str) -> None:
    path, sound = tmp_path / name, SOUND[name]()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(sound)
    read_all(path)
    rng = np.random.default_rng(list(name.encode()))
    for k in range(24):
        path.write_bytes(damaged(sound, rng, k % 4))
        began = time.perf_counter()
        tracemalloc.start()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # decoders and DataWarning tell of damage
                read_all(path)
        except InputError as error:
            assert "\n" not in str(error)
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < MEMORY
        assert time.perf_counter() - began < PATIENCE_S


# --- headers that lie --------------------------------------------------------------------------------------------


def npy_of_shape(shape: str) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text = text.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(64)


LIES = {
    "negative.npy": npy_of_shape("(-2, 4, 4)"),
    "many.npy": npy_of_shape("(4, -4, -4)"),
    "huge.npy": npy_of_shape("(4, 1000000, 1000000)"),
    "beyond.npy": npy_of_shape("(9223372036854775807, 4, 4)"),
    "text.npy": npy_of_shape("('a', 4)"),
    "deep.npy": npy_of_shape("(" * 200),
    "axes.idx": b"\0\0\x08\xff" + b"\0\0\0\x02" * 255 + bytes(64),
    "huge.idx": b"\0\0\x0e\x03" + b"\xff" * 12 + bytes(64),
    "none.idx": b"\0\0\x08\0",
    "axes.idx.gz": gzip.compress(b"\0\0\x08\xff" + b"\0\0\0\x02" * 255),
    "huge.idx.gz": gzip.compress(b"\0\0\x0e\x04" + b"\xff" * 16 + bytes(64)),
    "bomb.idx.gz": gzip.compress(bytes(64 << 20), 9),
    "long.idx.gz": gzip.compress(struct.pack(">BBBB3I", 0, 0, 8, 3, 2, 2, 2) + bytes(64 << 20), 9),
    "empty.tar": b"",
    "empty.parquet": b"",
    "empty.arrow": b"",
    "empty.npz": b"",
    "empty.idx.gz": b"",
}


@pytest.mark.parametrize("name", LIES)
def test_a_header_that_lies_is_refused_before_anything_is_allocated(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(LIES[name])
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=name) as refused:
            open_source(tmp_path / name)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "\n" not in str(refused.value)
    assert peak < 8 << 20


def test_an_unknown_home_is_one_line() -> None:
    for data in ("~nosuchuser/x", "~nosuchuser/{0..3}.tar", Path("~nosuchuser/x.npz")):
        with pytest.raises(InputError, match="~nosuchuser.* no such user"):
            open_source(data)
