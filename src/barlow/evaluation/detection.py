"""Detection and instance segmentation: Faster and Mask R-CNN (torchvision) on our encoder, mAP by faster-coco-eval."""

import contextlib
import copy
import io
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from barlow.data import DataWarning, open_source
from barlow.errors import InputError
from barlow.evaluation.annotations import Annotated, Coco, coco_tools, find_parts
from barlow.evaluation.features import preprocess_of
from barlow.evaluation.intervals import LEVEL
from barlow.evaluation.session import Result, Settings, Splits, measure
from barlow.evaluation.task import Score, Task
from barlow.models import Encoder, load_encoder
from barlow.run import Run


@dataclass(frozen=True)
class DetectorTraining:
    """How the detector is fine-tuned; the defaults are the usual 24,000 iterations of VOC07+12."""

    masks: bool = False
    """Mask R-CNN: boxes and masks"""
    iterations: int = 24_000
    batch_size: int = 16
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: int = 100
    """iterations of linear warm-up"""
    milestones: tuple[float, ...] = (0.75, 0.917)
    """shares of the iterations after which the rate falls to a tenth"""
    min_size: int = 800
    """shorter side of the images in pixels"""
    max_size: int = 1333
    pyramid_channels: int = 256
    proposals: int = 1000
    """regions per image that the first stage hands on"""
    sampled: int = 512
    """of these, regions per image that the second stage is trained on"""

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        passed = sum(step >= share * self.iterations for share in self.milestones)
        return float(self.lr * min(1.0, (step + 1) / self.warmup) * 0.1**passed)


class PyramidBackbone(nn.Module):
    """The encoder's feature maps, one per resolution, in a feature pyramid: images -> maps of `out_channels`.

    BatchNorm keeps the statistics of pretraining: the batches of a detector are too small for their own.

    Raises:
        InputError: The backbone gives no feature maps, or takes images of one size only.
    """

    def __init__(self, encoder: Encoder, out_channels: int) -> None:
        super().__init__()
        self.body = copy.deepcopy(encoder.backbone).requires_grad_(True)
        self.out_channels = out_channels
        channels = preprocess_of(encoder).channels
        maps = self._probe(torch.zeros(2, channels, 160, 160))
        self.strides = [round(160 / level.shape[-1]) for level in maps]
        widths = [level.shape[1] for level in maps]
        self.pyramid = FeaturePyramidNetwork(widths, out_channels, extra_blocks=LastLevelMaxPool())

    @torch.no_grad()
    def _probe(self, images: Tensor) -> list[Tensor]:
        if not hasattr(self.body, "forward_intermediates"):
            raise InputError("detection needs an encoder with feature maps (a timm model such as resnet50)")
        self.eval()
        try:
            return self.maps(images)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"detection needs an encoder for images of any size, such as resnet50: {reason}") from None

    def maps(self, images: Tensor) -> list[Tensor]:
        """The last map of every resolution, finest first."""
        found: dict[int, Tensor] = {}
        for level in self.body.forward_intermediates(images, intermediates_only=True):  # type: ignore[operator]
            found[level.shape[-1]] = level
        return list(found.values())[-4:]

    def train(self, mode: bool = True) -> "PyramidBackbone":
        super().train(mode)
        for part in self.body.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()
        return self

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        levels = OrderedDict((str(i), level) for i, level in enumerate(self.maps(images)))
        made: OrderedDict[str, Tensor] = self.pyramid(levels)
        return made


def build_detector(encoder: Encoder, classes: int, how: DetectorTraining, *, seed: int = 0) -> nn.Module:
    """A Faster R-CNN (Mask R-CNN with `how.masks`) for `classes` kinds of objects; its heads are drawn from `seed`.

    Anchors are 8 strides wide on every level, at ratios 1:2, 1:1 and 2:1.
    """
    preprocess = preprocess_of(encoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = PyramidBackbone(encoder, how.pyramid_channels)
        strides = [*backbone.strides, 2 * backbone.strides[-1]]
        levels = [str(i) for i in range(len(backbone.strides))]
        shared: dict[str, Any] = {
            "num_classes": classes + 1,
            "min_size": how.min_size,
            "max_size": how.max_size,
            "image_mean": list(preprocess.mean),
            "image_std": list(preprocess.std),
            "rpn_anchor_generator": AnchorGenerator(
                tuple((8 * stride,) for stride in strides), ((0.5, 1.0, 2.0),) * len(strides)
            ),
            "rpn_post_nms_top_n_train": how.proposals,
            "rpn_post_nms_top_n_test": how.proposals,
            "box_batch_size_per_image": how.sampled,
            "box_roi_pool": MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2),
        }
        if how.masks:
            shared["mask_roi_pool"] = MultiScaleRoIAlign(levels, output_size=14, sampling_ratio=2)
        detector: nn.Module = (MaskRCNN if how.masks else FasterRCNN)(backbone, **shared)
        return detector


