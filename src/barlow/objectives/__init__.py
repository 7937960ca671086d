"""What is minimised: Barlow Twins, Mixed Barlow Twins, and the variants their papers compare with."""

from barlow.objectives.barlow_twins import BarlowTwinsLoss, pairwise_terms
from barlow.objectives.mixed import MixedBarlowTwinsLoss

__all__ = ["BarlowTwinsLoss", "MixedBarlowTwinsLoss", "pairwise_terms"]
