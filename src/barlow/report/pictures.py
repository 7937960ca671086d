"""The parts of the page that show images: the map, neighbours, the typical, the unusual, doubles, sample views."""

import base64
import io
import math
from collections.abc import Iterator, Sequence
from shlex import quote
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

from barlow.report.charts import data_address
from barlow.report.evidence import absent
from barlow.report.gallery import Gallery, jpeg
from barlow.report.markup import join, tag
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


def _pictured(records: Sequence[RunRecord]) -> Iterator[tuple[int, str, Gallery]]:
    """(place, name when there are several, gallery) of every run with thumbnails."""
    for place, record in enumerate(records):
        if record.gallery is not None and record.gallery.thumb:
            yield place, record.name if len(records) > 1 else "", record.gallery


def maps(records: Sequence[RunRecord]) -> Markup:
    """The interactive map of each run."""
    parts = [_map(s, place, named=len(records) > 1) for place, s in enumerate(records)]
    return tag("div", parts, class_="maps")


def _map(record: RunRecord, place: int, named: bool) -> Markup:
    gallery = record.gallery
    if gallery is None:
        return absent(f"No pictures of {record.name}.", f"barlow report {quote(record.path)} --data DATA")
    shown = f"{len(gallery.keys):,}" + (f" of {gallery.total:,}" if gallery.total > len(gallery.keys) else "")
    how = (
        f"{shown} images of {gallery.data} by their features ({gallery.layout}). Near means alike to the encoder; "
        "distances between far groups mean little. "
    )
    use = "Point for a picture, click for its nearest neighbours; + and \u2212 zoom, arrows walk."
    canvas = tag(
        "canvas",
        tabindex="0",
        role="application",
        data_map=place,
        aria_label=f"Map of {shown} images. Arrow keys walk from image to image, plus and minus zoom, 0 shows all.",
    )
    buttons = [tag("button", sign, type="button", data_zoom=zoom, aria_label=name) for sign, zoom, name in _ZOOMS]
    return tag(
        "figure",
        tag(
            "figcaption",
            tag("b", f"Map of {record.name}. " if named else "Map. "),
            how,
            tag("span", use, class_="screen"),
        ),
        tag("div", canvas, tag("div", buttons, class_="zoom"), class_="stage"),
        tag("div", class_="classes"),
        tag("div", class_="chosen", aria_live="polite"),
        class_=f"map g{place}",
    )


_ZOOMS = (("+", "in", "Zoom in"), ("\u2212", "out", "Zoom out"), ("○", "all", "Show all"))


def strips(records: Sequence[RunRecord]) -> Markup:
    """Random images with their nearest neighbours; the same images are asked in every run that has them."""
    return tag("div", [_strips(*one) for one in _pictured(records)], class_="columns")


def _strips(place: int, name: str, gallery: Gallery) -> Markup:
    rows = [_strip(gallery, place, query) for query in gallery.queries]
    where = f" in {name}" if name else ""
    caption = f"Nearest neighbours{where} of {len(gallery.queries)} random images, nearest first."
    return tag("figure", tag("figcaption", tag("b", caption), _agreement(gallery)), rows, class_=f"strips g{place}")


def _agreement(gallery: Gallery) -> str | None:
    """How often the nearest neighbour has the same class, over all images of the map."""
    labels, neighbours = gallery.arrays["labels"], gallery.arrays["neighbours"]
    if (labels < 0).any():
        return None
    share = float((labels[neighbours[:, 0]] == labels).mean())
    agree = f"Over all {len(labels):,} images, the nearest neighbour has the same class {100 * share:.0f}% of the time."
    return f" Underlined: of another class. {agree}"


def _strip(gallery: Gallery, place: int, query: int) -> Markup:
    found = gallery.arrays["neighbours"][query][:SHOWN_NEIGHBOURS]
    label = gallery.arrays["labels"][query]
    other = [gallery.arrays["labels"][int(i)] != label for i in found]
    pictures = [thumb(gallery, place, int(i), other=wrong) for i, wrong in zip(found, other, strict=True)]
    return tag(
        "div", thumb(gallery, place, query), tag("span", class_="arrow", aria_hidden="true"), pictures, class_="strip"
    )


def thumb(gallery: Gallery, place: int, point: int, other: bool = False) -> Markup:
    """One thumbnail as a button that shows the image on the map. `other`: of another class than was asked for."""
    row, column = divmod(point, gallery.columns)
    sheet, row_on_sheet = divmod(row, _sheet_rows(gallery))
    name = title(gallery, point)
    look = f"thumb sheet{sheet}" + (" other" if other else "")
    return tag(
        "button",
        type="button",
        class_=look,
        style=f"--x:{column};--y:{row_on_sheet}",
        title=name,
        aria_label=name,
        data_gallery=place,
        data_point=point,
    )


def title(gallery: Gallery, point: int) -> str:
    """Class and name of an image."""
    label = int(gallery.arrays["labels"][point])
    name = gallery.classes[label] + ": " if 0 <= label < len(gallery.classes) else ""
    return name + gallery.keys[point]


def curiosities(records: Sequence[RunRecord]) -> Markup:
    """Most typical, most unusual, near-duplicates."""
    return tag("div", [_curiosities(*one) for one in _pictured(records)], class_="curiosities")


def _curiosities(place: int, name: str, gallery: Gallery) -> list[Markup]:
    def single(points: Sequence[int]) -> list[Markup]:
        return [thumb(gallery, place, point) for point in points]

    doubles = [tag("span", single(pair), class_="pair") for pair in gallery.doubles]
    none = tag("p", "None among the images of the map.", class_="absent")
    rows = [
        ("Most typical", "in the densest places of the map", single(gallery.typical)),
        ("Most unusual", "farthest from everything else", single(gallery.unusual)),
        ("Near-duplicates", "nearly the same features and pixels", doubles or [none]),
    ]
    where = f" in {name}" if name else ""
    return [_row(place, title + where, meaning, shown) for title, meaning, shown in rows]


def _row(place: int, name: str, meaning: str, pictures: Sequence[Markup]) -> Markup:
    caption = tag("figcaption", tag("b", name), f", {meaning}.")
    return tag("figure", caption, tag("div", pictures, class_="row"), class_=f"g{place}")


def views(records: Sequence[RunRecord]) -> Markup:
    """Sample pairs of views, as the encoder got them."""
    return join([_views(name, gallery) for _, name, gallery in _pictured(records) if gallery.view_pairs])


def _views(name: str, gallery: Gallery) -> Markup:
    title = f"Sample views of {name}. " if name else "Sample views. "
    explained = "Each column is one image, cut and recoloured twice; the encoder learns to give both the same features."
    picture = tag(
        "img",
        src=data_address(gallery.arrays["views"].tobytes(), "image/jpeg"),
        alt=f"{gallery.view_pairs} pairs of augmented views, one pair per column",
        style=f"--pairs:{gallery.view_pairs}",
    )
    return tag("figure", tag("figcaption", tag("b", title), explained), picture, class_="views")
