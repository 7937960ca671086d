from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from barlow.errors import InputError
from barlow.views import ViewMaker, get_recipe, grid


def maker(name: str, channels: int = 3, size: int = 32) -> ViewMaker:
    return ViewMaker(
        get_recipe(name), image_size=size, channels=channels, mean=(0.4,) * channels, std=(0.2,) * channels, seed=0
    )


def contains(picture: np.ndarray, patch: np.ndarray) -> bool:
    """Whether the patch [h, w, 3] stands somewhere in the picture, exactly."""
    windows = np.lib.stride_tricks.sliding_window_view(picture[:, :, 0], patch.shape[:2])
    candidates = np.argwhere((windows[:, :, ::9, ::9] == patch[::9, ::9, 0]).all(axis=(2, 3)))
    return any((picture[y : y + len(patch), x : x + patch.shape[1]] == patch).all() for y, x in candidates)


def test_grid_shows_the_originals_and_the_views_that_training_sees(patches: Tensor, tmp_path: Path) -> None:
    make = maker("cifar")
    path = grid(list(patches[:3]), make, tmp_path / "grid.png", ids=[5, 6, 7], epochs=2)
    picture = np.array(Image.open(path))
    views = make.finish([c[None] for c in make.cut(patches[1], make.boxes(6, 1, 32, 32))], torch.tensor([6]), 1)
    for image in (patches[1].float(), *(255 * make.unnormalise(view[0]) for view in views)):
        shown = image.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        factor = 5
        assert contains(picture, shown.repeat(factor, 0).repeat(factor, 1))


@pytest.mark.parametrize(("channels", "recipe"), [(1, "digits"), (2, "multispectral"), (6, "multispectral")])
def test_grid_shows_any_number_of_channels_and_floats(
    patches: Tensor, tmp_path: Path, channels: int, recipe: str
) -> None:
    images = [patch[:1].repeat(channels, 1, 1).float() * 17 - 900 for patch in patches[:2]]
    path = grid(images, maker(recipe, channels), tmp_path / "grid.png", epochs=1)
    picture = np.array(Image.open(path)).astype(int)
    gray = np.abs(picture - picture.mean(axis=2, keepdims=True)).max()
    assert (gray < 5) == (channels < 3)  # fewer than three channels are shown as gray
    assert picture.std() > 30


def test_grid_makes_its_folder_and_tells_of_no_images_and_of_what_cannot_be_written(
    patches: Tensor, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="needs at least one image"):
        grid([], maker("cifar"), tmp_path / "grid.png")
    assert grid([patches[0]], maker("cifar"), tmp_path / "new" / "grid.png", epochs=1).is_file()
    with pytest.raises(InputError, match=r"Cannot write .*Not a directory"):
        grid([patches[0]], maker("cifar"), tmp_path / "new" / "grid.png" / "below" / "x.png", epochs=1)
