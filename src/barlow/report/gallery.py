"""The pictures of a report: a map of the features with thumbnails, neighbours, the typical, the unusual, the doubles.

Two files in the run folder: `gallery.json` (names, choices, how it was made) and `gallery.npz` (arrays):

    coords      float32 [N, 2]  the map, the long side 0 to 1, the other from 0
    labels      int64   [N]     -1 without labels
    neighbours  int32   [N, K]  the K nearest other samples by cosine of the features, nearest first
    cosines     float32 [N, K]  their cosines
    features    float16 [N, F]  of unit length, for searching
    atlas       uint8   [bytes] one JPEG: thumbnails in rows of `columns`, `thumb` pixels each; absent for signals
    views       uint8   [bytes] one JPEG: column i holds view A over view B of one image; absent without a view maker
"""

import importlib
import importlib.util
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from barlow.data import Source
from barlow.errors import InputError, suggest
from barlow.evaluation import extract, nearest
from barlow.files import read_json, write_json, written
from barlow.models import Encoder, Preprocess
from barlow.records import typed
from barlow.run import Run
from barlow.views import ViewMaker

FORMAT = 1
ARRAYS, FACTS = "gallery.npz", "gallery.json"
ATLAS_PIXELS = 16_000_000  # a phone holds this picture in memory (64 MB) and every thumbnail finds room in it
ATLAS_SIDE = 4096  # pixels; browsers refuse larger pictures on some devices
MOST_POINTS = 65_535  # neighbours are numbered in 16 bits in the page
LAYOUTS = ("tsne", "umap")
NEIGHBOURS = 12
STRIPS = 8  # query strips, and typical, unusual and double images shown
VIEW_PAIRS = 8
DOUBLE_COSINE = 0.95  # below, two images are alike, not doubles
DOUBLE_PIXELS = 0.08  # root mean square difference of the thumbnails, on the scale 0 to 1

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Gallery:
    """What `gallery.json` and `gallery.npz` hold."""

    data: str
    """the source's name"""
    total: int
    """samples to choose from, of which N are here"""
    encoder: str
    """SHA-256 of the encoder's weights"""
    seed: int
    """of the choice of samples, the map and the queries"""
    layout: str
    """how the map was made, in words"""
    keys: tuple[str, ...]
    """names of the N samples"""
    classes: tuple[str, ...]
    """class names; empty without labels"""
    queries: tuple[int, ...]
    """random samples whose neighbours are shown"""
    typical: tuple[int, ...]
    """samples whose K-th neighbour is nearest"""
    unusual: tuple[int, ...]
    """samples whose K-th neighbour is farthest"""
    doubles: tuple[tuple[int, int], ...]
    """near-duplicate pairs, nearest first"""
    thumb: int
    """side of a thumbnail in pixels; 0 without pictures"""
    columns: int
    """thumbnails in a row of the atlas"""
    view_side: int
    """side of a sample view in pixels; 0 without views"""
    view_pairs: int
    """number of sample view pairs"""
    arrays: dict[str, npt.NDArray[Any]]
    """see the head of this module"""

    def __post_init__(self) -> None:
        n, arrays = len(self.keys), self.arrays
        shapes = {name: arrays[name].shape for name in ("coords", "labels", "neighbours", "cosines", "features")}
        k = shapes["neighbours"][-1:] or (0,)
        expected = {"coords": (n, 2), "labels": (n,), "neighbours": (n, *k), "cosines": (n, *k)}
        if {**shapes, **expected} != shapes or 0 in k or len(shapes["features"]) != 2 or len(arrays["features"]) != n:
            raise ValueError(f"arrays of the shapes {shapes} do not describe {n} samples")
        if any(arrays[name].dtype.kind != "i" for name in ("labels", "neighbours")):
            raise ValueError("labels and neighbours are not integers")
        named = [*self.queries, *self.typical, *self.unusual, *chain(*self.doubles), *arrays["neighbours"].flat]
        if not all(0 <= point < n for point in named):
            raise ValueError(f"a sample is named that is not among the {n}")
        if (self.thumb and not ("atlas" in arrays and self.columns > 0)) or (self.view_pairs and "views" not in arrays):
            raise ValueError("the pictures are missing")


