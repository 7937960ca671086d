"""Encoders, stems, projectors, and the encoder on disk."""

from barlow.models.encoders import Architecture, Encoder, build_encoder
from barlow.models.files import backbone_weights, load_encoder, save_encoder
from barlow.models.preprocess import Preprocess
from barlow.models.projectors import Prototypes, build_predictor, build_projector

__all__ = [
    "Architecture",
    "Encoder",
    "Preprocess",
    "Prototypes",
    "backbone_weights",
    "build_encoder",
    "build_predictor",
    "build_projector",
    "load_encoder",
    "save_encoder",
]
