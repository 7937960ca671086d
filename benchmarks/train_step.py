"""Images per second from image files to updated weights, beside the same network trained with lightly's parts.

    python -m benchmarks.train_step                  # this machine's processor, about twenty minutes on two idle cores
    python -m benchmarks.train_step --quick          # a small network: does everything once, in seconds
    python -m benchmarks.train_step --device cuda    # a GPU: ResNet-18 at 32 px, ResNet-50 and ViT-S/16 at 224 px

Both train the same timm network, with the same optimizer, batch and recipe (the paper's ImageNet recipe, at 32 px
too), from the same JPEG files. The peer is lightly's BYOL transform (which is Barlow Twins'), its projection head and
its loss behind torch's DataLoader with one worker per core, in float32 as its examples have it, and once more in the
precision and memory layout that barlow chose. The peer's workers fill their queue, two batches each, while others have
their turn: with many cores its rate can be that of a loader that is ahead, more than it could keep up, and barlow's is
taken beside this work. The ratios err on the peer's side. Needs the extra `bench`. Writes train-step-<device>.json and
.md to --out after every case, so that a run cut short leaves what it has measured.
"""

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.objective import hardware
from lightly.loss import BarlowTwinsLoss as LightlyLoss
from lightly.models.modules.heads import BarlowTwinsProjectionHead
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torch.utils.flop_counter import FlopCounterMode

from barlow.config import PretrainConfig, config_from_settings
from barlow.data import Loader, open_source
from barlow.models import build_encoder
from barlow.models.network import autocast, deterministic_kernels, to_layout
from barlow.plan import make_plan
from barlow.training.loop import Hooks, Meter, train
from barlow.training.progress import ProgressDisplay
from barlow.training.trainer import Trainer

LR, MOMENTUM, LAMBDA = 0.06, 0.9, 0.0051
ROUNDS, STEPS = {"cpu": 3, "cuda": 2}, {"cpu": 2, "cuda": 12}
"""On a GPU what leaves the three cases within the 105 seconds of benchmarks/gpu.sh, reckoned for 16 cores."""
ENDLESS = 10**9
PARTS = ("data", "views", "encoder", "projector", "objective", "optimizer")


@dataclass(frozen=True)
class Case:
    """One network at one size."""

    encoder: str
    image_size: int
    batch: int
    width: int
    """D; all three layers of the projector"""
    file_size: tuple[int, int]
    """height and width of the JPEG files, in pixels"""
    files: int

    @property
    def title(self) -> str:
        return f"{self.encoder}, {self.image_size} px, batch {self.batch}, D = {self.width}"


CASES = {
    "cpu": [
        Case("resnet18", 32, 256, 2048, (32, 32), 2560),
        Case("resnet50", 96, 64, 8192, (96, 96), 640),
    ],
    "cuda": [
        Case("resnet18", 32, 1024, 2048, (32, 32), 20_480),
        Case("resnet50", 224, 256, 8192, (375, 500), 5120),
        Case("vit_small_patch16_224", 224, 256, 8192, (375, 500), 5120),
    ],
    "quick": [Case("resnet10-narrow", 32, 16, 64, (48, 40), 96)],
}


@dataclass
class Measured:
    """What one contender did in one case."""

    contender: str
    precision: str
    images_per_s: list[float] = field(default_factory=list)
    """of every round"""

    @property
    def median(self) -> float:
        return statistics.median(self.images_per_s)


def write_files(folder: Path, case: Case) -> None:
    """Smooth random images as JPEG files of quality 90, in one class folder as the peer's dataset wants."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)

    def write_one(number: int, coarse: np.ndarray) -> None:
        smooth = Image.fromarray(coarse).resize(case.file_size[::-1], Image.Resampling.BICUBIC)
        smooth.save(folder / "images" / f"{number:06d}.jpg", quality=90)

    pixels = generator.integers(0, 256, (case.files, 8, 8, 3), dtype=np.uint8)
    with ThreadPoolExecutor() as pool:
        list(pool.map(write_one, range(case.files), pixels))


def settings(case: Case, device: str, *, compiled: bool) -> PretrainConfig:
    """Barlow's settings for a case; everything that is not the case is the default."""
    return config_from_settings(
        {
            "encoder": case.encoder,
            "projector": (case.width,) * 3,
            "image_size": case.image_size,
            "recipe": "imagenet",
            "batch_size": case.batch,
            "optimizer": "sgd",
            "lambd": LAMBDA,
            "lr": LR,
            "holdout": 0.0,
            "epochs": 1000,
            "device": device,
            "compile": compiled,
        }
    )


