from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms.v2 import functional

from barlow.data import open_source
from barlow.errors import InputError
from barlow.models import Preprocess

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def photo() -> torch.Tensor:
    return torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)


@pytest.mark.parametrize(("size", "resize"), [(224, 256), (96, 0), (64, 80)])
def test_it_is_torchvisions_resize_centre_crop_and_normalise(size: int, resize: int) -> None:
    image = photo()
    preprocess = Preprocess(size, 3, MEAN, STD, resize=resize)
    resized = functional.resize(image, [resize or size], functional.InterpolationMode.BICUBIC, antialias=True)
    cropped = functional.center_crop(resized, [size, size])
    apart = (preprocess.fit(image[None])[0].float() - cropped.float()).abs()
    assert apart.max() <= 3  # grey levels: torchvision's 8-bit kernel has fixed-point weights
    assert apart.mean() < 0.2
    expected = functional.normalize(cropped.float() / 255, list(MEAN), list(STD))
    torch.testing.assert_close(preprocess(cropped)[0], expected, rtol=0, atol=1e-6)


def test_images_of_the_right_size_are_only_normalised() -> None:
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    expected = (image.double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(Preprocess(8, 3, MEAN, STD)(image).double(), expected, rtol=0, atol=1e-6)


def test_a_file_and_its_pixels_give_the_same(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    preprocess = Preprocess(16, 3, MEAN, STD)
    stored = torch.from_numpy(pixels).permute(2, 0, 1)
    torch.testing.assert_close(preprocess.image(tmp_path / "x.png"), preprocess(stored), rtol=0, atol=0)


def test_a_photo_on_its_side_and_a_transparent_one_are_read_as_a_data_source_reads_them(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels[..., :3]).save(tmp_path / "sideways.png", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "transparent.png")
    for channels in (1, 3):
        preprocess = Preprocess(16, channels, MEAN[:channels], STD[:channels])
        source = open_source(tmp_path, channels=channels)
        for i, key in enumerate(source.keys):
            expected = preprocess(source.read(i))
            torch.testing.assert_close(preprocess.image(tmp_path / key), expected, rtol=0, atol=0)


def test_sixteen_bits_are_not_cut_off_at_eight(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "deep.tif")
    preprocess = Preprocess(8, 1, (0.0,), (1.0,), scale=1.0)
    with Image.open(tmp_path / "deep.tif") as opened:
        for image in (opened, tmp_path / "deep.tif"):
            torch.testing.assert_close(preprocess.image(image), torch.full((1, 1, 8, 8), 40_000 / 65535))


def test_an_image_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"x\.png: not an image"):
        Preprocess(8, 3, MEAN, STD).image(tmp_path / "x.png")
    with pytest.raises(InputError, match="has 3 channels where the data set has 5"):
        Preprocess(8, 5, (0.5,) * 5, (0.2,) * 5).image(Image.new("RGB", (8, 8)))


def test_it_survives_its_dictionary_and_refuses_another() -> None:
    preprocess = Preprocess(8, 3, MEAN, STD, resize=9)
    assert Preprocess.from_dict(preprocess.to_dict()) == preprocess
    with pytest.raises(InputError, match="unknown field 'crop'"):
        Preprocess.from_dict({**preprocess.to_dict(), "crop": 3})


def test_mistakes_are_told() -> None:
    with pytest.raises(InputError, match="reads 3 channels, got 1"):
        Preprocess(8, 3, MEAN, STD)(torch.zeros(1, 1, 8, 8))
    with pytest.raises(InputError, match="one value per channel"):
        Preprocess(8, 2, MEAN, STD)
    with pytest.raises(InputError, match="Did you mean 'bicubic'"):
        Preprocess(8, 3, MEAN, STD, interpolation="bicubc")
