"""What is minimised: Barlow Twins, Mixed Barlow Twins, the variants their papers compare with, and the baselines."""

from barlow.objectives.barlow_twins import BarlowTwinsLoss
from barlow.objectives.byol import BYOLLoss
from barlow.objectives.dino import DINOLoss
from barlow.objectives.mixed import MixedBarlowTwinsLoss
from barlow.objectives.moco import MoCoLoss
from barlow.objectives.simclr import NTXentLoss
from barlow.objectives.simsiam import SimSiamLoss
from barlow.objectives.swav import SwAVLoss
from barlow.objectives.variants import VariantLoss, unit_rows
from barlow.objectives.vicreg import VICRegLoss
from barlow.objectives.w_mse import WMSELoss

__all__ = [
    "BYOLLoss",
    "BarlowTwinsLoss",
    "DINOLoss",
    "MixedBarlowTwinsLoss",
    "MoCoLoss",
    "NTXentLoss",
    "SimSiamLoss",
    "SwAVLoss",
    "VICRegLoss",
    "VariantLoss",
    "WMSELoss",
    "unit_rows",
]
