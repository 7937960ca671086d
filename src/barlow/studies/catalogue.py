"""All studies by name."""

from collections.abc import Mapping

from barlow.studies.barlow_paper import ASYMMETRY, AUGMENTATIONS, BATCH, INFORMATION, LOSS_TERMS, METHODS, WIDTH
from barlow.studies.mixed_paper import ARCHITECTURES, LINEARITY, MIXING, OVERFITTING
from barlow.studies.study import Study

STUDIES: Mapping[str, Study] = {
    study.name: study
    for study in (
        *(OVERFITTING, MIXING, WIDTH, BATCH, LOSS_TERMS, ASYMMETRY),
        *(AUGMENTATIONS, ARCHITECTURES, LINEARITY, INFORMATION, METHODS),
    )
}
