"""Features to take away, and nearest images."""

import contextlib
import glob
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from barlow.data import Source, open_source
from barlow.data.decode import IMAGE_SUFFIXES
from barlow.data.files import from_files
from barlow.data.source import digest
from barlow.errors import InputError, suggest
from barlow.evaluation import Features, encoder_hash, extract, join, nearest
from barlow.evaluation.features import BATCH_SIZE, choose_device, identity
from barlow.files import MARK, check_outputs, mark_zip, remove_leftovers, user_path, written
from barlow.models import Encoder, load_encoder

if TYPE_CHECKING:
    from barlow.run import Run

SUFFIXES = (".npz", ".parquet")
PIECES = ".pieces"  # ends the name of the folder of an unfinished extraction
SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FeatureTable:
    """Features with the names of their samples: what `barlow embed` writes."""

    features: Features
    keys: tuple[str, ...]
    """one per row, as the source names its samples"""
    classes: tuple[str, ...]
    """class names in the order of the labels; empty without labels"""
    encoder: str
    """SHA-256 of the encoder's weights; empty when the encoder was not read from a file"""
    extraction: str = ""
    """the same text, the same features: encoder, preprocessing, samples and batches; empty when not known"""


@dataclass(frozen=True)
class Match:
    """One nearest image."""

    key: str
    """the sample's name in its source"""
    id: int
    """its index in the source"""
    similarity: float
    """cosine of the angle between the features, -1 to 1"""
    label: str | None
    """its class, where the source has labels"""


def embed(
    run: "Run | str | Path | Encoder",
    data: Any,
    *,
    out: str | Path | None = None,
    split: str | None = None,
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    workers: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    overwrite: bool = False,
) -> Features:
    """Features `[N, F]` of every sample of `data` under the run's encoder; also written to `out` (.parquet or .npz).

    `run` is a run, anything else `load_encoder` reads, or an encoder; `data` anything `open_source` reads, of which
    `split` is a part (by default train, where there are parts). Corrupt samples are left out: `Features.ids` says
    which are there. `device` is by default a GPU where there is one.

    Of several ranks each embeds its share and writes a file of its own beside `out` (see `shard`); `read_features`
    of `out` joins them. Ranks do not wait for each other. Work is kept in pieces beside the file: after a kill the
    same call goes on, and a file that holds these features already is not computed again.

    Raises InputError for an unknown suffix of `out`, and where `out` is what is read, or a file that barlow did not
    write and `overwrite` is not given.
    """
    file = None if out is None else shard(user_path(out), rank, world_size)
    if file is not None:
        stored = getattr(data, "path", data)  # of an array that was opened from a file
        check_outputs([file], inputs=[stored, getattr(run, "path", run)], overwrite=overwrite)
    encoder = run if isinstance(run, Encoder) else load_encoder(run)
    source = open_for(encoder, data, split=split)
    work = partial(
        extract,
        encoder,
        source,
        batch_size=batch_size,
        device=choose_device(device),
        workers=workers,
        rank=rank,
        world_size=world_size,
    )
    if file is None:
        return work()
    what = identity(encoder, source, np.arange(len(source)), batch_size, encoder_hash(encoder))
    return _to_file(file, digest(what, rank, world_size), work, partial(_named, source=source, encoder=encoder))


def _to_file(
    file: Path, extraction: str, work: Callable[..., Features], named: Callable[..., FeatureTable]
) -> Features:
    """The features in `file` where they are these, else `work` done in pieces that outlive a kill, and written."""
    if file.is_file() and _is_features(file):
        with contextlib.suppress(InputError):  # a damaged file is written again
            if (found := read_features(file)).extraction == extraction:
                return found.features
    features = work(cache=file.with_name(f".{file.name}.{extraction[:16]}{PIECES}"))
    write_features(named(features, extraction=extraction), file)
    remove_leftovers(file.parent, glob.escape(file.name))
    for leftover in file.parent.glob(f".{glob.escape(file.name)}.*{PIECES}"):
        shutil.rmtree(leftover)
    return features


def shard(out: Path, rank: int, world_size: int) -> Path:
    """The file of one rank: `features-00000-of-00002.parquet` for `features.parquet`; `out` itself for one alone.

    Raises InputError for an unknown suffix, and where `out` is the file of one process.
    """
    _check_suffix(out)
    if world_size == 1:
        return out
    if out.exists():
        raise InputError(f"{out} is there already, as the file of one process; remove it or choose another --out")
    return out.with_name(f"{out.stem}-{rank:05d}-of-{world_size:05d}{out.suffix}")


