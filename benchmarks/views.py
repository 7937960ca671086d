"""Pairs of augmented views per second of one core, beside the peers' transforms, all with the chain of Barlow Twins.

    python benchmarks/views.py                  # this machine's processor, about three minutes
    python benchmarks/views.py --quick          # 32 and 224 px, fewer rounds
    python benchmarks/views.py --device cuda    # batched makers on a GPU: barlow and kornia

From decoded images: every contender gets the same photographs in the form it takes fastest (barlow and kornia a uint8
batch, torchvision v2 uint8 tensors, lightly and the official chain PIL images). The peers' blurs have the taps their
users give them, a tenth of the image; a second kornia has barlow's filter and widest blur. A second barlow is without
its compiled loops. From files: JPEGs on disk, through
`barlow.data.Loader` or torch's DataLoader, with no worker processes, so that one core does all the work.

On a CPU the clock is the processor time of this process with one thread, so that other load on the machine counts
little; the contenders take turns, and the median over the rounds is given. On a GPU it is the wall clock.
Needs the extra `bench`. Writes views-<device>.json and .md to the folder of --out.
"""

import argparse
import datetime
import io
import json
import os
import platform
import random
import shlex
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from kornia import augmentation as K
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as v1
from torchvision.transforms import v2

from barlow.data import Loader, open_source
from barlow.views import ViewMaker, get_recipe, native

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BATCHES = {32: 256, 64: 128, 96: 64, 224: 32}
DECODED = {32: (32, 32), 64: (64, 64), 96: (96, 96), 224: (256, 256)}
"""Height and width of the decoded images, by the size of the views."""
FILES = {32: (32, 32), 224: (375, 500)}
"""Height and width of the JPEG files, by the size of the views; 500 x 375 is ImageNet's most frequent size."""
FILE_COUNT = {32: 512, 224: 96}
CUDA_BATCHES = {32: 4096, 64: 2048, 96: 1024, 224: 512}
TARGETS = {32: 6.0, 224: 2.5}
TARGET_FILES = 2.0
TARGETS_CUDA = {32: 60_000, 224: 8_000}

Job = Callable[[], int]  # makes views and returns the number of pairs made


@dataclass
class Cell:
    """One contender at one size: pairs per second, per round and their median."""

    source: str
    size: int
    contender: str
    pairs_per_s: float
    rounds: list[float]


