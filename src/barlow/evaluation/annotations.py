"""Boxes and masks of images: COCO's JSON and VOC's XML, both as COCO dictionaries."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated as Constrained
from typing import Any, NotRequired, TypedDict
from xml.etree import ElementTree

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from barlow.data import CorruptSample, Source
from barlow.errors import InputError, suggest
from barlow.evaluation.task import Subset
from barlow.files import read_json
from barlow.records import typed

MOST_PIXELS = 10**6  # a side, or a coordinate in either direction
Coco = dict[str, Any]
"""The tables `images`, `annotations` and `categories` of COCO's object detection format."""


Pixels = Constrained[float, Meta(ge=-MOST_PIXELS, le=MOST_PIXELS)]
Side = Constrained[int, Meta(ge=0, le=MOST_PIXELS)]
Id = Constrained[int, Meta(ge=-(2**63), le=2**63 - 1)]
Box = tuple[Pixels, Pixels, Pixels, Pixels]


class CocoImage(TypedDict):
    id: Id
    file_name: str
    height: NotRequired[Side]
    width: NotRequired[Side]


class RunLengths(TypedDict):
    size: tuple[Side, Side]
    counts: str | list[Side]


class CocoObject(TypedDict):
    image_id: Id
    category_id: Id
    bbox: Box
    """left, top, width, height"""
    id: NotRequired[Id]
    iscrowd: NotRequired[int | bool]
    area: NotRequired[float]
    segmentation: NotRequired[list[Constrained[list[Pixels], Meta(min_length=6)]] | RunLengths | None]


class CocoCategory(TypedDict):
    id: Id
    name: str


class CocoTables(TypedDict):
    """The fields that are read; others may stand beside them."""

    images: list[CocoImage]
    annotations: list[CocoObject]
    categories: list[CocoCategory]


def read_coco(path: str | Path) -> Coco:
    """The annotations of a COCO JSON file. Raises InputError for any other file."""
    coco: Coco = dict(read_json(Path(path), CocoTables))
    if not coco["categories"]:
        raise InputError(f"{path} names no categories: there is nothing to detect")
    for item in coco["annotations"]:  # fields that writers of such files leave out, and COCO evaluation asks for
        item.setdefault("iscrowd", 0)
        item.setdefault("area", item["bbox"][2] * item["bbox"][3])
    _check_categories(path, coco)
    return coco


def _check_categories(path: str | Path, coco: Coco) -> None:
    known = {category["id"] for category in coco["categories"]}
    unknown = sorted({item["category_id"] for item in coco["annotations"]} - known)
    if unknown:
        raise InputError(f"{path} has objects of category {unknown[0]}, which it does not name")


def find_parts(root: str | Path) -> tuple[tuple[Path, Coco], tuple[Path, Coco]]:
    """(folder of images, annotations) to train on and to test on.

    VOC: splits trainval and test of `ImageSets/Main`, with `Annotations/` and `JPEGImages/`. VOC07+12: a folder
    (`VOCdevkit`) with both `VOC2007` and `VOC2012`, trained on trainval of both and tested on VOC2007's test. COCO:
    `annotations/instances_train*.json` and `instances_val*.json`, with the images in folders `train*` and `val*`.
    Raises InputError for any other layout.
    """
    folder = Path(root)
    years = [folder / "VOC2007", folder / "VOC2012"]
    if all(year.is_dir() for year in years):
        train, classes = _joined([read_voc(year, "trainval") for year in years], years[0])
        return (folder, train), (years[0] / "JPEGImages", read_voc(years[0], "test", classes))
    if (folder / "ImageSets" / "Main").is_dir():
        train = read_voc(folder, "trainval")
        test = read_voc(folder, "test", _names(train))
        return (folder / "JPEGImages", train), (folder / "JPEGImages", test)
    return _coco_part(folder, "train"), _coco_part(folder, "val")


def _names(coco: Coco) -> list[str]:
    return [category["name"] for category in coco["categories"]]