def embed_table(
    run: "Run | str | Path | Encoder", data: Any, *, batch_size: int = BATCH_SIZE, device: str | None = None
) -> FeatureTable:
    """`embed` with the names and classes of the samples."""
    encoder = run if isinstance(run, Encoder) else load_encoder(run)
    source = open_for(encoder, data)
    return _named(extract(encoder, source, batch_size=batch_size, device=choose_device(device)), source, encoder)


def open_for(encoder: Encoder, data: Any, *, split: str | None = None) -> Source:
    """The samples that `data` names, with the channels that the encoder takes; a source is one split already."""
    return data if isinstance(data, Source) else open_source(data, split=split, channels=_channels(encoder))


def _named(features: Features, source: Source, encoder: Encoder, extraction: str = "") -> FeatureTable:
    keys = tuple(source.keys[int(i)] for i in features.ids)
    return FeatureTable(features, keys, tuple(source.classes or ()), str(encoder.facts.get("sha256", "")), extraction)


def _channels(encoder: Encoder) -> int | None:
    return encoder.preprocess.channels if encoder.preprocess is not None else None


def _check_suffix(file: Path) -> None:
    if file.suffix not in SUFFIXES:
        raise InputError(
            f"features are written to .npz or .parquet, got '{file.name}'. {suggest(file.suffix, SUFFIXES)}"
        )


def write_features(table: FeatureTable, file: Path) -> None:
    """Write `table` to `.npz` (arrays x, y, ids, keys, classes, encoder) or `.parquet` (one row per sample)."""
    _check_suffix(file)
    with written(file) as temporary, temporary.open("wb+") as stream:
        (_write_npz if file.suffix == ".npz" else _write_parquet)(table, stream)


def _write_npz(table: FeatureTable, stream: BinaryIO) -> None:
    arrays: dict[str, npt.NDArray[Any]] = {
        "x": table.features.x,
        "ids": table.features.ids,
        "keys": np.array(table.keys, dtype=np.str_),
        "classes": np.array(table.classes, dtype=np.str_),
        "encoder": np.array(table.encoder),
        "extraction": np.array(table.extraction),
    }
    if table.features.y is not None:
        arrays["y"] = table.features.y
    np.savez(stream, allow_pickle=False, **arrays)
    mark_zip(stream)


def _write_parquet(table: FeatureTable, stream: BinaryIO) -> None:
    x = np.ascontiguousarray(table.features.x, dtype=np.float32)
    keys = [key.encode(errors="backslashreplace") for key in table.keys]  # file names need not be valid text
    columns = {
        "key": pa.array(keys, pa.binary()).cast(pa.string()),
        "id": pa.array(table.features.ids, pa.int64()),
        "features": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1]),
    }
    if table.features.y is not None:
        columns["label"] = pa.array(table.features.y, pa.int64())
    facts = {"classes": json.dumps(table.classes), "encoder": table.encoder, "extraction": table.extraction}
    pq.write_table(pa.table(columns).replace_schema_metadata({**facts, "note": MARK}), stream)


def read_features(file: str | Path) -> FeatureTable:
    """Read back what `write_features` wrote, or join the files of all ranks.

    Raises InputError for any other file, and where a rank's file is missing or of another extraction.
    """
    path = Path(file)
    _check_suffix(path)
    if not path.is_file():
        return _joined(path)
    features = Features.load(path)
    try:
        return (_npz_table if path.suffix == ".npz" else _parquet_table)(path, features)
    except KeyError:
        raise InputError(
            f"{path} has features without names; write it with `barlow embed RUN DATA --out {path}`"
        ) from None


def shards(out: Path) -> list[Path]:
    """The ranks' files that stand for `out`, in order of rank. Raises InputError where they are not complete."""
    found = sorted(path for path in out.parent.glob(f"*{out.suffix}") if _stem_of_shard(path) == out.stem)
    counts = {SHARD.search(path.stem)[2] for path in found}  # type: ignore[index]
    if found and (len(counts) > 1 or len(found) != int(counts.pop())):
        raise InputError(
            f"the files of the ranks for {out} are not complete: {', '.join(path.name for path in found)}; "
            "remove those of an earlier extraction, and run `barlow embed` again"
        )
    return found


