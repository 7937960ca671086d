"""Detection: annotations, mirrored targets, precision, and Faster and Mask R-CNN on a small drawn data set."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from barlow.data import DataWarning, open_source
from barlow.errors import InputError
from barlow.evaluation.annotations import Annotated, find_parts, read_coco, read_voc
from barlow.evaluation.detection import (
    DetectorTraining,
    PyramidBackbone,
    build_detector,
    coco_precision,
    evaluate_detection,
    mirrored,
    train_detector,
)
from barlow.models import Encoder, Preprocess, build_encoder

SIDE = 64


def draw(folder: Path, n: int, seed: int) -> Path:
    """A COCO data set: on each dark image one bright red square (category 3) and one green disc (category 8)."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    tables: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    for index in range(n):
        pixels = rng.integers(0, 40, (SIDE, SIDE, 3), dtype=np.uint8)
        for category, left in ((3, rng.integers(0, 8)), (8, rng.integers(34, 40))):
            top, size = int(rng.integers(2, 36)), int(rng.integers(16, 24))
            shape, outline = _shape(category, int(left), top, size)
            pixels[shape] = (230, 40, 40) if category == 3 else (40, 230, 40)
            box = [float(left), float(top), float(size), float(size)]
            number = len(tables["annotations"]) + 1
            tables["annotations"].append(
                {"id": number, "image_id": 100 + index, "category_id": category, "bbox": box, "iscrowd": 0}
                | {"area": float(shape.sum()), "segmentation": [outline]}
            )
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
        tables["images"].append({"id": 100 + index, "file_name": f"{index:03d}.png", "height": SIDE, "width": SIDE})
    categories = [{"id": 8, "name": "disc"}, {"id": 3, "name": "square"}]
    file = folder.parent / f"{folder.name}.json"
    file.write_text(json.dumps({**tables, "categories": categories}))
    return file