def make_gallery(
    run: Run,
    source: Source,
    encoder: Encoder,
    *,
    maker: ViewMaker | None = None,
    indices: Sequence[int] | None = None,
    points: int = 4000,
    layout: str = "tsne",
    seed: int = 0,
    device: str | None = None,
) -> Gallery:
    """Compute and write the run's gallery from at most `points` samples of `source` (of `indices`, when given).

    `layout` of the map: tsne (scikit-learn), or umap where umap-learn is installed. With a view
    `maker` the report also shows sample view pairs. Raises InputError for fewer than three samples, more points
    than the format numbers, an unknown layout, or UMAP where it is not installed.
    """
    check_map(points, layout)
    sample_ids = _choose(np.arange(len(source)) if indices is None else np.asarray(indices), points, seed)
    features = extract(encoder, source, sample_ids.tolist(), device=device)
    if len(features.x) < 3:
        raise InputError(f"a gallery needs at least 3 readable samples, got {len(features.x)} from {source.name}")
    coords, described = _layout(features.x, layout, seed)
    neighbours, cosines = _other_neighbours(features.x, NEIGHBOURS)
    pictures = _pictures(source, features.ids) if source.kind == "image" else None
    arrays: dict[str, npt.NDArray[Any]] = {
        "coords": coords,
        "labels": np.full(len(coords), -1, np.int64) if features.y is None else features.y,
        "neighbours": neighbours.astype(np.int32),
        "cosines": cosines,
        "features": unit_rows(features.x).astype(np.float16),
    }
    columns = 0
    if pictures is not None:
        arrays["atlas"], columns = _atlas(pictures)
    views = None
    if maker is not None and encoder.preprocess is not None and source.kind == "image":
        views = _views(source, maker, features.ids, seed, encoder.preprocess)
    if views is not None:
        arrays["views"] = _stored(jpeg(_tile(list(views.flatten(0, 1)), views.shape[1])))
    by_density = np.argsort(cosines[:, -1], kind="stable")
    gallery = Gallery(
        data=source.name,
        total=len(source) if indices is None else len(indices),
        encoder=str(encoder.facts.get("sha256", "")),
        seed=seed,
        layout=described,
        keys=tuple(str(source.keys[int(i)]) for i in features.ids),
        classes=tuple(source.classes or ()),
        queries=tuple(int(i) for i in np.random.default_rng(seed).permutation(len(coords))[:STRIPS]),
        typical=tuple(int(i) for i in by_density[::-1][:STRIPS]),
        unusual=tuple(int(i) for i in by_density[:STRIPS]),
        doubles=_doubles(neighbours, cosines, pictures),
        thumb=0 if pictures is None else pictures.shape[-1],
        columns=columns,
        view_side=0 if views is None else views.shape[-1],
        view_pairs=0 if views is None else views.shape[1],
        arrays=arrays,
    )
    write_gallery(gallery, run.path)
    return gallery


def write_gallery(gallery: Gallery, folder: Path) -> None:
    """Write both files; the JSON last, so that it never speaks of arrays that are not there."""
    with written(folder / ARRAYS) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **gallery.arrays)
    described = {key: value for key, value in asdict(gallery).items() if key != "arrays"}
    write_json(folder / FACTS, {"format": FORMAT, **described})