def _joined(parts: Sequence[Coco], root: Path) -> tuple[Coco, list[str]]:
    """The images of several parts with one numbering, and the names of the classes, which must be the same."""
    if len({tuple(_names(part)) for part in parts}) > 1:
        raise InputError(f"{root} and its neighbours name different classes: {[_names(part) for part in parts]}")
    joined: Coco = {"images": [], "annotations": [], "categories": parts[0]["categories"]}
    for part in parts:
        images, objects = len(joined["images"]), len(joined["annotations"])
        joined["images"] += [{**image, "id": image["id"] + images} for image in part["images"]]
        joined["annotations"] += [
            {**item, "id": item["id"] + objects, "image_id": item["image_id"] + images} for item in part["annotations"]
        ]
    return joined, _names(joined)


def _coco_part(root: Path, part: str) -> tuple[Path, Coco]:
    files = sorted((root / "annotations").glob(f"instances_{part}*.json"))
    if len(files) != 1:
        raise InputError(
            f"{root} is not in the layout of VOC or COCO: expected ImageSets/Main, or one annotations/"
            f"instances_{part}*.json, found {len(files)}"
        )
    return root / files[0].stem.removeprefix("instances_"), read_coco(files[0])


def read_voc(root: str | Path, split: str, classes: Sequence[str] | None = None) -> Coco:
    """VOC annotations (`Annotations/*.xml` of the images in `ImageSets/Main/<split>.txt`) as COCO tables.

    Difficult objects become crowds, which neither reward nor punish a detection. Categories are numbered from 1 in
    the order of `classes`; without, those that occur, by name. Raises InputError for a missing part.
    """
    folder = Path(root)
    try:
        names = (folder / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
        trees = [ElementTree.parse(folder / "Annotations" / f"{name}.xml").getroot() for name in names]
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:  # the last two: encodings
        raise InputError(f"{root} is not in VOC layout: {error}") from None
    parts = [(image, item) for image, tree in enumerate(trees) for item in tree.iter("object")]
    objects = [_voc_object(folder, names[image], item) for image, item in parts]
    occurring = sorted({found["name"] for found in objects})
    number = {name: i + 1 for i, name in enumerate(classes or occurring)}
    unknown = sorted(set(occurring) - set(number))
    if unknown:
        raise InputError(f"{root} has objects of the class '{unknown[0]}'. {suggest(unknown[0], number)}")
    annotations = []
    for i, ((image, _), found) in enumerate(zip(parts, objects, strict=True), start=1):
        # Corners are pixel numbers counted from 1, and both belong to the box.
        left, top = found["xmin"] - 1, found["ymin"] - 1
        width, height = found["xmax"] - left, found["ymax"] - top
        place = {"bbox": [left, top, width, height], "area": width * height, "iscrowd": found["difficult"]}
        annotations.append({"id": i, "image_id": image, "category_id": number[found["name"]], **place})
    return {
        "images": [_voc_image(folder, i, name, tree) for i, (name, tree) in enumerate(zip(names, trees, strict=True))],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for name, i in number.items()],
    }


class VocObject(TypedDict):
    name: str
    difficult: int
    xmin: Pixels
    ymin: Pixels
    xmax: Pixels
    ymax: Pixels