def _shape(category: int, left: int, top: int, size: int) -> tuple[np.ndarray, list[float]]:
    """The pixels of a shape, and its outline as x, y, x, y, ..."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    if category == 3:
        inside = (x > left) & (x < left + size) & (y > top) & (y < top + size)
        right, bottom = left + size, top + size
        return inside, [float(v) for v in (left, top, right, top, right, bottom, left, bottom)]
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    centre, radius = np.array([left, top]) + size / 2, size / 2
    outline = centre + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2, outline.ravel().tolist()


def encoder() -> Encoder:
    torch.manual_seed(0)
    built = build_encoder("resnet10-narrow", channels=3, image_size=96)
    built.preprocess = Preprocess(96, 3, (0.2,) * 3, (0.25,) * 3)
    return built


def annotated(folder: Path, file: Path) -> Annotated:
    return Annotated.match(open_source(folder, channels=3), read_coco(file))


def test_targets_are_the_drawn_boxes_labels_and_masks(tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    data = annotated(tmp_path / "a", draw(tmp_path / "a", 3, 0))
    assert data.categories == [3, 8]
    image, target = data.image(1), data.target(1, masks=True)
    assert target["labels"].tolist() == [1, 2]
    for box, mask, channel in zip(target["boxes"], target["masks"], (0, 1), strict=True):
        bright = image[channel] > 0.5
        rows, columns = torch.nonzero(bright, as_tuple=True)
        extent = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        assert (extent - box).abs().max() <= 1
        agreement = (mask.bool() & bright).sum() / (mask.bool() | bright).sum()
        assert agreement > 0.9


def test_a_mirrored_target_still_lies_on_its_object(tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    data = annotated(tmp_path / "a", draw(tmp_path / "a", 1, 1))
    image, target = mirrored(data.image(0), data.target(0, masks=True), flip=True)
    left, top, right, bottom = target["boxes"][0].round().int().tolist()
    assert image[0, top + 1 : bottom - 1, left + 1 : right - 1].min() > 0.8
    assert target["masks"][0, top:bottom, left:right].float().mean() > 0.9
    again = mirrored(image, target, flip=True)
    torch.testing.assert_close(again[1]["boxes"], data.target(0, masks=False)["boxes"])


def test_perfect_detections_score_one_and_shifted_ones_what_their_overlap_allows(tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    coco = read_coco(draw(tmp_path / "a", 6, 2))
    results = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for a in coco["annotations"]
    ]
    perfect = coco_precision(results, coco)
    assert (perfect.ap, perfect.ap50, perfect.ap75, *perfect.interval) == pytest.approx((1, 1, 1, 1, 1))
    # three quarters of the width: IoU .75 exactly, so thresholds .5, .55, ..., .75 are met: 6 of 10
    narrow = [{**r, "bbox": [*r["bbox"][:2], 0.75 * r["bbox"][2], r["bbox"][3]]} for r in results]
    found = coco_precision(narrow, coco)
    assert (found.ap, found.ap50, found.ap75) == pytest.approx((0.6, 1, 1), abs=0.02)
    half = coco_precision(results[::2], coco)  # all squares, no disc
    assert half.ap == pytest.approx(0.5)
    assert coco_precision([], coco).ap == 0.0


def test_objects_are_numbered_from_one_and_what_files_leave_out_is_filled_in(tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    file = draw(tmp_path / "a", 2, 2)
    bare = json.loads(file.read_text())
    for number, item in enumerate(bare["annotations"]):
        item["id"] = number  # COCO's matching takes object 0 for no match
        del item["area"], item["iscrowd"]
    file.write_text(json.dumps(bare))
    coco = read_coco(file)
    assert [item["area"] for item in coco["annotations"]] == [a["bbox"][2] * a["bbox"][3] for a in bare["annotations"]]
    results = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in coco["annotations"]]
    assert coco_precision(results, coco).ap == pytest.approx(1.0)
    bare["annotations"][1]["category_id"] = 44
    file.write_text(json.dumps(bare))
    with pytest.raises(InputError, match="category 44"):
        read_coco(file)
    del bare["annotations"][0]["bbox"]
    file.write_text(json.dumps(bare))
    with pytest.raises(InputError, match=r"missing required field `bbox` - at `\$.annotations"):
        read_coco(file)


def test_images_of_one_name_in_several_folders_are_told_apart_by_path(tmp_path: Path) -> None:
    for folder, value in (("x", 10), ("y", 200)):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8), (value,) * 3).save(tmp_path / folder / "1.png")
    source = open_source(tmp_path, channels=3)
    item = {"image_id": 5, "category_id": 1, "bbox": [0, 0, 4, 4]}
    elsewhere = {**item, "image_id": 6}  # of an image that the file does not list
    coco: Any = {"categories": [{"id": 1, "name": "square"}], "annotations": [item, elsewhere]}
    coco["images"] = [{"id": 5, "file_name": "y/1.png", "height": 8, "width": 8}]
    data = Annotated.match(source, coco)
    assert data.image(0).mean() == pytest.approx(200 / 255)
    assert data.target(0, masks=False)["boxes"].tolist() == [[0, 0, 4, 4]]
    coco["images"][0]["file_name"] = "1.png"
    with pytest.raises(InputError, match="several files"):
        Annotated.match(source, coco)


def test_regions_are_drawn_from_the_seed_and_the_callers_generator_is_left_alone(tmp_path: Path) -> None:
    class Sampling(nn.Module):
        """Draws from the global generator, as torchvision's detectors do."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4))

        def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            return {"loss": self.weight[torch.randperm(4)[0]]}

    data, found = annotated(tmp_path / "a", draw(tmp_path / "a", 2, 0)), []
    for before in (1, 2):
        torch.manual_seed(before)
        state, model = torch.random.get_rng_state(), Sampling()
        train_detector(model, data, DetectorTraining(iterations=6, batch_size=1), seed=3, device=torch.device("cpu"))
        assert torch.equal(torch.random.get_rng_state(), state)
        found.append(model.weight)
    assert torch.equal(*found)
    assert len(set(found[0].tolist())) > 1


def test_the_interval_resamples_images(tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    coco = read_coco(draw(tmp_path / "a", 8, 3))
    found = [a for a in coco["annotations"] if a["image_id"] < 104]  # every object of half of the images
    results = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in found]
    precision = coco_precision(results, coco, seed=0)
    assert precision.ap == pytest.approx(0.5, abs=0.02)
    assert 0 < precision.interval[0] < 0.35
    assert 0.65 < precision.interval[1] < 1


def test_voc_annotations_become_the_same_tables(tmp_path: Path) -> None:
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("000007\n")
    item = "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>11</xmin><ymin>21</ymin><xmax>20</xmax>"
    objects = "".join(item.format(*values) + "<ymax>50</ymax></bndbox></object>" for values in (("dog", 0), ("cat", 1)))
    text = f"<annotation><filename>000007.jpg</filename><size><width>90</width><height>60</height></size>{objects}"
    (tmp_path / "Annotations" / "000007.xml").write_text(f"{text}</annotation>")
    coco = read_voc(tmp_path, "train")
    assert [category["name"] for category in coco["categories"]] == ["cat", "dog"]
    assert coco["images"] == [{"id": 0, "file_name": "000007.jpg", "height": 60, "width": 90}]
    dog, cat = coco["annotations"]
    assert (dog["bbox"], dog["area"], dog["category_id"], dog["iscrowd"]) == ([10, 20, 10, 30], 300, 2, 0)
    assert cat["iscrowd"] == 1
    assert read_voc(tmp_path, "train", ["dog", "cat"])["annotations"][0]["category_id"] == 1
    with pytest.raises(InputError, match="'cat'"):
        read_voc(tmp_path, "train", ["dog"])
    (tmp_path / "ImageSets" / "Main" / "trainval.txt").write_text("000007\n")
    with pytest.raises(InputError, match="VOC layout"):
        find_parts(tmp_path)  # there is no test.txt
    with pytest.raises(InputError, match="VOC layout"):
        read_voc(tmp_path, "test")


