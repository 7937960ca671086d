"""The parts of the page that show images: the map, neighbours, the typical, the unusual, doubles, sample views."""

import base64
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from barlow.report.charts import data_address
from barlow.report.gallery import Gallery, jpeg
from barlow.report.record import RunRecord

SHOWN_NEIGHBOURS = 12
MOST_SHEET_BYTES = 750_000  # 1 MB as a data address; Chromium shows nothing from about 2 MB on


def atlas_style(records: Sequence[RunRecord]) -> str:
    """CSS that gives every gallery its sheets of thumbnails; equal sheets are stored once.

    Browsers drop an address of some megabytes, silently, and much smaller ones in custom properties: so the
    thumbnails are spread over several sheets, each the background of a rule of its own.
    """
    users: dict[bytes, list[str]] = {}
    rules = []
    for place, record in enumerate(records):
        if record.gallery is not None and record.gallery.thumb:
            rules.append(f".g{place}{{--cols:{record.gallery.columns}}}")
            for number, content in enumerate(_sheets(record.gallery)):
                users.setdefault(content, []).append(f".g{place} .sheet{number}")
    for content, selectors in users.items():
        rules.append(f"{','.join(selectors)}{{background-image:url({data_address(content, 'image/jpeg')})}}")
    return "".join(rules)


def _sheet_rows(gallery: Gallery) -> int:
    """Rows of thumbnails on a sheet: half of MOST_SHEET_BYTES on average, since some rows hold more detail."""
    rows, size = math.ceil(len(gallery.keys) / gallery.columns), len(gallery.arrays["atlas"])
    return rows if size <= MOST_SHEET_BYTES else max(1, rows * MOST_SHEET_BYTES // (2 * size))


def _sheets(gallery: Gallery) -> list[bytes]:
    """The atlas as JPEGs of `_sheet_rows` rows."""
    atlas = gallery.arrays["atlas"].tobytes()
    if len(atlas) <= MOST_SHEET_BYTES:
        return [atlas]
    pixels, height = np.asarray(Image.open(io.BytesIO(atlas))), _sheet_rows(gallery) * gallery.thumb
    return [_small_jpeg(pixels[top : top + height]) for top in range(0, len(pixels), height)]


def _small_jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    """At most MOST_SHEET_BYTES, at the cost of quality where it must be: of noise, for example."""
    content = b""
    for quality in (85, 60, 30, 10):
        content = jpeg(pixels, quality)
        if len(content) <= MOST_SHEET_BYTES:
            break
    return content


def gallery_data(records: Sequence[RunRecord]) -> list[dict[str, Any] | None]:
    """What the page's script needs to draw the maps; one entry per run."""
    return [None if s.gallery is None else _numbers(s.gallery) for s in records]


def _numbers(gallery: Gallery) -> dict[str, Any]:
    arrays = gallery.arrays
    return {
        "n": len(gallery.keys),
        "coords": _base64(np.round(arrays["coords"] * 65535), np.uint16),
        "labels": _base64(arrays["labels"], np.int16),
        "neighbours": _base64(arrays["neighbours"], np.uint16),
        "cosines": _base64(np.round(arrays["cosines"] * 10000), np.int16),
        "k": arrays["neighbours"].shape[1],
        "keys": gallery.keys,
        "classes": gallery.classes,
        "thumb": gallery.thumb,
        "columns": gallery.columns,
        "rows": _sheet_rows(gallery) if gallery.thumb else 0,
    }


def _base64(values: Any, kind: type) -> str:
    little = np.asarray(values).astype(np.dtype(kind).newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode()


def pictured(records: Sequence[RunRecord]) -> Iterator[tuple[int, str, Gallery]]:
    """(place, name when there are several, gallery) of every run with thumbnails."""
    for place, record in enumerate(records):
        if record.gallery is not None and record.gallery.thumb:
            yield place, record.name if len(records) > 1 else "", record.gallery


def tile(gallery: Gallery, point: int) -> tuple[int, int, int]:
    """(sheet, column, row) of a thumbnail."""
    row, column = divmod(int(point), gallery.columns)
    sheet, row_on_sheet = divmod(row, _sheet_rows(gallery))
    return sheet, column, row_on_sheet


def agreement(gallery: Gallery) -> str | None:
    """How often the nearest neighbour has the same class, over all images of the map; None without labels."""
    labels, neighbours = gallery.arrays["labels"], gallery.arrays["neighbours"]
    if (labels < 0).any():
        return None
    share = float((labels[neighbours[:, 0]] == labels).mean())
    return f"Over all {len(labels):,} images, the nearest neighbour has the same class {100 * share:.0f}% of the time."


def views_address(gallery: Gallery) -> str:
    """The sample pairs of views, as the encoder got them."""
    return data_address(gallery.arrays["views"].tobytes(), "image/jpeg")


def title(gallery: Gallery, point: int) -> str:
    """Class and name of an image."""
    label = int(gallery.arrays["labels"][point])
    name = gallery.classes[label] + ": " if 0 <= label < len(gallery.classes) else ""
    return name + gallery.keys[point]
