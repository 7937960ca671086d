"""Batches: right samples, same for any cache, workers, ranks and after a resume; unreadable ones replaced and named."""

import importlib
import itertools
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import Tensor

from barlow.data import Batch, CorruptSample, Loader, Source, WorkerDied, open_source
from barlow.data.arrays import from_array
from barlow.data.memory import available_memory
from barlow.data.order import epoch_order
from barlow.data.streaming import allowed_reduction
from barlow.errors import InputError


class Square(NamedTuple):
    top: int
    left: int
    height: int
    width: int
    size: int


@dataclass
class TwoCorners:
    """A maker of the least kind: view 1 is the upper left 4 x 4 pixels, view 2 depends on the id and the epoch."""

    def batch_boxes(
        self, ids: Sequence[int], epoch: int, heights: Sequence[int], widths: Sequence[int]
    ) -> list[list[Square]]:
        return [self.boxes(i, epoch, h, w) for i, h, w in zip(ids, heights, widths, strict=True)]

    def boxes(self, id: int, epoch: int, height: int, width: int) -> list[Square]:
        return [Square(0, 0, 4, 4, 4), Square((id + epoch) % (height - 3), epoch % (width - 3), 4, 4, 4)]

    def cut(self, image: Tensor, boxes: Sequence[Any], scale: float = 1.0) -> list[Tensor]:
        assert scale == 1.0
        return [image[:, b.top : b.top + b.height, b.left : b.left + b.width] for b in boxes]


def small_folder(folder: Path, n: int, *, broken: tuple[int, ...] = ()) -> Source:
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04d}.png")
    for i in broken:
        (folder / f"{i:04d}.png").write_bytes(b"text")
    return open_source(folder)


def mixed_folder(folder: Path, n: int, *, broken: tuple[int, ...] = ()) -> Source:
    for i in range(n):
        rng = np.random.default_rng(i)
        pixels = rng.integers(0, 256, (*rng.integers(8, 20, 2), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04d}.png")
    for i in broken:
        (folder / f"{i:04d}.png").write_bytes(b"")
    return open_source(folder)


def drawn(loader: Loader, epoch: int, start_step: int = 0) -> list[tuple[list[int], list[Tensor]]]:
    def tensors(batch: Batch) -> list[Tensor]:
        return [batch.images] if batch.images is not None else batch.cuts or []

    return [(batch.ids.tolist(), tensors(batch)) for batch in loader.epoch(epoch, start_step)]


def same(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(
        a_ids == b_ids and all(torch.equal(a, b) for a, b in zip(a_views, b_views, strict=True))
        for (a_ids, a_views), (b_ids, b_views) in zip(first, second, strict=True)
    )


def numbered(n: int) -> Source:
    """Sample i is a 2 x 2 image of the value i."""
    return from_array(np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None], (n, 2, 2)))


def test_batches_hold_the_samples_their_ids_name_in_the_epochs_order() -> None:
    indices = np.arange(3, 103)
    batches = list(Loader(numbered(120), indices, 16, seed=4).epoch(2))
    assert len(batches) == 6
    ids = torch.cat([batch.ids for batch in batches])
    assert ids.tolist() == epoch_order(indices, seed=4, epoch=2)[:96].tolist()
    for batch in batches:
        assert batch.images is not None
        assert batch.cuts is None
        assert batch.images[:, 0, 0, 0].tolist() == batch.ids.tolist()


def test_an_epoch_resumed_at_a_step_continues_the_stream() -> None:
    whole = drawn(Loader(numbered(100), np.arange(100), 16, seed=4), 3)
    resumed = drawn(Loader(numbered(100), np.arange(100), 16, seed=4), 3, start_step=4)
    assert same(whole[4:], resumed)