def read_gallery(folder: Path) -> Gallery | None:
    """The gallery of a run folder, or None where none was made. Raises InputError when it is damaged."""
    if not (folder / FACTS).is_file():
        return None
    remedy = f"remove {FACTS} there and report again"
    try:
        with (folder / ARRAYS).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except Exception as error:  # a damaged archive fails in many ways
        raise InputError(f"{folder / ARRAYS} is damaged ({error}); {remedy}") from None
    described = read_json(folder / FACTS, dict[str, Any])
    if described.get("format") != FORMAT:
        raise InputError(f"the gallery in {folder} has format {described.get('format')}, not {FORMAT}; {remedy}")
    return typed({**described, "arrays": arrays}, Gallery, f"the gallery in {folder} ({remedy})")


def check_map(points: int, layout: str) -> None:
    """Raises InputError for a number of points or a layout that `make_gallery` cannot make."""
    if layout not in LAYOUTS:
        raise InputError(f"unknown layout '{layout}'. {suggest(layout, LAYOUTS)}")
    if layout == "umap" and importlib.util.find_spec("umap") is None:
        raise InputError("layout 'umap' needs umap-learn: pip install umap-learn, or use layout 'tsne'")
    if not 3 <= points <= MOST_POINTS:
        raise InputError(f"a gallery has 3 to {MOST_POINTS} points, got {points}")


def _choose(ids: Ints, points: int, seed: int) -> Ints:
    """A seeded sample without replacement, in the source's order."""
    if len(ids) <= points:
        return ids
    return np.sort(np.random.default_rng(seed).choice(ids, points, replace=False))


def _other_neighbours(x: Floats, k: int) -> tuple[Ints, Floats]:
    """The nearest other rows: a row may tie with its doubles, so it is taken out by index, not by rank."""
    cosines, indices = nearest(x, x, min(k + 1, len(x)))
    keep = indices != np.arange(len(x))[:, None]
    keep[keep.all(axis=1), -1] = False
    shape = (len(x), indices.shape[1] - 1)
    return indices[keep].reshape(shape), cosines[keep].reshape(shape)


def unit_rows(x: Floats) -> Floats:
    """Rows of length one; a row of zeros stays."""
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))


def _layout(x: Floats, layout: str, seed: int) -> tuple[Floats, str]:
    """Two coordinates per row, of unit-length features; the long side of the map is 0 to 1."""
    units = unit_rows(x)
    width = min(50, *units.shape)
    reduced = PCA(width, random_state=seed).fit_transform(units) if width < units.shape[1] else units
    coords, name = _umap(reduced, seed) if layout == "umap" else _tsne(reduced, seed)
    turned = PCA(2).fit_transform(coords)  # a map has no up: the long side lies, as pages and screens do
    low, high = turned.min(axis=0), turned.max(axis=0)
    return ((turned - low) / max(float((high - low).max()), 1e-12)).astype(np.float32), name


def _tsne(x: Floats, seed: int) -> tuple[Floats, str]:
    perplexity = min(30.0, (len(x) - 1) / 3)
    start = "pca" if min(x.shape) > 1 else "random"
    coords = TSNE(2, perplexity=perplexity, init=start, random_state=seed).fit_transform(x)
    return coords, f"t-SNE, perplexity {perplexity:g}, seed {seed}"


def _umap(x: Floats, seed: int) -> tuple[Floats, str]:
    umap = importlib.import_module("umap")
    near = min(15, len(x) - 1)
    coords = umap.UMAP(n_neighbors=near, random_state=seed, n_jobs=1).fit_transform(x)
    return coords, f"UMAP, {near} neighbours, seed {seed}"


