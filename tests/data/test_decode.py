"""Decoded pixels equal what was written, in every format and mode; what cannot be decoded says why."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch
from PIL import Image

from barlow.data import CorruptSample, open_source
from barlow.data.decode import MAX_PIXELS, Form, natural_form, open_image

RGB8 = Form(3, torch.uint8)
GRAY8 = Form(1, torch.uint8)


def pixels(*shape: int, dtype: Any = np.uint8, seed: int = 0) -> npt.NDArray[Any]:
    top = 256 if dtype == np.uint8 else 65536
    return np.random.default_rng(seed).integers(0, top, shape).astype(dtype)


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


def decoded(data: bytes, form: Form) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = open_image(data, form, "x").decode()[0].numpy()
    return array


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png16(array: npt.NDArray[np.uint16]) -> bytes:
    """[H, W, C] as a 16-bit PNG, which Pillow cannot write in colour; row r has filter r % 5."""
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[array.shape[2]]
    step = 2 * array.shape[2]
    rows = [row.astype(">u2").tobytes() for row in array]
    above = [bytes(len(rows[0])), *rows[:-1]]
    body = b"".join(filtered(r % 5, row, up, step) for r, (row, up) in enumerate(zip(rows, above, strict=True)))
    return png(array.shape[1], array.shape[0], 16, colour, body)


def filtered(kind: int, row: bytes, above: bytes, step: int) -> bytes:
    """One row's bytes less their prediction, as the PNG specification words it, byte by byte."""
    out = bytearray([kind])
    for i, value in enumerate(row):
        a, b, c = row[i - step] if i >= step else 0, above[i], above[i - step] if i >= step else 0
        p = a + b - c
        paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
        out.append((value - (0, a, b, (a + b) // 2, paeth)[kind]) % 256)
    return bytes(out)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_return_the_pixels_written(file_format: str) -> None:
    image = pixels(9, 7, 3)
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(Image.fromarray(image), file_format, **options)
    np.testing.assert_array_equal(decoded(data, RGB8), image.transpose(2, 0, 1))


def test_jpeg_is_within_its_own_loss_of_the_image() -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 64)[None, :, None], (64, 64, 3)).astype(np.uint8)
    data = encoded(Image.fromarray(ramp), "JPEG", quality=95)
    assert np.abs(decoded(data, RGB8).transpose(1, 2, 0).astype(int) - ramp).max() <= 3


def test_gif_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (6, 5), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decoded(data, RGB8)[:, 0, 0], [255, 0, 0])


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGB", 3), ("RGBA", 3)],
)
def test_a_mode_is_gray_or_colour_and_alpha_is_no_channel(mode: str, channels: int) -> None:
    data = encoded(Image.fromarray(pixels(8, 8, 3)).convert(mode), "PNG")
    assert natural_form(data, "x") == Form(channels, torch.uint8)
    assert decoded(data, RGB8).shape == (3, 8, 8)


def test_cmyk_jpeg_decodes_to_rgb() -> None:
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    red = decoded(data, RGB8)[:, 4, 4].astype(int)
    assert red[0] > 240
    assert red[1:].max() < 15


def test_transparent_pixels_show_white_not_their_hidden_colour() -> None:
    image = np.zeros((4, 4, 4), np.uint8)
    image[:2, :, 3] = 255  # opaque black above, transparent black below
    data = encoded(Image.fromarray(image), "PNG")
    assert decoded(data, RGB8)[:, 0].max() == 0
    assert decoded(data, RGB8)[:, 3].min() == 255
    assert decoded(data, GRAY8)[0, 3].min() == 255
    np.testing.assert_array_equal(decoded(data, Form(4, torch.uint8, rgba=True)), image.transpose(2, 0, 1))


def test_palette_transparency_shows_white() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert decoded(encoded(image, "PNG", transparency=0), RGB8).min() == 255


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_png_keeps_its_depth_under_every_row_filter(channels: int) -> None:
    image = pixels(11, 6, channels, dtype=np.uint16)
    data = png16(image)
    assert natural_form(data, "x") == Form(channels, torch.float32)
    expected = image.transpose(2, 0, 1).astype(np.float32) / 65535
    np.testing.assert_allclose(decoded(data, Form(channels, torch.float32)), expected, atol=1e-7)