def test_ranks_share_each_global_batch_without_overlap() -> None:
    one = drawn(Loader(numbered(100), np.arange(100), 16), 0)
    four = [drawn(Loader(numbered(100), np.arange(100), 4, rank=r, world_size=4), 0) for r in range(4)]
    for step, (ids, _) in enumerate(one):
        assert sorted(i for rank in four for i in rank[step][0]) == sorted(ids)


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_any_rank_can_read_the_batch_of_all(tmp_path: Path, cache: Any) -> None:
    source = small_folder(tmp_path, 40, broken=())
    whole = Loader(source, np.arange(40), 8, cache=cache).epoch(1, start_step=2)
    expected, of_all = (
        next(whole),
        Loader(source, np.arange(40), 4, rank=1, world_size=2, cache=cache).of_all_ranks(1, 2),
    )
    whole.close()
    assert expected.images is not None
    assert of_all.images is not None
    assert of_all.ids.tolist() == expected.ids.tolist()
    assert of_all.images.equal(expected.images)


@pytest.mark.parametrize("cache", ["auto", "memory", "disk"])
def test_decoding_once_gives_the_batches_of_decoding_every_time(tmp_path: Path, cache: Any) -> None:
    source = small_folder(tmp_path, 150, broken=(7,))
    indices = np.arange(1, 150)
    reference = Loader(source, indices, 32, cache="none")
    loader = Loader(source, indices, 32, cache=cache)
    for epoch in range(2):
        assert same(drawn(loader, epoch), drawn(reference, epoch))
    assert loader.skipped == [("0007.png", "not an image: it starts with b'text'")]
    assert set(reference.skipped) <= set(loader.skipped)