class Ours:
    """Barlow's own loop, with nothing to write."""

    def __init__(self, folder: Path, case: Case, device: str, *, compiled: bool = False) -> None:
        config, source = settings(case, device, compiled=compiled), open_source(folder)
        self.plan = make_plan(config, source)
        self.trainer = Trainer(config, self.plan)
        began = time.perf_counter()
        self.loader = Loader(
            source,
            np.arange(len(source)),
            case.batch,
            maker=self.trainer.cutter,
            workers=self.plan.workers,
            device=self.plan.device,
        )
        self.display = ProgressDisplay(total_steps=1, steps_per_epoch=1, quiet=True)
        self.decode_once_s = time.perf_counter() - began
        self.name = "barlow, compiled" if compiled else "barlow"
        self.precision = self.plan.precision

    def stamps(self, steps: int) -> list[float]:
        """Clock after every one of `steps` steps; the last one waits for the device."""
        found: list[float] = []

        def stop() -> bool:
            if len(found) in (0, steps - 1):
                synchronise(self.plan.device)
            found.append(time.perf_counter())
            return len(found) == steps

        hooks = Hooks(_ignore, _ignore, None, lambda: _ignore(self.trainer.watch.poll()), stop, pause=lambda: math.inf)
        with deterministic_kernels():
            train(self.trainer, self.loader, hooks, self.display, Meter())
        return found


class Files(Dataset[Any]):
    """Two views of every file."""

    def __init__(self, folder: Path, transform: BYOLTransform) -> None:
        self.paths, self.transform = sorted(folder.rglob("*.jpg")), transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


class Peer:
    """A training script of lightly's parts, as its documentation writes it; `precision` is what the network runs in."""

    def __init__(self, folder: Path, case: Case, device: str, *, precision: str = "float32", workers: int = 2) -> None:
        torch.manual_seed(0)
        self.device, self.precision = device, precision
        self.name = "lightly" if precision == "float32" else f"lightly, {precision}, channels last"
        encoder = build_encoder(case.encoder, image_size=case.image_size)
        head = BarlowTwinsProjectionHead(encoder.feature_dim, case.width, case.width)
        self.network = nn.Sequential(encoder, head).to(device).train()
        if precision != "float32":
            self.network = self.network.to(memory_format=torch.channels_last)
        self.loss = LightlyLoss(lambda_param=LAMBDA)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=LR, momentum=MOMENTUM)
        size = case.image_size
        transform = BYOLTransform(BYOLView1Transform(input_size=size), BYOLView2Transform(input_size=size))
        files = Files(folder, transform)
        loader: DataLoader[list[Tensor]] = DataLoader(
            files,
            case.batch,
            sampler=RandomSampler(files, num_samples=ENDLESS),  # epoch after epoch without a pause between them
            num_workers=workers,
            pin_memory=device == "cuda",
        )
        self.batches = iter(loader)

    def stamps(self, steps: int) -> list[float]:
        """Clock after every step; the first and the last wait for the device."""
        found = []
        for step in range(steps):
            views = [view.to(self.device, non_blocking=True) for view in next(self.batches)]
            if self.precision != "float32":
                views = [to_layout(view) for view in views]
            with autocast(self.device, self.precision):
                z_a, z_b = (self.network(view) for view in views)
            loss = self.loss(z_a.float(), z_b.float())
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if step in (0, steps - 1):
                synchronise(self.device)
            found.append(time.perf_counter())
        return found


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _ignore(*_: Any) -> None:
    """A hook that does nothing."""


