"""A TIFF means the same picture at every depth, photometric interpretation, planar layout and kind of extra sample."""

import io
import struct
import zlib
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch
from PIL import Image

from barlow.data import CorruptSample, open_source
from barlow.data.decode import Form, natural_form, open_image
from barlow.errors import InputError

Array = npt.NDArray[Any]
WHITE, BLACK, RGB, PALETTE = range(4)  # PhotometricInterpretation
UNSPECIFIED, PREMULTIPLIED, STRAIGHT = range(3)  # ExtraSamples
HEIGHT, WIDTH = 5, 7


def tiff(
    samples: Array,
    bits: int,
    photometric: int,
    *,
    planar: bool = False,
    extra: tuple[int, ...] = (),
    palette: Array | None = None,
    deflate: bool = False,
    orientation: int = 1,
) -> bytes:
    """[S, H, W] written by hand as TIFF 6.0 words it, so that no writer's habits hide a reader's."""
    count, height, width = samples.shape
    planes = samples if planar else samples.transpose(1, 2, 0).reshape(1, height, width * count)
    strips = [packed(plane, bits) for plane in planes]
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [bits] * count),
        259: ("H", [8 if deflate else 1]),
        262: ("H", [photometric]),
        273: ("I", [0] * len(strips)),
        274: ("H", [orientation]),
        277: ("H", [count]),
        278: ("I", [height]),
        279: ("I", [len(strip) for strip in strips]),
        284: ("H", [2 if planar else 1]),
        339: ("H", [3 if samples.dtype.kind == "f" else 1] * count),
    }
    if palette is not None:
        tags[320] = ("H", palette.flatten().tolist())
    if extra:
        tags[338] = ("H", list(extra))
    body = 8 + 2 + 12 * len(tags) + 4
    at = body + sum(size for _, values in tags.values() if (size := struct.calcsize(f"{len(values)}{_}")) > 4)
    tags[273] = ("I", [at + sum(map(len, strips[:i])) for i in range(len(strips))])
    entries, values_behind = b"", b""
    for tag, (kind, values) in sorted(tags.items()):
        data = struct.pack(f"<{len(values)}{kind}", *values)
        place = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<I", body + len(values_behind))
        values_behind += data if len(data) > 4 else b""
        entries += struct.pack("<HHI", tag, {"H": 3, "I": 4}[kind], len(values)) + place
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + values_behind + b"".join(strips)


def packed(rows: Array, bits: int) -> bytes:
    """Whole bytes little-endian, smaller samples from the highest bit on, every row from a byte of its own."""
    if bits in (8, 16, 32):
        return rows.astype(rows.dtype.newbyteorder("<")).tobytes()
    digits = (rows[..., None].astype(int) >> np.arange(bits)[::-1]) & 1
    return np.packbits(digits.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def random_samples(count: int, bits: int) -> Array:
    rng = np.random.default_rng(bits + 100 * count)
    if bits == 32:
        return rng.random((count, HEIGHT, WIDTH), np.float32)
    return rng.integers(0, 2**bits, (count, HEIGHT, WIDTH)).astype(np.uint16 if bits > 8 else np.uint8)


def meant(samples: Array, bits: int, photometric: int, extra: tuple[int, ...], palette: Array | None) -> Array:
    """[C, H, W] float64 in [0, 1], over white: the specification, word by word."""
    values = samples.astype(np.float64) / (1 if samples.dtype.kind == "f" else 2**bits - 1)
    colours = 3 if photometric == RGB else 1
    colour = values[:colours]
    opacities = [values[colours + i] for i, kind in enumerate(extra) if kind != UNSPECIFIED]
    alpha = opacities[0] if opacities else np.ones(values.shape[1:])
    if palette is not None:
        colour = (palette // 256)[:, samples[0]] / 255
    if PREMULTIPLIED in extra:
        colour = np.divide(colour, alpha, out=np.zeros_like(colour), where=alpha > 0)
    if photometric == WHITE:
        colour = 1 - colour
    bands = np.concatenate([colour, *(values[colours + i][None] for i, k in enumerate(extra) if k == UNSPECIFIED)])
    return np.asarray(bands * alpha + 1 - alpha)


EXTRAS = [
    (),
    (UNSPECIFIED,),
    (PREMULTIPLIED,),
    (STRAIGHT,),
    (UNSPECIFIED, STRAIGHT),
    (STRAIGHT, UNSPECIFIED),
    (UNSPECIFIED, UNSPECIFIED, UNSPECIFIED),
]


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16, 32])
@pytest.mark.parametrize("photometric", [WHITE, BLACK, RGB, PALETTE])
def test_a_tiff_is_read_as_the_specification_words_it(bits: int, photometric: int) -> None:
    if photometric == PALETTE and bits == 32:
        return  # there are no palettes of floats
    colours = 3 if photometric == RGB else 1
    palette = None
    if photometric == PALETTE:
        palette = np.random.default_rng(0).integers(0, 65536, (3, 2**bits))
    for extra, planar, deflate in product(EXTRAS, (False, True), (False, True)):
        samples = random_samples(colours + len(extra), bits)
        if PREMULTIPLIED in extra:
            if palette is not None:
                continue  # an index is not multiplied
            samples[:colours] = np.minimum(samples[:colours], samples[colours:])
        data = tiff(samples, bits, photometric, planar=planar, extra=extra, palette=palette, deflate=deflate)
        expected = meant(samples, bits, photometric, extra, palette)
        deep = bits > 8 and palette is None
        form = natural_form(data, "x")
        assert form == Form(len(expected), torch.float32 if deep else torch.uint8)
        found = open_image(data, form, "x").decode()[0].numpy() / (1 if deep else 255)
        # premultiplied colours, and the deep opacity of a palette, are rounded to a level before they are multiplied
        twice = PREMULTIPLIED in extra or (palette is not None and bits > 8)
        tolerance = 2e-6 if deep else (1.01 if twice else 0.51) / 255
        np.testing.assert_allclose(found, expected, atol=tolerance, err_msg=f"{extra=} {planar=} {deflate=}")