def _stem_of_shard(path: Path) -> str:
    return SHARD.sub("", path.stem) if SHARD.search(path.stem) else ""


def _joined(out: Path) -> FeatureTable:
    parts = [read_features(path) for path in shards(out)]
    if not parts:
        raise InputError(f"no feature file at {out}; write one with `barlow embed RUN DATA --out {out}`")
    if len({(part.encoder, part.classes) for part in parts}) > 1:
        raise InputError(f"the files of the ranks for {out} come from different encoders or data; run embed again")
    keys = tuple(key for part in parts for key in part.keys)
    return FeatureTable(join([part.features for part in parts]), keys, parts[0].classes, parts[0].encoder)


def _npz_table(path: Path, features: Features) -> FeatureTable:
    with np.load(path, allow_pickle=False) as stored:
        keys, classes = (tuple(str(name) for name in stored[part]) for part in ("keys", "classes"))
        extraction = str(stored["extraction"]) if "extraction" in stored else ""
        return FeatureTable(features, keys, classes, str(stored["encoder"]), extraction)


def _parquet_table(path: Path, features: Features) -> FeatureTable:
    names = pq.read_table(path, columns=["key"])
    facts = names.schema.metadata or {}
    classes = tuple(json.loads(facts[b"classes"]))
    encoder, extraction = (facts.get(name, b"").decode() for name in (b"encoder", b"extraction"))
    return FeatureTable(features, tuple(names["key"].to_pylist()), classes, encoder, extraction)


def search(
    run: "Run | str | Path | Encoder", query: Any, data: Any, *, k: int = 10, device: str | None = None
) -> list[list[Match]]:
    """The `k` images of `data` nearest to each image of `query`, by cosine of their features.

    `query` is an image file or anything `open_source` reads; `data` a data source, or a feature file that
    `barlow embed` wrote with the same encoder (then nothing but the query is computed). One list per query,
    nearest first. Raises InputError when the feature file comes from other weights.
    """
    encoder = run if isinstance(run, Encoder) else load_encoder(run)
    bank = _bank(encoder, data, device)
    asked = embed_table(encoder, _query_source(query, encoder), device=device)
    cosines, rows = nearest(bank.features.x, asked.features.x, min(k, len(bank.keys)))
    return [_matches(bank, *found) for found in zip(rows, cosines, strict=True)]


def _bank(encoder: Encoder, data: Any, device: str | None) -> FeatureTable:
    file = user_path(data) if isinstance(data, str | Path) else None
    if file is None or file.suffix not in SUFFIXES or not _is_features(file):
        return embed_table(encoder, data, device=device)
    table = read_features(file)
    if table.encoder != encoder.facts.get("sha256"):
        raise InputError(f"{data} was written with another encoder; run `barlow embed` again for this one")
    return table


def _is_features(path: Path) -> bool:
    """Whether a file (or those of its ranks) holds features; both kinds of file may also be a data set of images."""
    if not path.is_file():
        return path.parent.is_dir() and bool(shards(path))
    try:
        if path.suffix == ".parquet":
            return "features" in pq.read_schema(path).names
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return "encoder" in stored
    except (OSError, EOFError, ValueError, BadZipFile, pa.ArrowInvalid):
        return False  # opening it as data tells what is wrong with it


def _query_source(query: Any, encoder: Encoder) -> Source:
    """What is asked for; unlike a data set it may be a single image file."""
    if isinstance(query, Source):
        return query
    path = user_path(query) if isinstance(query, str | Path) else None
    if path is not None and path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES - {".npy"}:
        return from_files(path.parent, [path.name], name=str(path), channels=_channels(encoder))
    return open_source(query, channels=_channels(encoder))


def _matches(bank: FeatureTable, rows: Ints, cosines: npt.NDArray[np.float32]) -> list[Match]:
    return [_match(bank, int(row), float(cosine)) for row, cosine in zip(rows, cosines, strict=True)]


def _match(bank: FeatureTable, row: int, similarity: float) -> Match:
    labels: Sequence[int] | Ints | None = bank.features.y
    label = None if labels is None else _class_name(bank.classes, int(labels[row]))
    return Match(bank.keys[row], int(bank.features.ids[row]), similarity, label)


def _class_name(classes: Sequence[str], label: int) -> str:
    return classes[label] if 0 <= label < len(classes) else str(label)