def measure(folder: Path, case: Case, device: str, steps: int, rounds: int, *, compiled: bool) -> dict[str, Any]:
    """All contenders of a case, in turns, so that other load meets them alike; a turn's first step is not timed."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ours = Ours(folder, case, device)
    contenders: list[Ours | Peer] = [ours, Peer(folder, case, device, workers=workers)]
    if ours.precision != "float32":
        contenders.append(Peer(folder, case, device, precision=ours.precision, workers=workers))
    if compiled:
        contenders.append(Ours(folder, case, device, compiled=True))
    found = [Measured(contender.name, contender.precision) for contender in contenders]
    for contender in contenders:
        contender.stamps(2)  # compilation, autotuning, the loaders' start
    for _ in range(rounds):
        for contender, measured in zip(contenders, found, strict=True):
            stamps = contender.stamps(steps + 1)
            measured.images_per_s.append(steps * case.batch / (stamps[-1] - stamps[0]))
            print(f"{case.title}: {measured.contender}: {measured.images_per_s[-1]:.1f} images/s", flush=True)
    return {"measured": found, **anatomy(ours, case, found[0].median)}


def anatomy(ours: Ours, case: Case, images_per_s: float) -> dict[str, Any]:
    """Where a step's time goes, its arithmetic, and the share of what matrix products reach here."""
    operations = count_operations(ours)
    seconds = [one_step_in_parts(ours) for _ in range(3)]
    parts = {name: statistics.median(step[name] for step in seconds) for name in PARTS}
    whole = sum(parts.values())
    peak = matrix_peak(ours.plan.device, ours.precision)
    per_image = sum(operations.values()) / case.batch
    return {
        "seconds": parts,
        "shares": {name: value / whole for name, value in parts.items()},
        "operations_per_image": {name: value / case.batch for name, value in operations.items()},
        "peak_flops": peak,
        "fraction_of_peak": per_image * images_per_s / peak,
        "decode_once_s": ours.decode_once_s,
    }


def one_step_in_parts(ours: Ours) -> dict[str, float]:
    """Seconds of each part of one update, forward and backward, with a wait for the device between them."""
    trainer, plan = ours.trainer, ours.plan
    epoch, start = divmod(trainer.step, plan.steps_per_epoch)
    clock, seconds = Stopwatch(plan.device), {}
    batch = next(iter(ours.loader.epoch(epoch, start)))
    seconds["data"] = clock.lap()
    with torch.no_grad():
        views, terms_of = trainer.method.prepare(trainer.views(batch, epoch), trainer.step)
        inputs = [to_layout(view) for view in views]
    seconds["views"] = clock.lap()
    trainer.network.train()
    trainer.optimizer.zero_grad(set_to_none=True)
    with autocast(plan.device, plan.precision):
        features = [trainer.network.encoder(view) for view in inputs]
    seconds["encoder"] = clock.lap()
    cut = [h.detach().requires_grad_() for h in features]
    with autocast(plan.device, plan.precision):
        embeddings = [trainer.network.projector(h) for h in cut]
    seconds["projector"] = clock.lap()
    leaves = [z.detach().requires_grad_() for z in embeddings]
    terms_of(leaves)["loss"].backward()  # type: ignore[no-untyped-call]
    seconds["objective"] = clock.lap()
    torch.autograd.backward(embeddings, [z.grad for z in leaves])
    seconds["projector"] += clock.lap()
    torch.autograd.backward(features, [h.grad for h in cut])
    seconds["encoder"] += clock.lap()
    trainer.optimizer.step()
    seconds["optimizer"] = clock.lap()
    trainer.step += 1
    return seconds


class Stopwatch:
    """Seconds between laps, each after everything asked of the device is done."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.lap_began = time.perf_counter()

    def lap(self) -> float:
        synchronise(self.device)
        now, before = time.perf_counter(), self.lap_began
        self.lap_began = now
        return now - before


def count_operations(ours: Ours) -> dict[str, int]:
    """Floating-point operations of matrix products and convolutions of one update, by part."""
    trainer, plan = ours.trainer, ours.plan
    batch = next(iter(ours.loader.epoch(0)))
    with torch.no_grad():
        inputs = [to_layout(view) for view in trainer.views(batch, 0)]
        terms_of = trainer.method.prepare(inputs, 0)[1]
    counts = {}
    with autocast(plan.device, plan.precision), FlopCounterMode(display=False) as counter:
        features = [trainer.network.encoder(view) for view in inputs]
        torch.autograd.backward(features, [torch.ones_like(h) for h in features])
    counts["encoder"] = counter.get_total_flops()
    with autocast(plan.device, plan.precision), FlopCounterMode(display=False) as counter:
        embeddings = [trainer.network.projector(h.detach().requires_grad_()) for h in features]
        torch.autograd.backward(embeddings, [torch.ones_like(z) for z in embeddings])
    counts["projector"] = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        terms_of([z.detach().requires_grad_() for z in embeddings])["loss"].backward()  # type: ignore[no-untyped-call]
    counts["objective"] = counter.get_total_flops()
    trainer.optimizer.zero_grad(set_to_none=True)
    return counts


def matrix_peak(device: str, precision: str) -> float:
    """Operations per second of the best of ten products of square matrices in the step's precision."""
    side = 8192 if device.startswith("cuda") else 2048
    a, b = (torch.randn(side, side, device=device, dtype=getattr(torch, precision)) for _ in range(2))
    clock = Stopwatch(device)
    times = []
    for _ in range(10):
        a @ b
        times.append(clock.lap())
    return float(2 * side**3 / min(times))


