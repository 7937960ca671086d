"""The examples in other trainers learn: after few steps the loss is clearly below where it began."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_plain_loop_lowers_the_mixed_loss() -> None:
    plain = example("plain_loop")
    history = plain.train(plain.digits()[:512], epochs=4)
    assert history[-1] < 0.7 * history[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's advice about workers and loggers
def test_lightning_trains_the_encoder_and_logs_the_terms() -> None:
    pytorch_lightning = pytest.importorskip("pytorch_lightning")
    lightning = example("with_lightning")
    losses: list[float] = []

    class Losses(pytorch_lightning.Callback):  # type: ignore[misc, name-defined]
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            losses.append(outputs["loss"].item())

    torch.manual_seed(0)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        max_steps=16, accelerator="cpu", enable_model_summary=False, callbacks=[Losses()], **quiet
    )
    trainer.fit(lightning.BarlowTwins(), lightning.loader(batch=64))
    logged = {name: value.item() for name, value in trainer.logged_metrics.items()}
    assert logged["loss"] == pytest.approx(logged["invariance"] + logged["redundancy"], rel=1e-5)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Accelerate's advice about its own environment
def test_accelerate_lowers_the_loss() -> None:
    pytest.importorskip("accelerate")
    losses = example("with_accelerate").train(epochs=1, batch=64, most_steps=10)
    assert losses[-1] < 0.7 * losses[0]
