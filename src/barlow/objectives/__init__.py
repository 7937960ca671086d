"""What is minimised: Barlow Twins, Mixed Barlow Twins, and the variants their papers compare with."""

from barlow.objectives.barlow_twins import BarlowTwinsLoss, pairwise_terms
from barlow.objectives.mixed import MixedBarlowTwinsLoss
from barlow.objectives.variants import VariantLoss, unit_rows

__all__ = ["BarlowTwinsLoss", "MixedBarlowTwinsLoss", "VariantLoss", "pairwise_terms", "unit_rows"]