def test_a_picture_gives_the_same_pixels_from_tiff_as_from_png() -> None:
    """Gray and RGB, opaque and not, chunky and planar, to gray, RGB and RGBA; Pillow reads the PNG."""
    for count, planar in product((1, 2, 3, 4), (False, True)):
        samples = random_samples(count, 8)
        photometric, extra = (RGB, (STRAIGHT,) * (count - 3)) if count > 2 else (BLACK, (STRAIGHT,) * (count - 1))
        data = tiff(samples, 8, photometric, planar=planar, extra=extra)
        stored = samples[0] if count == 1 else np.ascontiguousarray(samples.transpose(1, 2, 0))
        png = io.BytesIO()
        Image.fromarray(stored).save(png, "PNG")
        assert natural_form(data, "x") == natural_form(png.getvalue(), "x")
        for form in (Form(1, torch.uint8), Form(3, torch.float32), Form(4, torch.uint8, rgba=True)):
            read, expected = (open_image(each, form, "x").decode()[0].float() for each in (data, png.getvalue()))
            level = 1 if form.dtype == torch.uint8 else 1 / 255
            torch.testing.assert_close(read, expected, rtol=0, atol=level if form.channels == 1 else 1e-6)


def test_a_fourth_sample_that_rgb_does_not_describe_is_opacity_as_libtiff_takes_it() -> None:
    for bits in (8, 16):
        samples = random_samples(4, bits)
        told, untold = (tiff(samples, bits, RGB, extra=extra) for extra in ((STRAIGHT,), ()))
        form = natural_form(untold, "x")
        assert form.channels == 3
        pixels = [open_image(data, form, "x").decode()[0] for data in (told, untold)]
        assert torch.equal(*pixels)


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_a_stack_of_pages_means_what_each_page_alone_means(tmp_path: Path, bits: int) -> None:
    pages = random_samples(12, bits).reshape(3, 4, HEIGHT, WIDTH)
    if bits == 1:
        tifffile.imwrite(tmp_path / "s.tif", pages[:, 0].astype(bool), photometric="miniswhite")
        alone = [1 - page[:1].astype(float) for page in pages]
    else:
        stored = pages.transpose(0, 2, 3, 1)
        tifffile.imwrite(tmp_path / "s.tif", stored, photometric="rgb", extrasamples=["unassalpha"])
        alone = [meant(page, bits, RGB, (STRAIGHT,), None) for page in pages]
    source = open_source(tmp_path / "s.tif")
    scale = 1 if source.dtype == torch.float32 else 255
    for i in range(3):
        np.testing.assert_allclose(source.read(i).numpy() / scale, alone[i], atol=0.51 / 255)


@pytest.mark.parametrize("bits", [8, 16])
def test_pages_as_channels_keep_their_photometric_interpretation(bits: int) -> None:
    pages = random_samples(5, bits)
    out = io.BytesIO()
    tifffile.imwrite(out, pages, photometric="miniswhite")
    form = natural_form(out.getvalue(), "x")
    found = open_image(out.getvalue(), form, "x").decode()[0].numpy() / (255 if bits == 8 else 1)
    np.testing.assert_allclose(found, 1 - pages / (2**bits - 1), atol=1e-6)


def test_compressed_white_is_zero_of_sixteen_bits_is_not_inverted() -> None:
    """LZW, which Pillow reads for tifffile: the tag is rewritten, since nothing here writes both."""
    image = random_samples(1, 16)[0]
    black = io.BytesIO()
    Image.fromarray(image).save(black, "TIFF", compression="tiff_lzw")
    data = black.getvalue()
    entry = struct.pack("<HHI", 262, 3, 1)
    white = data.replace(entry + struct.pack("<HH", BLACK, 0), entry + struct.pack("<HH", WHITE, 0))
    assert white != data
    form = Form(1, torch.float32)
    read = [open_image(each, form, "x").decode()[0].numpy()[0] for each in (data, white)]
    np.testing.assert_allclose(read[0], image / 65535, atol=1e-7)
    np.testing.assert_allclose(read[1], 1 - image / 65535, atol=1e-6)


def test_a_colour_space_that_is_not_known_is_refused_by_its_name() -> None:
    deep_cmyk = tiff(random_samples(4, 16), 16, 5)
    with pytest.raises(CorruptSample, match="photometric interpretation SEPARATED and 4 samples of 16 bits"):
        open_image(deep_cmyk, Form(3, torch.float32), "x").decode()
    cmyk = tiff(np.zeros((4, 6, 6), np.uint8), 8, 5)
    assert open_image(cmyk, Form(3, torch.uint8), "x").decode()[0].min() == 255  # no ink


def test_half_a_tiff_is_corrupt_or_refused(tmp_path: Path) -> None:
    for bits, deflate in product((1, 4, 8, 16), (False, True)):
        data = tiff(random_samples(1, bits).repeat(20, 1).repeat(20, 2), bits, BLACK, deflate=deflate)
        with pytest.raises(CorruptSample):
            open_image(data[: len(data) // 2], Form(1, torch.float32), "x").decode()
    tifffile.imwrite(tmp_path / "s.tif", random_samples(20, 16), photometric="minisblack")
    stack = (tmp_path / "s.tif").read_bytes()
    (tmp_path / "s.tif").write_bytes(stack[:1000])  # the pixels come first, 1,400 bytes of them
    with pytest.raises(InputError, match="cannot be read as TIFF"):
        open_source(tmp_path / "s.tif")