def _pictures(source: Source, ids: Ints) -> Tensor:
    """Thumbnails uint8 `[N, 3, s, s]`, as large as the atlas has room for, never larger than the images."""
    largest = math.isqrt(ATLAS_PIXELS // len(ids)) // 8 * 8  # whole JPEG blocks, so that neighbours do not bleed
    native = min(source.read(int(ids[0])).shape[-2:])
    side = max(16, min(96, largest, math.ceil(native / 8) * 8))
    square = Preprocess(side, source.channels, (0.0,) * source.channels, (1.0,) * source.channels)
    return _displayable(torch.cat([square.fit(source.read(int(i))[None]) for i in ids]))


def _displayable(images: Tensor) -> Tensor:
    """uint8 `[N, 3, H, W]` of any image values: the first three channels, floats stretched over their 1-99 % range."""
    shown = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    if shown.dtype != torch.uint8:
        some = shown[:: math.ceil(len(shown) / 256)]  # from the first to the last: images may be sorted by class
        low, high = (float(edge) for edge in np.percentile(some.numpy(), (1, 99)))
        shown = ((shown - low) / (high - low if high > low else 1.0) * 255).round().clamp(0, 255).to(torch.uint8)
    return shown.contiguous()


def _atlas(pictures: Tensor) -> tuple[npt.NDArray[np.uint8], int]:
    side = pictures.shape[-1]
    columns = min(math.ceil(math.sqrt(len(pictures))), ATLAS_SIDE // side)
    return _stored(jpeg(_tile(list(pictures), columns))), columns


def _tile(pictures: Sequence[Tensor], columns: int) -> npt.NDArray[np.uint8]:
    """Pictures `[3, s, s]` in rows of `columns`: one `[rows * s, columns * s, 3]`, black where none is left."""
    side, rows = pictures[0].shape[-1], math.ceil(len(pictures) / columns)
    sheet = np.zeros((rows, side, columns, side, 3), np.uint8)
    for place, picture in enumerate(pictures):
        sheet[place // columns, :, place % columns] = picture.permute(1, 2, 0).numpy()
    return sheet.reshape(rows * side, columns * side, 3)


def jpeg(pixels: npt.NDArray[np.uint8], quality: int = 85) -> bytes:
    """A picture `[H, W, 3]` as JPEG with colours in full resolution, so that neighbours do not bleed."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


def _stored(picture: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(picture, np.uint8)


def _views(source: Source, maker: ViewMaker, ids: Ints, seed: int, shown: Preprocess) -> Tensor:
    """The first two views uint8 `[2, P, 3, s, s]` of a few random images, as the encoder gets them in epoch 0."""
    sample_ids = np.sort(np.random.default_rng(seed).permutation(ids)[:VIEW_PAIRS])
    views = [maker(source.read(int(i))[None], torch.tensor([int(i)]), 0)[:2] for i in sample_ids]
    pairs = torch.stack([torch.cat(pair) for pair in views], dim=1)
    shape = (1, 1, -1, 1, 1)
    mean, std = (torch.tensor(values).view(shape) for values in (shown.mean, shown.std))
    plain = pairs.float().cpu() * std + mean
    pixels = plain if source.dtype != torch.uint8 else plain.clamp(0, 1).mul(255).round().to(torch.uint8)
    return _displayable(pixels.flatten(0, 1)).view(2, len(sample_ids), 3, *pixels.shape[-2:])


def _doubles(neighbours: Ints, cosines: Floats, pictures: Tensor | None) -> tuple[tuple[int, int], ...]:
    """Pairs of mutual likeness: high cosine, and nearly the same pixels where there are pictures."""
    rows, places = np.nonzero(cosines >= DOUBLE_COSINE)
    pairs = {
        (min(r, c), max(r, c)): float(cosines[r, p])
        for r, p in zip(rows, places, strict=True)
        for c in [neighbours[r, p]]
    }
    ranked = sorted(pairs, key=lambda pair: (-pairs[pair], pair))
    alike = (pair for pair in ranked if pictures is None or _pixel_distance(pictures, pair) <= DOUBLE_PIXELS)
    return tuple((int(a), int(b)) for _, (a, b) in zip(range(STRIPS), alike, strict=False))


def _pixel_distance(pictures: Tensor, pair: tuple[int, int]) -> float:
    difference = pictures[pair[0]].float() - pictures[pair[1]].float()
    return float(difference.square().mean().sqrt()) / 255
