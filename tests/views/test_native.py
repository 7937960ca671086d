from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from barlow.views import RECIPES, ViewMaker, get_recipe, native
from barlow.views.geometry import Boxes, draw_boxes, resample
from barlow.views.random import Stream
from barlow.views.recipes import ViewRecipe

needs_compiler = pytest.mark.skipif(native.library() is None, reason="no C compiler, or BARLOW_NATIVE=0")
IMAGE_RECIPES = [name for name, recipe in RECIPES.items() if recipe.kind == "image"]


@pytest.fixture
def fresh() -> Iterator[None]:
    """Ask anew whether there is a library, and again afterwards."""
    native.library.cache_clear()
    yield
    native.library.cache_clear()


def both(recipe: str, images: Tensor, monkeypatch: pytest.MonkeyPatch, size: int) -> list[tuple[Tensor, Tensor]]:
    """Every view by the compiled loops and by torch."""
    channels = images.shape[1]
    settings: dict[str, Any] = {"channels": channels, "mean": [0.5] * channels, "std": [0.25] * channels, "seed": 1}
    make, ids = ViewMaker(get_recipe(recipe), image_size=size, **settings), torch.arange(len(images))
    compiled = make(images, ids, 3)
    with monkeypatch.context() as patch:
        patch.setattr(native, "library", lambda: None)
        by_torch = make(images, ids, 3)
    return list(zip(compiled, by_torch, strict=True))


@needs_compiler
@pytest.mark.parametrize("name", IMAGE_RECIPES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_small_views_are_those_of_torch(
    patches: Tensor, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = patches if dtype == torch.uint8 else patches.float() / 255
    for compiled, by_torch in both(name, images, monkeypatch, 32):
        assert torch.allclose(compiled, by_torch, atol=2e-4)


@needs_compiler
@pytest.mark.parametrize("name", ["imagenet", "grayscale"])
def test_large_views_are_those_of_torch(photos: list[Tensor], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.stack(photos) if name == "imagenet" else torch.stack(photos)[:, :1]
    for compiled, by_torch in both(name, images, monkeypatch, 99):
        assert torch.allclose(compiled, by_torch, atol=2e-4)


@needs_compiler
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_views_of_any_number_of_channels_are_those_of_torch(
    patches: Tensor, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.cat([patches, patches.flip(3)], dim=1)[:, :channels]
    for compiled, by_torch in both("multispectral", images, monkeypatch, 24):
        assert torch.allclose(compiled, by_torch, atol=2e-4)


@needs_compiler
@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "view"), [((32, 32), 32), ((48, 31), 17), ((7, 40), 48), ((2, 2), 5)])
@pytest.mark.parametrize("layout", ["planar", "channels last", "float", "window"])
def test_crops_are_those_of_the_matrices(
    photos: list[Tensor], kind: str, size: tuple[int, int], view: int, layout: str
) -> None:
    height, width = size
    images = torch.stack([photos[i % 2][:, 50 * i : 50 * i + height, 60 * i : 60 * i + width] for i in range(6)])
    if layout == "channels last":
        images = images.contiguous(memory_format=torch.channels_last)
    if layout == "float":
        images = images.float() * 3 - 200
    if layout == "window":
        images = torch.cat([images, images], dim=3)[..., width // 2 : width // 2 + width]
    which = torch.tensor([5, 0, 3, 3, 1])
    recipe = ViewRecipe(interpolation=kind, vertical_flip=0.5)
    boxes = draw_boxes(Stream.of(0, 0, torch.arange(5), [0]), recipe, height, width, view)
    out = native.resample(images, which, boxes.fields, kind, torch.empty(5, 3, view, view))
    expected = resample(images[which], Boxes(boxes.fields, view, kind))
    assert torch.allclose(out, expected, atol=2e-5 * 255, rtol=2e-5)


@needs_compiler
def test_threads_change_nothing(patches: Tensor) -> None:
    make = ViewMaker(get_recipe("imagenet"), image_size=32, channels=3, mean=[0.5] * 3, std=[0.25] * 3, seed=0)
    ids, before = torch.arange(len(patches)), torch.get_num_threads()
    views = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            views.append(make(patches, ids, 0))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*views, strict=True))


@needs_compiler
def test_bytes_in_any_strides_become_planes(photos: list[Tensor]) -> None:
    cuts = torch.stack(photos)[:, :, 3:36, 5:24]
    for layout in (cuts, cuts.contiguous(), cuts[:, :2], cuts.flip(1), cuts.mT):
        assert torch.equal(native.planes(layout, torch.empty(layout.shape)), layout.float())


@pytest.mark.parametrize("how", [{"BARLOW_NATIVE": "0"}, {"CC": "no-such-compiler"}, {"CC": "false"}])
def test_without_a_compiler_torch_makes_the_views(
    how: dict[str, str], tmp_path: Path, patches: Tensor, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    for name, value in {**how, "BARLOW_CACHE": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    assert native.library() is None
    make = ViewMaker(get_recipe("cifar"), image_size=32, channels=3, mean=[0.5] * 3, std=[0.25] * 3, seed=0)
    assert len(make(patches, torch.arange(len(patches)), 0)) == 2


@needs_compiler
def test_the_library_is_built_once_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    monkeypatch.setenv("BARLOW_CACHE", str(tmp_path))
    assert native.library() is not None
    (built,) = (tmp_path / "native").glob("*.so")
    monkeypatch.setattr("subprocess.run", None)  # a second build would fail
    native.library.cache_clear()
    assert native.library() is not None
    assert list((tmp_path / "native").iterdir()) == [built]


@needs_compiler
def test_a_folder_that_others_can_write_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    (tmp_path / "native").mkdir()
    (tmp_path / "native").chmod(0o777)
    monkeypatch.setenv("BARLOW_CACHE", str(tmp_path))
    assert native.library() is None