def train_detector(
    model: nn.Module, data: Annotated, how: DetectorTraining, *, seed: int, device: torch.device
) -> None:
    """Fine-tune all of `model` by SGD; images, their mirror images and sampled regions are drawn from `seed`."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # torchvision draws the regions that a step is trained on from the global generator
        _train(model.to(device).train(), data, how, seed=seed, device=device)


def _train(model: nn.Module, data: Annotated, how: DetectorTraining, *, seed: int, device: torch.device) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=how.lr, momentum=how.momentum, weight_decay=how.weight_decay)
    for step, (images, targets) in enumerate(_batches(data, how, seed)):
        for group in optimizer.param_groups:
            group["lr"] = how.rate(step)
        moved = [{name: value.to(device) for name, value in target.items()} for target in targets]
        loss = sum(model([image.to(device) for image in images], moved).values())
        if not torch.isfinite(loss):
            raise InputError(f"the detector's loss is {float(loss)} at step {step}: lower its learning rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _batches(
    data: Annotated, how: DetectorTraining, seed: int
) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    rng = np.random.default_rng(seed)
    rows: list[int] = []
    for _ in range(how.iterations):
        while len(rows) < how.batch_size:
            rows += rng.permutation(len(data)).tolist()
        batch, rows = rows[: how.batch_size], rows[how.batch_size :]
        pairs = [
            mirrored(data.image(row), data.target(row, masks=how.masks), flip=bool(rng.random() < 0.5)) for row in batch
        ]
        yield [image for image, _ in pairs], [target for _, target in pairs]


def mirrored(image: Tensor, target: dict[str, Tensor], *, flip: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Image [C, H, W] and target, or both seen in a mirror (left is right)."""
    if not flip:
        return image, target
    boxes = target["boxes"].clone()
    boxes[:, [0, 2]] = image.shape[-1] - target["boxes"][:, [2, 0]]
    turned = {**target, "boxes": boxes}
    if "masks" in target:
        turned["masks"] = target["masks"].flip(-1)
    return image.flip(-1), turned


@torch.no_grad()
def detect(model: nn.Module, data: Annotated, *, device: torch.device) -> list[dict[str, Any]]:
    """All detections in COCO's result format; with `segmentation` from a Mask R-CNN."""
    model.to(device).eval()
    found: list[dict[str, Any]] = []
    for row, image in enumerate(data.coco["images"]):
        (output,) = model([data.image(row).to(device)])
        found += _coco_results(output, image["id"], data.categories)
    return found


def _coco_results(output: dict[str, Tensor], image_id: int, categories: list[int]) -> list[dict[str, Any]]:
    boxes = output["boxes"].cpu().double().numpy()
    boxes[:, 2:] -= boxes[:, :2]
    results = [
        {"image_id": image_id, "category_id": categories[int(label) - 1], "bbox": box.tolist(), "score": float(score)}
        for box, label, score in zip(boxes, output["labels"], output["scores"], strict=True)
    ]
    if "masks" in output:
        encode = coco_tools().mask.encode
        for result, mask in zip(results, output["masks"].cpu().numpy(), strict=True):
            result["segmentation"] = encode(np.asfortranarray(mask[0] > 0.5, dtype=np.uint8))
    return results


@dataclass(frozen=True)
class Precision:
    """COCO's average precision over IoU .5 to .95, at .5 and at .75, and the bootstrap interval of the first."""

    ap: float
    ap50: float
    ap75: float
    interval: tuple[float, float]


RESAMPLES = 100
"""Bootstrap resamples of the test images."""


