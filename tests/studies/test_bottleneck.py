from pathlib import Path
from typing import Any

import pytest

import barlow
from barlow.data import Source
from barlow.studies.bottleneck import bottleneck_curves


@pytest.mark.slow
def test_the_terms_of_every_checkpoint_add_up_in_the_precision_of_training(source: Source, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "encoder": "resnet10-narrow",
        "projector": (16, 16),
        "epochs": 4,
        "batch_size": 16,
        "holdout": 0.5,
    }
    found = {}
    for precision in ("float32", "bfloat16"):
        kept: dict[str, Any] = {"checkpoint_steps": 4, "keep_checkpoints": 2, "precision": precision}
        run = barlow.pretrain(source, tmp_path / precision, quiet=True, **settings, **kept)
        found[precision] = curves = bottleneck_curves(run, source)
        for how in ("gauss", "knn"):
            total, left, told = (curves[f"{term}_{how}"] for term in ("entropy", "conditional", "information"))
            assert [epoch for epoch, _ in told] == [0, 2, 4]
            for (_, h), (_, conditional), (_, information) in zip(total, left, told, strict=True):
                assert information == pytest.approx(h - conditional, abs=1e-6)
    for name, curve in found["float32"].items():  # the same untrained network, but for rounding
        assert found["bfloat16"][name][0][1] == pytest.approx(curve[0][1], abs=0.2)