def markdown(results: Sequence[tuple[Case, dict[str, Any]]], facts: dict[str, str]) -> str:
    """Two tables: rates, and where the time goes."""
    lines = ["# One training step, from image files to updated weights", ""]
    lines += [*(f"- {key}: {value}" for key, value in facts.items()), ""]
    lines += ["Images per second: median of the rounds (least to most). Ratio: barlow's over that of the line.", ""]
    lines += ["| case | contender | precision | images/s | barlow's ratio |", "|---|---|---|---|---|"]
    for case, result in results:
        first: Measured = result["measured"][0]
        for one in result["measured"]:
            spread = f"{one.median:.1f} ({min(one.images_per_s):.1f} to {max(one.images_per_s):.1f})"
            ratio = f"{first.median / one.median:.2f}"
            lines.append(f"| {case.title} | {one.contender} | {one.precision} | {spread} | {ratio} |")
    lines += [
        "",
        "Barlow's step in parts (each waits for the one before, so that they add up to more than the loop's step):",
        "",
    ]
    names = [f"{name}, ms (share)" for name in PARTS]
    lines += [f"| case | {' | '.join(names)} | GFLOP per image | matrix product, TFLOP/s | fraction of it |"]
    lines += ["|" + "---|" * (len(PARTS) + 4)]
    for case, result in results:
        cells = [f"{1e3 * result['seconds'][n]:.1f} ({100 * result['shares'][n]:.1f}%)" for n in PARTS]
        operations = f"{sum(result['operations_per_image'].values()) / 1e9:.2f}"
        peak, fraction = f"{result['peak_flops'] / 1e12:.2f}", f"{result['fraction_of_peak']:.2f}"
        lines.append(f"| {case.title} | {' | '.join([*cells, operations, peak, fraction])} |")
    return "\n".join(lines) + "\n"


def plain(case: Case, result: dict[str, Any]) -> dict[str, Any]:
    """For JSON."""
    measured = [{**asdict(one), "median_images_per_s": one.median} for one in result["measured"]]
    return {"case": asdict(case), **result, "measured": measured}


def main() -> None:
    """Run, print and write as it goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="a small network, to see that everything works")
    parser.add_argument("--case", type=int, help="only this one, counted from 0")
    parser.add_argument("--steps", type=int, help="timed steps of a round")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--compile", action="store_true", help="also barlow with torch.compile")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    device, quick = options.device, options.quick
    steps, rounds = options.steps or STEPS[device], options.rounds or ROUNDS[device]
    cases = CASES["quick" if quick else device]
    cases = cases if options.case is None else [cases[options.case]]
    name = f"train-step-{device}{'-quick' if quick else ''}"
    name += "" if options.case is None else f"-{options.case}"
    options.out.mkdir(parents=True, exist_ok=True)
    load, results = os.getloadavg()[0], []
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            write_files(Path(folder), case)
            found = measure(Path(folder), case, device, steps, rounds, compiled=options.compile)
        results.append((case, found))
        write(options.out / name, results, facts(device, f"{rounds} of {steps} steps", load))
    print(markdown(results, facts(device, f"{rounds} of {steps} steps", load)))


def facts(device: str, rounds: str, load: float) -> dict[str, str]:
    """What the figures depend on; `load` is the load average when the run began."""
    return {
        "command": shlex.join(["python", "-m", "benchmarks.train_step", *sys.argv[1:]]),
        "hardware": hardware(device),
        "software": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "timm", "lightly")),
        "python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
        "rounds": rounds,
        "load average before and after": f"{load:.1f}, {os.getloadavg()[0]:.1f}",
        "date": datetime.date.today().isoformat(),
    }


def write(stem: Path, results: Sequence[tuple[Case, dict[str, Any]]], known: dict[str, str]) -> None:
    """Both files, with the cases measured so far."""
    body = {**known, "cases": [plain(*result) for result in results]}
    stem.with_suffix(".json").write_text(json.dumps(body, indent=1) + "\n")
    stem.with_suffix(".md").write_text(markdown(results, known))


if __name__ == "__main__":
    main()