def coco_precision(results: list[dict[str, Any]], coco: Coco, kind: str = "bbox", *, seed: int = 0) -> Precision:
    """Evaluate results by faster-coco-eval (`kind`: bbox or segm), objects of all sizes, 100 detections per image."""
    if not results:
        return Precision(0.0, 0.0, 0.0, (0.0, 0.0))
    tools = coco_tools()
    with contextlib.redirect_stdout(io.StringIO()):
        truth = tools.COCO()
        # numbered from 1, whatever the file does: COCO's matching takes object 0 for no match
        objects = [{**item, "id": number} for number, item in enumerate(copy.deepcopy(coco["annotations"]), 1)]
        truth.dataset = {"info": {}, **copy.deepcopy(coco), "annotations": objects}
        truth.createIndex()
        evaluation = tools.COCOeval_faster(truth, truth.loadRes(copy.deepcopy(results)), kind, separate_eval=True)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        ap, ap50, ap75 = _accumulated(evaluation)
        interval = _resampled(evaluation, len(evaluation.params.imgIds), seed)
    return Precision(ap, ap50, ap75, interval)


def _accumulated(evaluation: Any) -> tuple[float, float, float]:
    evaluation.accumulate()
    precision = evaluation.eval["precision"]  # [IoU thresholds, recall, class, area, detections]; -1: no such class
    chosen = (precision, precision[:1], precision[5:6])
    return tuple(float(part[part > -1].mean()) if (part > -1).any() else 0.0 for part in chosen)  # type: ignore


def _resampled(evaluation: Any, n: int, seed: int) -> tuple[float, float]:
    """Percentile bootstrap: per-image matches are kept, images are drawn again with replacement."""
    rng = np.random.default_rng(seed)
    matches, values = evaluation._evalImgs_cpp, []
    for _ in range(RESAMPLES):
        rows = rng.integers(n, size=n)
        evaluation._evalImgs_cpp = [matches[start + row] for start in range(0, len(matches), n) for row in rows]
        values.append(_accumulated(evaluation)[0])
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True, eq=False)
class Detection:
    """Fine-tune a detector on the training images, score it on the test images."""

    train: Annotated
    test: Annotated
    how: DetectorTraining = field(default_factory=DetectorTraining)
    baselines: ClassVar[tuple[str, ...]] = ("random-init",)

    @property
    def name(self) -> str:
        return "mask-rcnn" if self.how.masks else "faster-rcnn"

    def score(self, task: Task) -> Score:
        """COCO's box AP; AP50, AP75 and the masks' precision in the details."""
        coco_tools()  # a missing package is better learnt of before training
        model = build_detector(task.encoder, len(self.train.categories), self.how, seed=task.seed)
        train_detector(model, self.train, self.how, seed=task.seed, device=task.device)
        results = detect(model, self.test, device=task.device)
        boxes = coco_precision(results, self.test.coco, seed=task.seed)
        details: dict[str, Any] = {"AP50": boxes.ap50, "AP75": boxes.ap75}
        if self.how.masks:
            details["masks"] = asdict(coco_precision(results, self.test.coco, "segm", seed=task.seed))
        settings = {**asdict(self.how), "encoder_mode": "train, BatchNorm statistics frozen"}
        return Score("box AP", boxes.ap, boxes.interval, len(self.test), len(self.train), settings, details)


def evaluate_detection(
    run: Run | Encoder | str | Path,
    train: tuple[str | Path, Coco],
    test: tuple[str | Path, Coco],
    how: DetectorTraining | None = None,
    *,
    seed: int = 0,
    **settings: Unpack[Settings],
) -> Result:
    """Fine-tune and score a detector on (folder of images, annotations) pairs; see `read_coco` and `read_voc`.

    Raises:
        InputError: faster-coco-eval is missing, images are missing, the two parts name different categories, or the
            encoder has no feature maps.
    """
    encoder = run if isinstance(run, Encoder) else load_encoder(run)
    channels = preprocess_of(encoder).channels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # the tables say what of a folder is taken, and lie in it
        fit, check = (Annotated.match(open_source(folder, channels=channels), coco) for folder, coco in (train, test))
    if fit.categories != check.categories:
        raise InputError(f"the two parts name different categories: {fit.categories} and {check.categories}")
    splits = Splits(fit.images, check.images, "as given: fine-tuned on the first part, scored on the second")
    (result,) = measure(run, splits, [Detection(fit, check, how or DetectorTraining())], seed=seed, **settings)
    return result


def detection_on_folder(
    run: Run | Encoder | str | Path,
    root: str | Path,
    *,
    masks: bool = False,
    seed: int = 0,
    **settings: Unpack[Settings],
) -> Result:
    """`evaluate_detection` with the usual schedule on a folder in VOC's or COCO's layout (see `find_parts`)."""
    train, test = find_parts(root)
    return evaluate_detection(run, train, test, DetectorTraining(masks=masks), seed=seed, **settings)