def test_a_disk_cache_is_found_again_and_made_anew_when_files_change(
    tmp_path: Path, own_caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small_folder(tmp_path, 110, broken=(3,))
    first = Loader(source, np.arange(110), 32, cache="disk")
    before = drawn(first, 0)
    with monkeypatch.context() as patch:
        patch.setattr(type(source), "read", None)  # nothing is decoded again
        again = Loader(source, np.arange(110), 32, cache="disk")
        assert same(drawn(again, 0), before)
        assert again.skipped == first.skipped
    next(own_caches.rglob("*.npy")).unlink()
    assert same(drawn(Loader(source, np.arange(110), 32, cache="disk"), 0), before)
    for path in tmp_path.glob("*.png"):
        Image.new("RGB", (5, 6), "white").save(path)
    changed = Loader(open_source(tmp_path), np.arange(110), 32, cache="disk")
    assert all(int(views[0].min()) == 255 for _, views in drawn(changed, 0))


def test_a_disk_cache_is_made_anew_when_content_changes_under_the_same_size_and_time(
    tmp_path: Path, own_caches: Path
) -> None:
    def pictures(shade: int) -> None:
        for i in range(20):
            path = tmp_path / f"{i}.bmp"
            Image.new("L", (8, 8), shade + i).save(path)
            os.utime(path, (1e9, 1e9))

    def cached() -> list[int]:
        ((_, views),) = drawn(Loader(open_source(tmp_path), np.arange(20), 20, cache="disk"), 0)
        return sorted(views[0][:, 0, 0, 0].tolist())

    pictures(100)
    assert cached() == list(range(100, 120))
    pictures(200)
    assert cached() == list(range(200, 220))


def test_a_disk_cache_whose_making_was_broken_off_is_made_again(
    tmp_path: Path, own_caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small_folder(tmp_path, 40)
    expected = drawn(Loader(source, np.arange(40), 8, cache="memory"), 0)
    read = type(source).read

    def broken_off(self: Source, i: int) -> Tensor:
        if i == 25:
            raise KeyboardInterrupt
        return read(self, i)

    with monkeypatch.context() as patch:
        patch.setattr(type(source), "read", broken_off)
        with pytest.raises(KeyboardInterrupt):
            Loader(source, np.arange(40), 8, cache="disk")
    assert len(list(own_caches.rglob("*.npy"))) == 1
    assert same(drawn(Loader(source, np.arange(40), 8, cache="disk"), 0), expected)


def test_more_than_its_share_of_memory_goes_to_disk(
    tmp_path: Path, own_caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small_folder(tmp_path, 40)
    in_memory = drawn(Loader(source, np.arange(40), 8), 0)
    assert not list(own_caches.rglob("*.npy"))
    monkeypatch.setattr("barlow.data.store.available_memory", lambda: 1000)
    assert same(drawn(Loader(source, np.arange(40), 8), 0), in_memory)
    assert len(list(own_caches.rglob("*.npy"))) == 1


def test_the_tightest_control_group_decides_what_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's or a scheduler's limit, not the machine's memory; divided by the ranks that share it."""
    monkeypatch.setattr("barlow.data.memory._machine_available", lambda: 900)
    monkeypatch.setattr("barlow.data.memory.group_rooms", lambda: [700, 300])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert available_memory() == 150


def test_one_odd_size_among_many_is_streamed_instead_of_cached(tmp_path: Path) -> None:
    small_folder(tmp_path, 200)
    Image.new("RGB", (9, 9)).save(tmp_path / "0123.png")
    loader = Loader(open_source(tmp_path), np.arange(200), 50, maker=TwoCorners())
    assert all(len(views) == 2 for _, views in drawn(loader, 0))
    with pytest.raises(InputError, match="several sizes cannot be cached"):
        Loader(open_source(tmp_path), np.arange(200), 50, maker=TwoCorners(), cache="memory")


def test_large_images_are_cut_where_they_are_decoded(tmp_path: Path) -> None:
    source = mixed_folder(tmp_path, 24)
    for batch in Loader(source, np.arange(24), 8, maker=TwoCorners()).epoch(5):
        assert batch.images is None
        assert batch.cuts is not None
        for k, i in enumerate(batch.ids.tolist()):
            image = source.read(i)
            top, left = (i + 5) % (image.shape[1] - 3), 5 % (image.shape[2] - 3)
            assert torch.equal(batch.cuts[0][k], image[:, :4, :4])
            assert torch.equal(batch.cuts[1][k], image[:, top : top + 4, left : left + 4])


LIFE = """
import multiprocessing, os, signal, sys
from dataclasses import dataclass
import numpy as np
import torch
from barlow.data import Loader, Source, WorkerDied

@dataclass(kw_only=True, eq=False)
class InMemory(Source):
    images: np.ndarray

    def read(self, i):
        if i == 19 and os.path.exists("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.from_numpy(self.images[i])

    def content_hash(self, i):
        return str(i)

    def fingerprint(self):
        return "held"

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 9, 9), dtype=np.uint8)
    source = InMemory(name="mine", keys=list(map(str, range(20))), channels=3, dtype=torch.uint8, images=images)
    loader = Loader(source, np.arange(20), 2, cache="none", workers=2)
    expected = Loader(source, np.arange(20), 2, cache="none")
    print(*(child.pid for child in multiprocessing.active_children()))
    for epoch, start in ((0, 0), (1, 4)):
        pairs = list(zip(loader.epoch(epoch, start), expected.epoch(epoch, start), strict=True))
        assert len(pairs) == 10 - start
        assert all(ours.ids.equal(theirs.ids) and ours.images.equal(theirs.images) for ours, theirs in pairs)
    open("kill", "w").close()
    try:
        list(loader.epoch(2))
    except WorkerDied as death:
        print(death, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def run_script(text: str, folder: Path, method: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(text)
    command = [sys.executable, "script.py", method]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_of_every_start_method_live_and_die_alike(tmp_path: Path, method: str) -> None:
    """Python's default differs between versions and systems. The samples lie in the parent's memory; a killed worker is
    named in one line, and a killed parent takes its workers along."""
    done = run_script(LIFE, tmp_path, method)
    assert (done.returncode, done.stderr) == (-9, "")  # read to its end: no process is left that holds it
    pids, death = done.stdout.splitlines()
    worker = int(np.flatnonzero(epoch_order(np.arange(20), seed=0, epoch=2) == 19)[0]) // 2 % 2
    assert re.match(rf"data worker {worker} \(pid \d+\) was killed by SIGKILL", death)
    assert not any(Path(f"/proc/{pid}/exe").exists() for pid in pids.split())


@pytest.fixture
def spawned() -> Iterator[None]:
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.usefixtures("spawned")
def test_views_that_cannot_be_sent_to_workers_are_refused_in_one_line(tmp_path: Path) -> None:
    class Local(TwoCorners):
        pass

    with pytest.raises(InputError, match=r"cannot be sent to worker processes \(.*Local.*\); use no workers"):
        Loader(mixed_folder(tmp_path, 8), np.arange(8), 4, maker=Local(), workers=1)


@pytest.mark.slow
@pytest.mark.usefixtures("spawned")
def test_what_a_worker_cannot_load_is_said_without_a_traceback_of_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere.py").write_text("class Maker:\n    pass\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        maker = importlib.import_module("elsewhere").Maker()
    (tmp_path / "images").mkdir()
    loader = Loader(mixed_folder(tmp_path / "images", 8), np.arange(8), 4, maker=maker, workers=1)
    with pytest.raises(WorkerDied, match=r"(?s)data worker 0 \(pid \d+\) failed.*No module named 'elsewhere'"):
        list(loader.epoch(0))
    assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing_in_the_batches(tmp_path: Path, workers: int) -> None:
    source = mixed_folder(tmp_path, 210, broken=(11, 90))
    reference = Loader(source, np.arange(210), 16, maker=TwoCorners())
    loader = Loader(source, np.arange(210), 16, maker=TwoCorners(), workers=workers)
    next(loader.epoch(0))  # an epoch left in the middle
    for epoch, start in ((0, 0), (1, 5)):
        assert same(drawn(loader, epoch, start), drawn(reference, epoch, start))
    assert loader.skipped == reference.skipped
    assert [key for key, _ in loader.skipped] == ["0011.png", "0090.png"]


@pytest.mark.slow
def test_a_killed_worker_is_named(tmp_path: Path) -> None:
    loader = Loader(mixed_folder(tmp_path, 64), np.arange(64), 2, maker=Suicidal(), workers=2)
    order = epoch_order(np.arange(64), seed=0, epoch=0)
    worker = int(np.flatnonzero(order == 20)[0]) // 2 % 2
    with pytest.raises(WorkerDied, match=rf"data worker {worker} \(pid \d+\) was killed by SIGKILL"):
        list(loader.epoch(0))


@pytest.mark.slow
def test_an_error_in_a_worker_comes_with_its_traceback(tmp_path: Path) -> None:
    loader = Loader(mixed_folder(tmp_path, 64), np.arange(64), 2, maker=Broken(), workers=1)
    with pytest.raises(WorkerDied, match=r"(?s)data worker 0 \(pid \d+\) failed.*in boxes.*ZeroDivisionError"):
        list(loader.epoch(0))


@pytest.mark.slow
def test_a_script_without_the_guard_that_new_interpreters_need_is_told_so(tmp_path: Path) -> None:
    done = run_script(LIFE.replace('__name__ == "__main__"', "True"), tmp_path, "spawn")
    assert re.search(r"data worker 0 .*needs the guard `if __name__ == '__main__':`", done.stderr.splitlines()[-1])


@pytest.mark.slow
def test_a_batch_that_finds_no_shared_memory_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loader = Loader(mixed_folder(tmp_path, 24), np.arange(24), 4, maker=NoRoom(), workers=1)
    with pytest.raises(
        WorkerDied, match=r"data worker 0 \(pid \d+\) failed: its batch finds no place in shared memory"
    ):
        list(loader.epoch(0))
    assert capfd.readouterr().err == ""


class NoRoom(TwoCorners):
    def cut(self, image: Tensor, boxes: Sequence[Any], scale: float = 1.0) -> list[Tensor]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))  # what no file may grow beyond, those of /dev/shm included
        return super().cut(image, boxes, scale)


class Broken(TwoCorners):
    def boxes(self, id: int, epoch: int, height: int, width: int) -> list[Square]:
        return [Square(0, 0, 1 // (id - id), 4, 4)]


class Suicidal(TwoCorners):
    def boxes(self, id: int, epoch: int, height: int, width: int) -> list[Square]:
        if id == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().boxes(id, epoch, height, width)


def test_an_unreadable_sample_is_replaced_the_same_way_every_time(tmp_path: Path) -> None:
    source = mixed_folder(tmp_path, 120, broken=(17,))
    loader = Loader(source, np.arange(120), 40, maker=TwoCorners())
    first, again = drawn(loader, 0), drawn(Loader(source, np.arange(120), 40, maker=TwoCorners()), 0)
    assert same(first, again)
    order = epoch_order(np.arange(120), seed=0, epoch=0)
    ids = np.array([i for batch_ids, _ in first for i in batch_ids])
    assert np.flatnonzero(ids != order).tolist() == np.flatnonzero(order == 17).tolist()
    assert loader.skipped == [("0017.png", "empty file")]


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_over_one_percent_unreadable_ends_the_run_and_names_them(tmp_path: Path, cache: Any) -> None:
    source = small_folder(tmp_path, 199, broken=(4, 120))
    with pytest.raises(InputError, match=r"2 of 199 samples cannot be read, over the limit of 1%: 0004\.png \(not"):
        drawn(Loader(source, np.arange(199), 10, cache=cache), 0)


def test_one_file_of_another_form_is_skipped_and_named_however_few_the_others(tmp_path: Path) -> None:
    small_folder(tmp_path, 60)
    tifffile.imwrite(tmp_path / "scan.tif", np.zeros((5, 60, 50), np.uint8), photometric="minisblack")
    source = open_source(tmp_path)
    loader = Loader(source, np.arange(61), 61)
    batch = next(loader.epoch(0))
    assert batch.images is not None
    assert batch.images.shape[:2] == (61, 3)
    assert loader.skipped == [("scan.tif", "has 5 channels where the data set has 3")]


def test_exactly_one_percent_unreadable_is_skipped(tmp_path: Path) -> None:
    source = small_folder(tmp_path, 200, broken=(4, 120))
    loader = Loader(source, np.arange(200), 10)
    assert len(drawn(loader, 0)) == 20
    assert [key for key, _ in loader.skipped] == ["0004.png", "0120.png"]


def test_nothing_readable_ends_the_run(tmp_path: Path) -> None:
    source = small_folder(tmp_path, 12)
    for path in tmp_path.glob("*.png"):
        path.write_bytes(b"")
    for cache in ("none", "auto"):
        with pytest.raises(InputError, match=r"samples cannot be read|several sizes"):
            drawn(Loader(source, np.arange(12), 4, cache=cache), 0)


def test_unreadable_samples_outside_the_indices_are_nobodys_business(tmp_path: Path) -> None:
    source = small_folder(tmp_path, 40, broken=(4, 5, 6))
    loader = Loader(source, np.arange(10, 40), 10)
    assert {i for ids, _ in drawn(loader, 0) for i in ids} == set(range(10, 40))
    assert loader.skipped == []


def test_a_file_that_vanishes_during_the_run_is_skipped_and_named(tmp_path: Path) -> None:
    source = mixed_folder(tmp_path, 100)
    loader = Loader(source, np.arange(100), 20, maker=TwoCorners())
    (tmp_path / "0050.png").unlink()
    assert len(drawn(loader, 0)) == 5
    assert loader.skipped == [("0050.png", "No such file or directory")]


def test_labels_are_never_read() -> None:
    class Untouchable:
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError("labels were read")

    source = numbered(40)
    source.labels = Untouchable()  # type: ignore[assignment]
    assert len(drawn(Loader(source, np.arange(40), 8), 0)) == 5


def test_wait_counts_the_time_until_a_batch_is_there_and_not_the_callers_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock: Any = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr("barlow.data.loader.time", clock)

    class Slow(TwoCorners):
        def boxes(self, id: int, epoch: int, height: int, width: int) -> list[Square]:
            clock.now += 0.01
            return super().boxes(id, epoch, height, width)

    waits = []
    for batch in Loader(mixed_folder(tmp_path, 16), np.arange(16), 4, maker=Slow()).epoch(0):
        waits.append(batch.wait_s)
        clock.now += 0.2
    assert waits == pytest.approx([0.04] * 4)


def test_signals_and_tables_load_too() -> None:
    signals = np.random.default_rng(0).normal(size=(12, 2, 50)).astype(np.float32)
    batch = next(Loader(open_source(signals), np.arange(12), 4).epoch(0))
    assert batch.images is not None
    np.testing.assert_array_equal(batch.images.numpy(), signals[batch.ids.numpy()])
    assert next(Loader(open_source("iris"), np.arange(150), 4).epoch(0)).images.shape == (4, 4)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 41}, "40 samples do not fill one batch of 41"),
        ({"batch_size": 11, "world_size": 4}, "do not fill one batch of 44"),
        ({"batch_size": 0}, "batch size must be at least 1"),
        ({"batch_size": 4, "workers": -1}, "workers at least 0"),
        ({"batch_size": 4, "cache": "ram"}, "There is no cache 'ram'"),
        ({"batch_size": 4, "rank": 2, "world_size": 2}, r"rank must lie in 0\.\.1"),
    ],
)
def test_settings_that_make_no_batch_get_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Loader(numbered(40), np.arange(40), **settings)


def test_mixed_sizes_without_a_maker_get_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="several sizes make no batch"):
        Loader(mixed_folder(tmp_path, 9), np.arange(9), 3)


@pytest.mark.parametrize(
    ("boxes", "reduction"),
    [
        ([Square(0, 0, 224, 224, 224)], 1),
        ([Square(0, 0, 895, 900, 224)], 1),
        ([Square(0, 0, 896, 900, 224)], 2),
        ([Square(0, 0, 896, 900, 224), Square(0, 0, 4000, 4000, 224)], 2),
        ([Square(0, 0, 2000, 2000, 224), Square(0, 0, 400, 900, 96)], 2),
        ([Square(0, 0, 9000, 9000, 32)], 8),
        ([Square(0, 0, 10, 10, 32)], 1),
    ],
)
def test_a_jpeg_is_reduced_as_long_as_every_box_has_twice_its_views_side(boxes: list[Square], reduction: int) -> None:
    assert allowed_reduction(boxes) == reduction


def test_views_cut_from_a_reduced_jpeg_are_the_views_of_the_whole(tmp_path: Path) -> None:
    """A smooth 640 x 480 image: cutting from 1/4 differs from cutting the whole by less than 3 levels on average."""
    from barlow.views import ViewMaker, get_recipe

    yy, xx = np.mgrid[0:480, 0:640]
    pixels = np.stack([127 + 120 * np.sin(xx / a + yy / b) for a, b in ((120, 180), (150, -120), (270, 90))], -1)
    for i in range(4):
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{i}.jpg", quality=95)
    source = open_source(tmp_path)
    maker = ViewMaker(get_recipe("imagenet"), image_size=32, channels=3, mean=[0.5] * 3, std=[0.2] * 3, seed=0)
    batch = next(Loader(source, np.arange(4), 4, maker=maker).epoch(0))
    assert batch.cuts is not None
    assert max(allowed_reduction(maker.boxes(i, 0, 480, 640)) for i in range(4)) >= 4
    for k, i in enumerate(batch.ids.tolist()):
        boxes = maker.boxes(i, 0, 480, 640)
        for cut, whole in zip(batch.cuts, maker.cut(source.read(i), boxes), strict=True):
            assert (cut[k].float() - whole.float()).abs().mean() < 3


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_decoded_samples_that_a_gpu_has_no_room_for_are_gathered_ahead_into_pinned_memory(
    tmp_path: Path, cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a copy to the GPU: what a machine that has none can show."""
    source = small_folder(tmp_path, 40)
    expected = drawn(Loader(source, np.arange(40), 8, cache=cache), 0)
    asked: list[list[int]] = []

    def noted(batch: Batch) -> Batch:
        asked.append(batch.ids.tolist())
        return batch

    monkeypatch.setattr("barlow.data.loader.pinned", noted)
    monkeypatch.setattr("barlow.data.store._to_device", lambda samples, device: samples)
    monkeypatch.setattr(Loader, "_on_device", lambda self, batch: batch)
    assert same(drawn(Loader(source, np.arange(40), 8, cache=cache, device="cuda"), 0), expected)
    assert asked == [ids for ids, _ in expected]


def test_a_corrupt_sample_survives_the_way_out_of_a_worker() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(CorruptSample("a.png", "truncated")))  # noqa: S301  our own bytes
    assert (error.key, error.reason, str(error)) == ("a.png", "truncated", "a.png: truncated")


def test_batches_prepared_ahead_come_in_order_and_errors_come_through() -> None:
    from barlow.data.loader import ahead

    def batches(fail_at: int) -> Any:
        for i in itertools.count():
            if i == fail_at:
                raise InputError("stop")
            yield i

    taken = ahead(batches(5))
    assert list(itertools.islice(taken, 5)) == [0, 1, 2, 3, 4]  # type: ignore[comparison-overlap]
    with pytest.raises(InputError, match="stop"):
        next(taken)