def test_sixteen_bit_png_with_alpha_is_laid_over_white() -> None:
    image = np.zeros((4, 4, 4), np.uint16)
    image[:2, :, 3] = 65535
    found = decoded(png16(image), Form(3, torch.float32))
    assert found[:, :2].max() == 0
    assert found[:, 2:].min() == 1


def test_damaged_sixteen_bit_png_is_corrupt() -> None:
    data = bytearray(png16(pixels(11, 6, 3, dtype=np.uint16)))
    data[60] ^= 255
    with pytest.raises(CorruptSample, match="checksum"):
        decoded(bytes(data), Form(3, torch.float32))
    with pytest.raises(CorruptSample):
        decoded(bytes(data[:100]), Form(3, torch.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 5, 32])
def test_tiff_stacks_keep_every_channel_and_value(dtype: Any, channels: int) -> None:
    image = pixels(channels, 6, 7, dtype=np.uint16).astype(dtype)
    out = io.BytesIO()
    tifffile.imwrite(out, image, photometric="minisblack")
    scale = {np.uint8: 1, np.uint16: 65535, np.float32: 1}[dtype]
    form = natural_form(out.getvalue(), "x")
    assert form == Form(channels, torch.uint8 if dtype == np.uint8 else torch.float32)
    np.testing.assert_allclose(decoded(out.getvalue(), form), image.astype(np.float64) / scale, rtol=1e-6)


