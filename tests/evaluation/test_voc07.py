"""VOC07: 11-point precision by hand, difficult samples, and the whole protocol on a small folder in VOC layout."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from barlow.errors import InputError
from barlow.evaluation import evaluate
from barlow.evaluation.voc07 import area_ap, eleven_point_ap, mean_ap, voc07
from barlow.models import Encoder, Preprocess, build_encoder


def test_eleven_point_precision_by_hand() -> None:
    # ranking: right, wrong, right, wrong; recall .5 at precision 1, recall 1 at precision 2/3
    found = eleven_point_ap(np.array([True, False, True, False]), np.array([4.0, 3.0, 2.0, 1.0]))
    assert found == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert eleven_point_ap(np.array([True, True, False]), np.array([3.0, 2.0, 1.0])) == 1.0
    assert np.isnan(eleven_point_ap(np.array([False]), np.array([1.0])))


def test_the_area_under_the_curve_is_vissls_average_precision() -> None:
    rng = np.random.default_rng(0)
    present, scores = rng.random(200) < 0.2, rng.standard_normal(200)
    ranked = present[np.argsort(-scores)]
    precision, recall = ranked.cumsum() / np.arange(1, 201), ranked.cumsum() / ranked.sum()
    steps = np.diff(recall, prepend=0.0)
    expected = sum(step * precision[i:].max() for i, step in enumerate(steps))  # the envelope, integrated
    assert area_ap(present, scores) == pytest.approx(expected)
    assert area_ap(present, scores) != pytest.approx(eleven_point_ap(present, scores), abs=1e-3)
    assert np.isnan(area_ap(np.array([False]), np.array([1.0])))


def test_difficult_samples_of_a_class_do_not_count_for_it() -> None:
    labels = np.array([[1, 1], [0, -1], [-1, 1]])
    scores = np.array([[0.5, 3.0], [0.9, 2.0], [0.1, 1.0]])
    value, each = mean_ap(labels, scores)
    assert each[0] == 1.0  # the sample ranked first is difficult
    assert each[1] == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert value == pytest.approx(np.mean(each))


class Channels(nn.Module):
    """Mean of each colour channel: tells which colours are there."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean(dim=(2, 3)), torch.ones(len(x), 1)], dim=1)


def colours(root: Path, n: int = 40) -> Path:
    """Images with red, green, both or neither; one difficult label each split."""
    (root / "JPEGImages").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lists: dict[tuple[str, str], list[str]] = {}
    for index in range(2 * n):
        split, there = ("trainval" if index < n else "test"), rng.random(2) < 0.5
        pixels = rng.integers(0, 60, (12, 12, 3))
        for channel, name in enumerate(("red", "green")):
            pixels[..., channel] += 150 * there[channel]
            label = 0 if index % n == channel else (1 if there[channel] else -1)
            lists.setdefault((name, split), []).append(f"{index:06d} {label:2d}\n")
        Image.fromarray(pixels.astype(np.uint8)).save(root / "JPEGImages" / f"{index:06d}.png")
    for (name, split), lines in lists.items():
        (root / "ImageSets" / "Main" / f"{name}_{split}.txt").write_text("".join(lines))
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("")
    return root


def encoder(module: nn.Module) -> Encoder:
    built = build_encoder(module, channels=3, image_size=12)
    built.preprocess = Preprocess(12, 3, (0.0,) * 3, (1.0,) * 3)
    return built


def test_features_that_tell_the_colours_score_one_and_constant_ones_do_not(tmp_path: Path) -> None:
    root = colours(tmp_path / "VOC2007")
    (result,) = evaluate(encoder(Channels()), root, ("voc07-svm",), baselines=("raw-pixels",))
    assert result.value == pytest.approx(1.0)
    assert (result.metric, result.n, result.n_train) == ("11-point mAP", 40, 40)
    assert set(result.details["per_class"]) == {"red", "green"}
    assert result.details["mAP, area under the curve"] == pytest.approx(1.0)
    assert "raw-pixels" in result.baselines

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(len(x), 3)

    assert voc07(encoder(Constant()), root, baselines=()).value < 0.75


def test_folders_in_another_layout_are_refused(tmp_path: Path) -> None:
    root = colours(tmp_path / "VOC2007")
    with pytest.raises(InputError, match="VOCdevkit"):
        voc07(encoder(Channels()), root, splits=("train", "test"))
    next((root / "JPEGImages").iterdir()).unlink()
    with pytest.raises(InputError, match="disagree"):
        voc07(encoder(Channels()), root)


@pytest.mark.parametrize("line", ["image", "image one", "image 2", "image 1 1"])
def test_a_list_of_other_content_is_named(line: str, tmp_path: Path) -> None:
    root = colours(tmp_path / "VOC2007")
    file = sorted((root / "ImageSets" / "Main").glob("*_trainval.txt"))[0]
    file.write_text(file.read_text() + f"{line}\n")
    with pytest.raises(InputError, match=rf"{file.name} is damaged") as told:
        voc07(encoder(Channels()), root)
    assert "\n" not in str(told.value)
