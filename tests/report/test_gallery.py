"""What the gallery holds is what the features and images say."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from barlow.data import Source, open_source
from barlow.errors import InputError
from barlow.evaluation import extract
from barlow.models import Encoder
from barlow.report import make_gallery, read_gallery
from barlow.report.gallery import _layout, _other_neighbours
from barlow.run import Run
from barlow.views import ViewMaker, get_recipe

MakeRun = Callable[..., Run]


def test_neighbours_of_hand_placed_points_are_the_others_by_angle() -> None:
    x = np.array([[1, 0], [2, 0.1], [0, 1], [0, 3], [1, 0]], np.float32)  # 0 and 4 are doubles
    neighbours, cosines = _other_neighbours(x, 2)
    assert neighbours.tolist() == [[4, 1], [0, 4], [3, 1], [2, 1], [0, 1]]
    assert cosines[0] == pytest.approx([1, 2 / np.hypot(2, 0.1)])


def test_the_map_keeps_far_groups_apart_and_lies_on_its_long_side() -> None:
    rng = np.random.default_rng(0)
    centres = np.repeat(np.eye(3, 20) * 10, 20, axis=0)
    coords, words = _layout((centres + rng.normal(size=(60, 20)) * 0.1).astype(np.float32), "tsne", 0)
    means = coords.reshape(3, 20, 2).mean(axis=1)
    spread = coords.reshape(3, 20, 2).std(axis=1).max()
    assert min(np.linalg.norm(means[i] - means[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > 3 * spread
    assert coords.min(axis=0) == pytest.approx([0, 0], abs=1e-6)
    assert coords[:, 0].max() == pytest.approx(1)
    assert coords[:, 1].max() <= 1
    assert "perplexity" in words


def test_gallery_survives_the_disk_and_tells_doubles(make_run: MakeRun, source: Source, encoder: Encoder) -> None:
    run = make_run(pictures=False)
    made = make_gallery(run, source, encoder, layout="tsne")
    read = read_gallery(run.path)
    assert read is not None
    assert {k: v for k, v in vars(read).items() if k != "arrays"} == {
        k: v for k, v in vars(made).items() if k != "arrays"
    }
    assert all(np.array_equal(read.arrays[name], made.arrays[name]) for name in made.arrays)
    assert made.doubles == ((1, 4),)


def test_thumbnails_are_the_images_in_order(make_run: MakeRun, source: Source) -> None:
    gallery = read_gallery(make_run().path)
    assert gallery is not None
    sheet = np.asarray(Image.open(io.BytesIO(gallery.arrays["atlas"].tobytes())), np.float32)
    side = gallery.thumb
    assert side == 16
    for point in (0, 5, 59):
        row, column = divmod(point, gallery.columns)
        tile = sheet[row * side : (row + 1) * side, column * side : (column + 1) * side]
        wanted = source.read(point).permute(1, 2, 0).numpy().astype(np.float32)
        assert np.abs(tile - wanted).mean() < 12  # JPEG


def test_typical_is_dense_and_unusual_is_far(make_run: MakeRun, source: Source, encoder: Encoder) -> None:
    gallery = read_gallery(make_run().path)
    assert gallery is not None
    x = extract(encoder, source).x
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    twelfth = np.sort(units @ units.T, axis=1)[:, -13]  # the point itself is the nearest
    assert twelfth[list(gallery.typical)].min() >= np.sort(twelfth)[-8] - 1e-6
    assert twelfth[list(gallery.unusual)].max() <= np.sort(twelfth)[7] + 1e-6


def test_a_sample_of_the_data_is_seeded_and_counted(make_run: MakeRun, source: Source, encoder: Encoder) -> None:
    run = make_run(pictures=False)
    first, again, other = (make_gallery(run, source, encoder, layout="tsne", points=20, seed=s) for s in (0, 0, 1))
    assert (len(first.keys), first.total) == (20, 60)
    assert first.keys == again.keys
    assert first.keys != other.keys


def test_sample_views_show_the_images_the_encoder_was_given(
    make_run: MakeRun, source: Source, encoder: Encoder
) -> None:
    run = make_run(pictures=False)
    maker = ViewMaker(get_recipe("cifar"), image_size=16, channels=3, mean=[0.4] * 3, std=[0.2] * 3, seed=0)
    gallery = make_gallery(run, source, encoder, maker=maker, layout="tsne")
    sheet = Image.open(io.BytesIO(gallery.arrays["views"].tobytes()))
    assert sheet.size == (gallery.view_pairs * 16, 2 * 16)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layout": "tnse"}, "Did you mean 'tsne'"),
        ({"points": 2}, "3 to 65535 points"),
        ({"points": 70_000}, "3 to 65535 points"),
        ({"indices": [0, 1]}, "at least 3 readable samples"),
    ],
)
def test_impossible_galleries_are_one_clear_line(
    options: dict[str, object], words: str, make_run: MakeRun, source: Source, encoder: Encoder
) -> None:
    with pytest.raises(InputError, match=words):
        make_gallery(make_run(pictures=False), source, encoder, **options)  # type: ignore[arg-type]


def test_a_damaged_gallery_is_named(make_run: MakeRun) -> None:
    run = make_run()
    (run.path / "gallery.npz").write_bytes(b"no zip")
    with pytest.raises(InputError, match="damaged"):
        read_gallery(run.path)


def test_signals_have_a_map_without_pictures(make_run: MakeRun, tmp_path: Path) -> None:
    from barlow.models import Preprocess, build_encoder

    table = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    encoder = build_encoder("mlp", channels=6, image_size=0, stem="standard").eval()
    encoder.preprocess = Preprocess(0, 6, (0.0,) * 6, (1.0,) * 6, scale=1.0)
    gallery = make_gallery(make_run(pictures=False), open_source(table, kind="table"), encoder, layout="tsne")
    assert gallery.thumb == 0
    assert "atlas" not in gallery.arrays