def test_tiff_with_channels_last_and_with_compression_reads_the_same() -> None:
    image = pixels(6, 7, 4, dtype=np.uint16)
    plain, packed = io.BytesIO(), io.BytesIO()
    tifffile.imwrite(plain, image, photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(packed, image, photometric="minisblack", planarconfig="contig", compression="zlib")
    form = Form(4, torch.float32)
    np.testing.assert_array_equal(decoded(plain.getvalue(), form), decoded(packed.getvalue(), form))
    np.testing.assert_allclose(decoded(plain.getvalue(), form), image.transpose(2, 0, 1) / 65535, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_big_endian_tiff_reads_as_little_endian(dtype: Any) -> None:
    image = pixels(3, 6, 7, dtype=np.uint16).astype(dtype)
    big, little = io.BytesIO(), io.BytesIO()
    tifffile.imwrite(big, image, photometric="minisblack", byteorder=">")
    tifffile.imwrite(little, image, photometric="minisblack", byteorder="<")
    form = Form(3, torch.float32)
    np.testing.assert_array_equal(decoded(big.getvalue(), form), decoded(little.getvalue(), form))


def test_lzw_sixteen_bit_gray_tiff_needs_no_further_package() -> None:
    image = pixels(8, 9, dtype=np.uint16)
    data = encoded(Image.fromarray(image), "TIFF", compression="tiff_lzw")
    np.testing.assert_allclose(decoded(data, Form(1, torch.float32))[0], image / 65535, atol=1e-7)


@pytest.mark.parametrize("shape", [(6, 7), (5, 6, 7), (6, 7, 3)])
def test_npy_files_find_their_channel_axis(shape: tuple[int, ...]) -> None:
    image = pixels(*shape)
    out = io.BytesIO()
    np.save(out, image)
    expected = image[None] if image.ndim == 2 else image.transpose(2, 0, 1) if shape[-1] == 3 else image
    np.testing.assert_array_equal(decoded(out.getvalue(), Form(len(expected), torch.uint8)), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(orientation: int) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12] = (255, 0, 0)  # red in the upper left corner
    stored = {  # what undoes the turn that a viewer makes (EXIF 2.32, orientation)
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    deep = io.BytesIO()
    tag = (0x0112, "H", 1, orientation, True)
    tifffile.imwrite(deep, stored.astype(np.uint16) * 257, photometric="rgb", extratags=[tag])
    eight_bit = (encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif) for kind in ("PNG", "TIFF"))
    for data in (*eight_bit, deep.getvalue()):
        image = open_image(data, RGB8, "x")
        assert (image.height, image.width) == (16, 24)
        np.testing.assert_array_equal(image.decode()[0].numpy(), upright.transpose(2, 0, 1))


def test_a_jpeg_decodes_reduced_where_allowed_and_others_do_not() -> None:
    smooth = Image.fromarray(np.add.outer(np.arange(64), np.arange(96)).astype(np.uint8))
    jpeg, used = open_image(encoded(smooth, "JPEG"), GRAY8, "x").decode(4)
    assert (tuple(jpeg.shape), used) == ((1, 16, 24), 4)
    whole, used = open_image(encoded(smooth, "PNG"), GRAY8, "x").decode(4)
    assert (tuple(whole.shape), used) == ((1, 64, 96), 1)


def test_gray_and_eight_bit_images_are_brought_to_the_form_asked_for() -> None:
    gray = encoded(Image.fromarray(pixels(4, 4)), "PNG")
    np.testing.assert_array_equal(decoded(gray, RGB8), np.repeat(decoded(gray, GRAY8), 3, axis=0))
    np.testing.assert_allclose(decoded(gray, Form(1, torch.float32)), decoded(gray, GRAY8) / 255, atol=1e-7)
    deep = png16(pixels(4, 4, 1, dtype=np.uint16))
    expected = np.rint(decoded(deep, Form(1, torch.float32)) * 255)
    np.testing.assert_array_equal(decoded(deep, GRAY8), expected)


def bomb_png(side: int) -> bytes:
    """A PNG whose header promises side x side pixels; its body is nearly nothing."""
    return png(side, side, 8, 0, b"\0" * 1000)


def progressive_jpeg(width: int, height: int) -> bytes:
    """A small progressive JPEG whose frame header promises another size."""
    data = bytearray(encoded(Image.new("RGB", (16, 16)), "JPEG", progressive=True))
    at = data.index(b"\xff\xc2")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


GOOD = encoded(Image.fromarray(pixels(16, 16, 3)), "PNG")
NOTHING = io.BytesIO()
np.save(NOTHING, np.array([{}], dtype=object))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"hello, this is text", "not an image"),
        (GOOD[: len(GOOD) // 2], ".+"),
        (encoded(Image.fromarray(pixels(64, 64, 3)), "JPEG")[:900], "truncated"),
        (b"\xff\xd8\xff", ".+"),
        (b"II*\0" + b"\0" * 20, ".+"),
        (encoded(Image.new("RGB", (1, 1)), "PNG"), "1x1 pixels: under 2 a side"),
        (encoded(Image.new("RGB", (1, 50)), "PNG"), "1x50 pixels: under 2 a side"),
        (bomb_png(20_000), f"20000x20000 pixels: over the limit of {MAX_PIXELS:,}"),
        (progressive_jpeg(20_000, 20_000), "over the limit"),
        (NOTHING.getvalue(), "Object arrays"),
    ],
    ids=[
        "empty",
        "text",
        "half-png",
        "half-jpeg",
        "magic",
        "tiff-header",
        "1x1",
        "1x50",
        "bomb",
        "progressive-bomb",
        "objects",
    ],
)
def test_what_cannot_be_decoded_says_which_and_why(data: bytes, reason: str) -> None:
    with pytest.raises(CorruptSample, match=reason) as raised:
        open_image(data, RGB8, "photos/x.jpg").decode()
    assert raised.value.key == "photos/x.jpg"
    assert raised.value.reason
    assert "\n" not in str(raised.value)


def test_a_huge_baseline_jpeg_is_reduced_below_the_limit() -> None:
    side = 9_600  # 92 million pixels, just over
    image = Image.new("L", (side, side), 128)
    data = encoded(image, "JPEG")
    found, used = open_image(data, GRAY8, "x").decode()
    assert (tuple(found.shape), used) == ((1, side // 2, side // 2), 2)
    assert int(found.min()) == int(found.max()) == 128


def test_nan_pixels_are_corrupt(tmp_path: Path) -> None:
    for i in range(3):
        image = np.full((4, 4), i, np.float32)
        image[0, 0] = np.nan if i == 1 else 0
        np.save(tmp_path / f"{i}.npy", image)
    source = open_source(tmp_path)
    with pytest.raises(CorruptSample, match="NaN"):
        source.read(1)
    assert float(source.read(2)[0, 1, 1]) == 2


def test_channels_that_do_not_fit_the_data_set_are_corrupt() -> None:
    out = io.BytesIO()
    np.save(out, pixels(5, 8, 8))
    with pytest.raises(CorruptSample, match="has 5 channels where the data set has 3"):
        open_image(out.getvalue(), RGB8, "x").decode()