def photographs(n: int, height: int, width: int) -> list[Image.Image]:
    """n different crops of scikit-learn's two photographs, resized."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(image) for image in load_sample_images().images]
    crops = []
    for i in range(n):
        side = int(rng.integers(250, 420))
        wide = min(640, round(side * width / height))
        left, top = int(rng.integers(0, 641 - wide)), int(rng.integers(0, 428 - side))
        box = (left, top, left + wide, top + side)
        crops.append(pictures[i % 2].resize((width, height), Image.Resampling.BICUBIC, box=box))
    return crops


class OfficialBlur:
    """Gaussian blur of the Barlow Twins recipe: Pillow's, radius uniform in [0.1, 2]."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() >= self.p:
            return image
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def official_chain(size: int) -> tuple[Any, Any]:
    """The recipe of arXiv 2103.03230 with Pillow and torchvision's first transforms, as its code uses them."""

    def view(blur: float, solarize: float) -> Any:
        return v1.Compose(
            [
                v1.RandomResizedCrop(size, interpolation=v1.InterpolationMode.BICUBIC),
                v1.RandomHorizontalFlip(),
                v1.RandomApply([v1.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                v1.RandomGrayscale(0.2),
                OfficialBlur(blur),
                v1.RandomSolarize(128, p=solarize),
                v1.ToTensor(),
                v1.Normalize(MEAN, STD),
            ]
        )

    return view(1.0, 0.0), view(0.1, 0.2)


def torchvision_chain(size: int) -> tuple[Any, Any]:
    """The same on uint8 tensors with torchvision v2."""

    def view(blur: float, solarize: float) -> Any:
        return v2.Compose(
            [
                v2.RandomResizedCrop(size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                v2.RandomGrayscale(0.2),
                v2.RandomApply([v2.GaussianBlur(kernel(size), (0.1, 2.0))], p=blur),
                v2.RandomSolarize(128, p=solarize),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    return view(1.0, 0.0), view(0.1, 0.2)


def kernel(size: int) -> int:
    """Taps of the peers' blurs: SimCLR's tenth of the image, odd."""
    return max(3, size // 10 // 2 * 2 + 1)


BARLOW_TAPS = 17
"""Taps of barlow's widest blur, sigma 2, which reaches 4 sigma."""


def kornia_chain(size: int, device: str, resample: str = "bilinear", taps: int | None = None) -> tuple[Any, Any]:
    """The same on a float batch with kornia, by default with the least work: a bilinear crop, a short blur.

    kornia's batched crop is not antialiased.
    """
    kernel_size = (taps or kernel(size),) * 2

    def view(blur: float, solarize: float) -> Any:
        return K.AugmentationSequential(
            K.RandomResizedCrop((size, size), scale=(0.08, 1.0), resample=resample),
            K.RandomHorizontalFlip(),
            K.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
            K.RandomGrayscale(p=0.2),
            K.RandomGaussianBlur(kernel_size, (0.1, 2.0), p=blur),
            K.RandomSolarize(0.0, 0.0, p=solarize),
            K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
            data_keys=["input"],
        ).to(device)

    return view(1.0, 0.0), view(0.1, 0.2)


def lightly_chain(size: int) -> Any:
    return BYOLTransform(BYOLView1Transform(input_size=size), BYOLView2Transform(input_size=size))


def maker(size: int, dtype: torch.dtype = torch.float32) -> ViewMaker:
    recipe = get_recipe("imagenet")
    return ViewMaker(recipe, image_size=size, channels=3, mean=MEAN, std=STD, seed=0, dtype=dtype)


def one_by_one(make_pair: Callable[[Any], Any], images: Sequence[Any]) -> Job:
    def job() -> int:
        for image in images:
            make_pair(image)
        return len(images)

    return job


def batched(views: Callable[[int], Any], batch: int, device: str) -> Job:
    epochs = iter(range(1 << 30))

    def job() -> int:
        views(next(epochs))
        if device == "cuda":
            torch.cuda.synchronize()
        return batch

    return job


def decoded_jobs(size: int, device: str) -> dict[str, Job]:
    """Contenders that make views of decoded images."""
    batch = BATCHES[size] if device == "cpu" else CUDA_BATCHES[size]
    pictures = photographs(min(batch, 256), *DECODED[size])
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    images = torch.from_numpy(arrays).permute(0, 3, 1, 2)  # channels last in memory, as decoded
    images = images.repeat(-(-batch // len(images)), 1, 1, 1)[:batch].to(device)
    planar, ids, make = images.contiguous(), torch.arange(batch), maker(size)
    kornia, alike = kornia_chain(size, device), kornia_chain(size, device, "bicubic", BARLOW_TAPS)
    jobs = {
        "barlow": batched(lambda epoch: make(planar if size == 32 else images, ids, epoch), batch, device),
        "kornia": batched(lambda _: [v(planar.float() / 255) for v in kornia], batch, device),
        "kornia, bicubic, 17 taps": batched(lambda _: [v(planar.float() / 255) for v in alike], batch, device),
    }
    if device == "cuda":
        half = maker(size, torch.bfloat16)
        jobs["barlow, bfloat16 out"] = batched(lambda epoch: half(images, ids, epoch), batch, device)
        return jobs
    jobs["barlow, torch alone"] = by_torch_alone(jobs["barlow"])
    tv_1, tv_2 = torchvision_chain(size)
    official_1, official_2 = official_chain(size)
    some = slice(0, max(8, batch // 4))  # one by one: fewer suffice
    jobs["torchvision v2"] = one_by_one(lambda image: (tv_1(image), tv_2(image)), list(images[some]))
    jobs["lightly BYOL"] = one_by_one(lightly_chain(size), pictures[some])
    jobs["official chain"] = one_by_one(lambda image: (official_1(image), official_2(image)), pictures[some])
    return jobs


def by_torch_alone(job: Job) -> Job:
    """The same views where no C compiler is found."""

    def fallback() -> int:
        with mock.patch.object(native, "library", lambda: None):
            return job()

    return fallback


class Files(Dataset[Any]):
    """JPEG files through a pair transform, as a peer's data set reads them."""

    def __init__(self, paths: Sequence[Path], make_pair: Callable[[Any], Any]) -> None:
        self.paths, self.make_pair = paths, make_pair

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        with Image.open(self.paths[index]) as image:
            return self.make_pair(image.convert("RGB"))


def write_files(folder: Path, size: int) -> list[Path]:
    """Distinct JPEG files of quality 90."""
    paths = []
    for i, picture in enumerate(photographs(FILE_COUNT[size], *FILES[size])):
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=90)
        paths.append(folder / f"{i:05}.jpg")
        paths[-1].write_bytes(content.getvalue())
    return paths


def file_jobs(size: int, folder: Path) -> dict[str, Job]:
    """Contenders that read a folder of JPEG files: one epoch is one round."""
    paths = write_files(folder, size)
    batch = min(BATCHES[size], 64)
    official_1, official_2 = official_chain(size)
    tv_1, tv_2 = torchvision_chain(size)
    to_tensor = v2.PILToTensor()
    pairs: dict[str, Callable[[Any], Any]] = {
        "lightly BYOL": lightly_chain(size),
        "torchvision v2": lambda image: (tv_1(tensor := to_tensor(image)), tv_2(tensor)),
        "official chain": lambda image: (official_1(image), official_2(image)),
    }
    jobs = {"barlow": barlow_files(folder, size, batch)}
    for name, make_pair in pairs.items():
        loader = DataLoader(Files(paths, make_pair), batch_size=batch, shuffle=True, drop_last=True)
        jobs[name] = epoch_of(loader, batch)
    return jobs


def barlow_files(folder: Path, size: int, batch: int) -> Job:
    source, make = open_source(folder), maker(size)
    loader = Loader(source, np.arange(len(source)), batch, maker=make)  # keeps small images decoded
    epochs = iter(range(1 << 30))

    def job() -> int:
        epoch, made = next(epochs), 0
        for read in loader.epoch(epoch):
            if read.cuts is not None:
                made += len(make.finish(read.cuts, read.ids, epoch)[0])
            elif read.images is not None:
                made += len(make(read.images, read.ids, epoch)[0])
        return made

    return job


def epoch_of(loader: DataLoader[Any], batch: int) -> Job:
    def job() -> int:
        return batch * sum(1 for _ in loader)

    return job


def measure(jobs: dict[str, Job], source: str, size: int, device: str, rounds: int, seconds: float) -> list[Cell]:
    """Contenders take turns; each turn repeats its job for some time."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    rates: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()  # warm up
    for _ in range(rounds):
        for name, job in jobs.items():
            start, pairs = clock(), 0
            while clock() - start < seconds or not pairs:
                pairs += job()
            rates[name].append(pairs / (clock() - start))
    cells = [Cell(source, size, name, statistics.median(r), [round(x, 1) for x in r]) for name, r in rates.items()]
    for cell in cells:
        print(f"{source:8} {size:4} px  {cell.contender:22} {cell.pairs_per_s:10.0f} pairs/s", flush=True)
    return cells


def hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, one thread of {os.cpu_count()} cores"
    return platform.processor()


def factor_of(cells: list[Cell]) -> float:
    """How many times the fastest peer barlow makes."""
    ours = next(cell.pairs_per_s for cell in cells if cell.contender == "barlow")
    return ours / max(cell.pairs_per_s for cell in cells if not cell.contender.startswith("barlow"))


def target_of(source: str, size: int, device: str) -> str:
    if device == "cuda":
        return f"{TARGETS_CUDA[size]:,} pairs/s" if size in TARGETS_CUDA else ""
    target = TARGET_FILES if source == "files" else TARGETS.get(size)
    return f"{target:g}" if target else ""


def table(cells: list[Cell], device: str) -> str:
    names = list(dict.fromkeys(cell.contender for cell in cells))
    lines = [
        "| images | views | " + " | ".join(names) + " | barlow / fastest peer | target |",
        "|---|---|" + "---:|" * len(names) + "---:|---:|",
    ]
    for source, size in dict.fromkeys((cell.source, cell.size) for cell in cells):
        row = [cell for cell in cells if (cell.source, cell.size) == (source, size)]
        rates = {cell.contender: f"{cell.pairs_per_s:,.0f}" for cell in row}
        values = " | ".join(rates.get(name, "") for name in names)
        lines.append(f"| {source} | {size} px | {values} | {factor_of(row):.1f} | {target_of(source, size, device)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # of the peers
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    device = arguments.device
    rounds, seconds = (3, 0.3) if arguments.quick else (5, 0.5)
    sizes = (32, 224) if arguments.quick else tuple(BATCHES)
    cells: list[Cell] = []
    for size in sizes:
        cells += measure(decoded_jobs(size, device), "decoded", size, device, rounds, seconds)
    if device == "cpu":
        for size in FILES:
            with tempfile.TemporaryDirectory() as folder:
                cells += measure(file_jobs(size, Path(folder)), "files", size, device, min(rounds, 3), 0.0)
    write(cells, device, arguments.out)


def write(cells: list[Cell], device: str, out: Path) -> None:
    packages = {name: version(name) for name in ("torch", "torchvision", "lightly", "kornia", "pillow")}
    facts: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": hardware(device),
        "load": [round(load, 1) for load in os.getloadavg()],
        "compiled": native.library() is not None,
        "packages": packages,
        "batches": BATCHES if device == "cpu" else CUDA_BATCHES,
    }
    out.mkdir(parents=True, exist_ok=True)
    record = {**facts, "cells": [asdict(cell) for cell in cells]}
    (out / f"views-{device}.json").write_text(json.dumps(record, indent=1) + "\n")
    text = (
        f"# Pairs of views per second\n\n`{facts['command']}`, {facts['date']}, {facts['hardware']}. "
        f"{', '.join(f'{name} {version}' for name, version in packages.items())}. "
        f"Load average of the machine in the last 5 minutes: {facts['load'][1]}. "
        "Median over the rounds; the recipe is `imagenet` (arXiv 2103.03230) at every size. "
        "Files of 32 px are decoded once by barlow's loader, and in every epoch by the peers'.\n\n"
        f"{table(cells, device)}\n"
    )
    (out / f"views-{device}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
