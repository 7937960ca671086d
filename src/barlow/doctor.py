"""`barlow doctor`: what this machine can do, and what to do about it."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from barlow.config import PretrainConfig, config_from_settings
from barlow.data import Loader, open_source
from barlow.plan import choose_device, choose_precision, make_plan
from barlow.training.memory import available_bytes, gib
from barlow.training.trainer import Trainer

PACKAGES = ("barlow", "torch", "torchvision", "timm", "numpy", "scikit-learn", "safetensors", "pillow")
EXTRAS = {"onnx": "ONNX export", "umap": "UMAP maps", "faster_coco_eval": "detection scores"}
STEPS, SIDE = 3, 32
SLOW, LITTLE_DISK = 100, 5 * 2**30


def examine() -> Iterator[str]:
    """Lines: versions, devices, speed of the default step, memory, disk, then advice."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    yield f"versions   python {platform.python_version()}, {', '.join(versions)}"
    missing = [f"{name} ({use})" for name, use in EXTRAS.items() if importlib.util.find_spec(name) is None]
    yield f"extras     {'all there' if not missing else 'missing: ' + ', '.join(missing)}"
    device = choose_device("auto")
    yield f"device     {device}: {_hardware(device)}"
    precision = choose_precision("auto", device)
    yield f"precision  {precision}{'' if precision == 'bfloat16' else ' (no native bfloat16 here)'}"
    rate = measure_step(config_from_settings({"device": device}))
    yield f"speed      {rate:,.0f} images/s: ResNet-18, {SIDE} px, batch {PretrainConfig().training.batch_size}"
    free = shutil.disk_usage(Path.cwd()).free
    yield f"memory     {gib(available_bytes(device))} free on {device}"
    yield f"disk       {gib(free)} free here"
    yield from _advice(rate, free, device)


def measure_step(config: PretrainConfig) -> float:
    """Images per second of the whole step (views, network, loss, update) on random 32-pixel images in memory."""
    batch = config.training.batch_size
    images = np.random.default_rng(0).integers(0, 256, (batch, 3, SIDE, SIDE), dtype=np.uint8)
    source = open_source(images)
    plan = make_plan(config_from_settings({"holdout": 0.0}, config), source)
    trainer = Trainer(config, plan)
    first = next(Loader(source, np.arange(batch), batch, device=plan.device).epoch(0))
    trainer.train_step(first, 0)
    times = []
    for _ in range(STEPS):
        began = time.perf_counter()
        trainer.train_step(first, 0)["loss"].item()  # reading the loss waits for the device
        times.append(time.perf_counter() - began)
    return batch / sorted(times)[STEPS // 2]


def _hardware(device: str) -> str:
    if device.startswith("cuda"):
        return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def _advice(rate: float, free: int, device: str) -> Iterator[str]:
    if device == "cpu" and torch.version.cuda and not torch.cuda.is_available():
        yield "advice     torch was built for CUDA but sees no GPU; if there is one, check the driver"
    if rate < SLOW:
        hours = 100 * 50_000 / rate / 3600
        yield (
            f"advice     100 epochs of 50,000 such images would take {hours:.0f} hours here; "
            "use --encoder resnet10-narrow, fewer epochs, or a GPU"
        )
    if free < LITTLE_DISK:
        yield "advice     little disk is left; checkpoints of large encoders take gigabytes (--keep-checkpoints 1)"