def write_voc(root: Path, parts: dict[str, list[str]], objects: tuple[str, ...] = ("cat", "dog")) -> None:
    """A folder in VOC layout with one object of each class in every image."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    item = "<object><name>{}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>{}</xmax><ymax>9</ymax></bndbox></object>"
    for split, names in parts.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
        for name in names:
            inside = "".join(item.format(kind, 5 + i) for i, kind in enumerate(objects))
            size = f"<filename>{name}.jpg</filename><size><width>16</width><height>12</height></size>"
            (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{inside}</annotation>")
            Image.new("RGB", (16, 12)).save(root / "JPEGImages" / f"{name}.jpg")


def test_voc07_and_12_are_trained_on_together_and_tested_on_07(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOC2007", {"trainval": ["000001", "000002"], "test": ["000003"]})
    write_voc(tmp_path / "VOC2012", {"trainval": ["2008_000001"]})
    (folder, train), (test_folder, test) = find_parts(tmp_path)
    assert [image["file_name"] for image in train["images"]] == ["000001.jpg", "000002.jpg", "2008_000001.jpg"]
    assert [(a["id"], a["image_id"]) for a in train["annotations"]] == [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (6, 2)]
    assert [image["file_name"] for image in test["images"]] == ["000003.jpg"]
    assert test["categories"] == train["categories"]
    with pytest.warns(DataWarning, match=r"\.xml"):
        matched = Annotated.match(open_source(folder), train)  # its images lie in both folders
    keys = [matched.images.source.keys[i] for i in matched.images.indices]
    assert keys[0] == "VOC2007/JPEGImages/000001.jpg"
    assert keys[2] == "VOC2012/JPEGImages/2008_000001.jpg"
    assert len(Annotated.match(open_source(test_folder), test)) == 1
    write_voc(tmp_path / "b" / "VOC2007", {"trainval": ["1"], "test": ["2"]})
    write_voc(tmp_path / "b" / "VOC2012", {"trainval": ["3"]}, ("cat", "cow"))
    with pytest.raises(InputError, match="different classes"):
        find_parts(tmp_path / "b")


def test_the_parts_of_a_folder_are_found_in_both_layouts(tmp_path: Path) -> None:
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for name in ("train2017", "val2017"):
        draw(root / name, 2, 7).rename(root / "annotations" / f"instances_{name}.json")
    (train, tables), (val, _) = find_parts(root)
    assert (train.name, val.name, len(tables["images"])) == ("train2017", "val2017", 2)
    (root / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(InputError, match="layout of VOC or COCO"):
        find_parts(root)


def test_the_detector_starts_from_the_encoders_weights_and_keeps_its_statistics() -> None:
    built = encoder()
    backbone = PyramidBackbone(built, 16)
    assert backbone.strides == [4, 8, 16, 32]
    own, taken = built.backbone.state_dict(), backbone.body.state_dict()
    assert all(torch.equal(own[name], taken[name]) for name in own)
    backbone.train()
    assert not any(part.training for part in backbone.body.modules() if isinstance(part, nn.BatchNorm2d))
    backbone(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(own[name], value) for name, value in backbone.body.state_dict().items())


def test_a_small_stem_gives_finer_levels_with_anchors_of_eight_strides() -> None:
    built = build_encoder("resnet10-narrow", channels=3, image_size=32)
    built.preprocess = Preprocess(32, 3, (0.2,) * 3, (0.25,) * 3)
    model: Any = build_detector(built, 2, DetectorTraining(pyramid_channels=16))
    assert model.backbone.strides == [1, 2, 4, 8]
    assert model.rpn.anchor_generator.sizes == ((8,), (16,), (32,), (64,), (128,))


def test_encoders_without_feature_maps_and_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    built = build_encoder(Flat(), channels=3, image_size=8)
    built.preprocess = Preprocess(8, 3, (0.2,) * 3, (0.25,) * 3)
    with pytest.raises(InputError, match="feature maps"):
        PyramidBackbone(built, 16)
    file = draw(tmp_path / "a", 2, 4)
    (tmp_path / "a" / "001.png").unlink()
    with pytest.raises(InputError, match=r"1 annotated images are not in .*001\.png"):
        annotated(tmp_path / "a", file)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(InputError, match="missing required field `images`"):
        read_coco(tmp_path / "bad.json")


def test_the_learning_rate_warms_up_and_falls_twice() -> None:
    how = DetectorTraining(iterations=1000, lr=0.02, warmup=10)
    assert [how.rate(step) for step in (0, 9, 500, 800, 950)] == pytest.approx([0.002, 0.02, 0.02, 0.002, 0.0002])


def rehearsed(folder: Path, **changes: Any) -> Any:
    """A detector trained on 24 drawn images and scored on 8 others."""
    pytest.importorskip("faster_coco_eval")
    train, test = (
        (folder / name, read_coco(draw(folder / name, n, seed))) for name, n, seed in (("a", 24, 5), ("b", 8, 6))
    )
    sizes: dict[str, Any] = {"min_size": SIDE, "max_size": SIDE, "pyramid_channels": 32}
    how = DetectorTraining(batch_size=2, warmup=5, **sizes, **changes)
    return evaluate_detection(encoder(), train, test, how, baselines=())


@pytest.mark.slow
def test_faster_rcnn_learns_to_find_drawn_shapes(tmp_path: Path) -> None:
    result = rehearsed(tmp_path, iterations=50, proposals=60, sampled=32)
    assert (result.protocol, result.metric, result.n, result.n_train) == ("faster-rcnn", "box AP", 8, 24)
    assert result.details["AP50"] > 0.7
    assert 0.3 < result.interval[0] < result.value < result.interval[1]


@pytest.mark.slow
def test_mask_rcnn_learns_to_outline_drawn_shapes(tmp_path: Path) -> None:
    result = rehearsed(tmp_path, masks=True, iterations=40, proposals=40, sampled=8)
    assert result.protocol == "mask-rcnn"
    assert result.details["masks"]["ap50"] > 0.3


@pytest.mark.parametrize(
    ("table", "field", "value"),
    [
        ("images", "id", None),
        ("images", "file_name", 7),
        ("images", "width", 10**30),
        ("annotations", "bbox", [1, 2, 3]),
        ("annotations", "bbox", [1, 2, 3, float("nan")]),
        ("annotations", "bbox", [1, 2, 3, 1e300]),
        ("annotations", "category_id", "cat"),
        ("annotations", "image_id", 10**40),
        ("annotations", "segmentation", [[1, 2]]),
        ("annotations", "segmentation", {"size": [4, 4]}),
        ("categories", "id", [[]]),
        ("categories", "name", None),
    ],
)
def test_coco_tables_of_other_types_are_one_line(table: str, field: str, value: Any, tmp_path: Path) -> None:
    file = draw(tmp_path / "a", 2, 2)
    tables = json.loads(file.read_text())
    tables[table][0][field] = value
    file.write_text(json.dumps(tables))
    with pytest.raises(InputError, match=rf"is damaged: .* - at `\$\.{table}") as told:
        read_coco(file)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("content", ["", "[]", "[" * 10_000, '{"images": [], "annotations": [], "categories": [NaN]}'])
def test_a_file_that_is_not_coco_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match="is damaged"):
        read_coco(tmp_path / "x.json")


def test_masks_of_another_size_or_of_nonsense_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    file = draw(tmp_path / "a", 2, 2)
    tables = json.loads(file.read_text())
    image = tables["images"][0]
    item = next(item for item in tables["annotations"] if item["image_id"] == image["id"])
    for lengths, message in (
        ({"size": [3, 3], "counts": [9]}, "its image is"),
        ({"size": [image["height"], image["width"]], "counts": "\u00e4"}, "damaged segmentation"),
    ):
        item["segmentation"] = lengths
        file.write_text(json.dumps(tables))
        with pytest.raises(InputError, match=message):
            annotated(tmp_path / "a", file).target(0, masks=True)


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("<xmin>1<", "<xmin>left<", "Expected `float`"),
        ("<xmin>1<", "<xmin>nan<", "Expected `float`"),
        ("<xmin>1</xmin>", "", "Expected `float`, got `null`"),
        ("<name>dog</name>", "", "Expected `str`, got `null`"),
        ("<width>90<", "<width>wide<", "Expected `int`"),
        ('<?xml version="1.0"?>', '<?xml version="1.0" encoding="none"?>', "VOC layout"),
    ],
)
def test_voc_files_of_other_types_are_one_line(right: str, wrong: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>50</ymax></bndbox>"
    size = "<size><width>90</width><height>60</height></size>"
    text = f'<?xml version="1.0"?><annotation>{size}<object><name>dog</name>{box}</object></annotation>'
    file = tmp_path / "Annotations" / "a.xml"
    file.write_text(text)
    assert read_voc(tmp_path, "train")["annotations"][0]["bbox"] == [0, 0, 20, 50]
    file.write_text(text.replace(right, wrong))
    with pytest.raises(InputError, match=message):
        read_voc(tmp_path, "train")
