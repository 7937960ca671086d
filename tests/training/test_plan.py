"""What a run chooses for itself where the settings leave it open."""

import pytest

from barlow.config import config_from_settings
from barlow.training.plan import choose_lambd


@pytest.mark.parametrize(
    ("width", "batch", "lambd"),
    [
        (8192, 2048, 0.0051),  # the official code
        (1024, 256, 1 / 128),  # the released Mixed Barlow Twins
        (16, 64, 1 / 128),
        (512, 64, 1 / 256),
        (4096, 256, 1 / 512),
        (65_536, 256, 1 / 8192),
    ],
)
def test_lambda_is_the_papers_at_their_width_and_batch_and_never_drowns_the_diagonal(
    width: int, batch: int, lambd: float
) -> None:
    config = config_from_settings({"projector": (512, width), "batch_size": batch})
    assert choose_lambd(config) == pytest.approx(lambd, rel=1e-12)
