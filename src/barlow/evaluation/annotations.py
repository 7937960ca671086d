"""Boxes and masks of images: COCO's JSON and VOC's XML, both as COCO dictionaries."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from barlow.data import CorruptSample, Source
from barlow.errors import InputError, suggest
from barlow.evaluation.task import Subset

Coco = dict[str, Any]
"""The tables `images`, `annotations` and `categories` of COCO's object detection format."""


def read_coco(path: str | Path) -> Coco:
    """The annotations of a COCO JSON file. Raises InputError for any other file."""
    try:
        coco: Coco = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a COCO annotation file: {error}") from None
    if not isinstance(coco, dict) or not all(isinstance(coco.get(k), list) for k in ("images", "annotations")):
        raise InputError(f"{path} is not a COCO annotation file: it lacks the tables images and annotations")
    if not coco.get("categories"):
        raise InputError(f"{path} names no categories: there is nothing to detect")
    for item in coco["annotations"]:  # fields that writers of such files leave out, and COCO evaluation asks for
        if not isinstance(item, dict) or not {"image_id", "category_id", "bbox"} <= item.keys():
            raise InputError(f"{path} has an annotation without image_id, category_id or bbox: {str(item)[:80]}")
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
    except (OSError, ElementTree.ParseError) as error:
        raise InputError(f"{root} is not in VOC layout: {error}") from None
    objects = [(image, item) for image, tree in enumerate(trees) for item in tree.iter("object")]
    occurring = sorted({item.findtext("name", "") for _, item in objects})
    number = {name: i + 1 for i, name in enumerate(classes or occurring)}
    unknown = sorted(set(occurring) - set(number))
    if unknown:
        raise InputError(f"{root} has objects of the class '{unknown[0]}'. {suggest(unknown[0], number)}")
    return {
        "images": [_voc_image(i, name, tree) for i, (name, tree) in enumerate(zip(names, trees, strict=True))],
        "annotations": [_voc_object(i + 1, image, item, number) for i, (image, item) in enumerate(objects)],
        "categories": [{"id": i, "name": name} for name, i in number.items()],
    }


def _voc_image(index: int, name: str, tree: ElementTree.Element) -> dict[str, Any]:
    height, width = (int(tree.findtext(f"size/{side}", "0")) for side in ("height", "width"))
    return {"id": index, "file_name": tree.findtext("filename") or f"{name}.jpg", "height": height, "width": width}


def _voc_object(index: int, image: int, item: ElementTree.Element, number: dict[str, int]) -> dict[str, Any]:
    """Corners are pixel numbers counted from 1 and both belong to the box."""
    left, top, right, bottom = (float(item.findtext(f"bndbox/{k}", "0")) for k in ("xmin", "ymin", "xmax", "ymax"))
    width, height = right - left + 1, bottom - top + 1
    return {
        "id": index,
        "image_id": image,
        "category_id": number[item.findtext("name", "")],
        "bbox": [left - 1, top - 1, width, height],
        "area": width * height,
        "iscrowd": int(item.findtext("difficult", "0")),
    }


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
    if isinstance(shape, list):
        encoded = codec.merge(codec.frPyObjects(shape, height, width))
    else:
        encoded = codec.frPyObjects(shape, height, width) if isinstance(shape["counts"], list) else shape
    return np.asarray(codec.decode(encoded), dtype=np.uint8)


def coco_tools() -> Any:
    """The package faster_coco_eval. Raises InputError where it is not installed."""
    try:
        import faster_coco_eval
    except ImportError:
        raise InputError("detection needs faster-coco-eval: pip install 'barlow[detection]'") from None
    return faster_coco_eval