def _voc_object(folder: Path, image: str, item: ElementTree.Element) -> VocObject:
    corners = {corner: item.findtext(f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax")}
    texts = {"name": item.findtext("name"), "difficult": item.findtext("difficult", "0"), **corners}
    return typed(texts, VocObject, folder / "Annotations" / f"{image}.xml", strict=False)


def _voc_image(folder: Path, index: int, name: str, tree: ElementTree.Element) -> dict[str, Any]:
    texts = {side: tree.findtext(f"size/{side}", "0") for side in ("height", "width")}
    sides = typed(texts, dict[str, Side], folder / "Annotations" / f"{name}.xml", strict=False)
    return {"id": index, "file_name": tree.findtext("filename") or f"{name}.jpg", **sides}


@dataclass(frozen=True, eq=False)
class Annotated:
    """Images of a source with the COCO tables that describe them."""

    images: Subset
    coco: Coco

    @classmethod
    def match(cls, source: Source, coco: Coco) -> "Annotated":
        """Find the images of the tables in the source: by path, else by file name, which must then be the only one.

        Raises InputError when an image is not there, or several files have its name.
        """
        whole = {key: index for index, key in enumerate(source.keys)}
        named: dict[str, list[int]] = {}
        for index, key in enumerate(source.keys):
            named.setdefault(Path(key).name, []).append(index)
        names = [str(image["file_name"]) for image in coco["images"]]
        found = [[whole[name]] if name in whole else named.get(Path(name).name, []) for name in names]
        missing = [name for name, rows in zip(names, found, strict=True) if not rows]
        if missing:
            raise InputError(f"{len(missing)} annotated images are not in {source.name}, for instance {missing[0]}")
        unclear = [name for name, rows in zip(names, found, strict=True) if len(rows) > 1]
        if unclear:
            raise InputError(f"{source.name} has several files for the annotated image {unclear[0]}: name its folder")
        return cls(Subset(source, np.array([rows[0] for rows in found], dtype=np.int64)), coco)

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def categories(self) -> list[int]:
        """Ids in rising order; a detector's label l stands for `categories[l - 1]`, 0 is the background."""
        return sorted(category["id"] for category in self.coco["categories"])

    @cached_property
    def _objects(self) -> dict[int, list[dict[str, Any]]]:
        found: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in self.coco["images"]}
        for item in self.coco["annotations"]:
            known = item["image_id"] in found  # as COCO's own code, pass over objects of images that are not listed
            if known and not item.get("iscrowd") and min(item["bbox"][2:]) > 0:
                found[item["image_id"]].append(item)
        return found

    def image(self, row: int) -> Tensor:
        """Pixels [C, H, W] from 0 to 1."""
        try:
            pixels = self.images.source.read(int(self.images.indices[row]))
        except CorruptSample as error:
            raise InputError(f"an annotated image cannot be read ({error}): repair it or remove its entry") from None
        return pixels / 255.0 if pixels.dtype == torch.uint8 else pixels

    def target(self, row: int, *, masks: bool) -> dict[str, Tensor]:
        """`boxes [n, 4]` as corners, `labels [n]`, and with `masks` also `masks [n, H, W]` uint8; without crowds."""
        image = self.coco["images"][row]
        objects = self._objects[image["id"]]
        corners = np.array([item["bbox"] for item in objects], dtype=np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        labels = [self.categories.index(item["category_id"]) + 1 for item in objects]
        target = {"boxes": torch.from_numpy(corners), "labels": torch.tensor(labels, dtype=torch.int64)}
        if masks:
            shapes = [_mask(item, image["height"], image["width"]) for item in objects]
            empty = np.zeros((0, image["height"], image["width"]), dtype=np.uint8)
            target["masks"] = torch.from_numpy(np.stack(shapes) if shapes else empty)
        return target


def _mask(item: dict[str, Any], height: int, width: int) -> np.ndarray:
    """Pixels [H, W] of one object from its polygons or its run lengths."""
    shape = item.get("segmentation")
    if not shape:
        raise InputError(f"annotation {item['id']} has no segmentation: ask for boxes alone (masks=False)")
    codec = coco_tools().mask
    if isinstance(shape, dict) and list(shape["size"]) != [height, width]:
        raise InputError(f"annotation {item['id']} has a mask of {shape['size']}, its image is {[height, width]}")
    try:
        if isinstance(shape, list):
            encoded = codec.merge(codec.frPyObjects(shape, height, width))
        else:
            encoded = codec.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape
        return np.asarray(codec.decode(encoded), dtype=np.uint8)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"annotation {item['id']} has a damaged segmentation: {error}") from None


def coco_tools() -> Any:
    """The package faster_coco_eval. Raises InputError where it is not installed."""
    try:
        import faster_coco_eval
    except ImportError:
        raise InputError("detection needs faster-coco-eval: pip install 'barlow[detection]'") from None
    return faster_coco_eval
