"""Pretraining as a scikit-learn transformer."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from barlow.data import Source, open_source
from barlow.data.files import from_files
from barlow.errors import InputError
from barlow.evaluation import extract
from barlow.models import load_encoder
from barlow.training.pretrain import pretrain

Array = npt.NDArray[Any]


class BarlowTwinsEncoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Learns features without labels by redundancy reduction (arXiv 2103.03230, 2312.02151).

    `fit` and `transform` take images as an array `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`, a list of image files,
    or a folder; or a table `[N, F]`, whose rows are images when `image_shape` says so.

    Parameters
    ----------
    method : as in `barlow.pretrain`: "barlow-twins", "mixed-barlow-twins", or a baseline
    encoder : timm model name, or a module mapping a batch to features; "auto" goes by the kind of data
    epochs : passes over the data
    batch_size : samples per step; all of them where there are fewer
    image_shape : (H, W) or (C, H, W) of the rows of a two-dimensional X; None for tables
    settings : further settings of `barlow.pretrain` by name, such as {"lr": 0.001}
    out : folder for the run; None keeps no run, the encoder lives in this object
    device : where training and `transform` run, as in `barlow.pretrain`
    random_state : seed, generator or None

    Attributes
    ----------
    encoder_ : the trained encoder, in eval mode
    n_features_in_ : features of a two-dimensional X (columns), otherwise not set
    """

    def __init__(
        self,
        *,
        method: str = "barlow-twins",
        encoder: Any = "auto",
        epochs: int = 100,
        batch_size: int = 256,
        image_shape: tuple[int, ...] | None = None,
        settings: Mapping[str, Any] | None = None,
        out: str | Path | None = None,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.method = method
        self.encoder = encoder
        self.epochs = epochs
        self.batch_size = batch_size
        self.image_shape = image_shape
        self.settings = settings
        self.out = out
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Pretrain on X; y is ignored. Raises InputError (a ValueError) for data that cannot be trained on."""
        source = self._source(X, fitting=True)
        if len(source) < 2:
            raise InputError(f"pretraining needs at least 2 samples, got n_samples = {len(source)}")
        if self.out is not None:
            self._pretrain(source, Path(self.out))
            return self
        with tempfile.TemporaryDirectory(prefix="barlow-") as folder:
            self._pretrain(source, Path(folder) / "run")
        return self

    def _pretrain(self, source: Source, out: Path) -> None:
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        run = pretrain(
            source,
            out,
            quiet=True,
            **{
                "method": self.method,
                "encoder": self.encoder,
                "epochs": self.epochs,
                "batch_size": min(self.batch_size, len(source)),
                "device": self.device,
                "seed": seed,
                "holdout": 0.0,
                **(self.settings or {}),
            },
        )
        module = self.encoder if isinstance(self.encoder, torch.nn.Module) else None
        self.encoder_ = load_encoder(run, module=module)
        self._n_features_out = self.encoder_.feature_dim

    def transform(self, X: Any) -> Array:
        """Features `[N, F]` of X, one row per sample.

        Raises InputError where a sample cannot be read (its row would be missing), or data of another kind.
        """
        check_is_fitted(self, "encoder_")
        source = self._source(X, fitting=False)
        if source.kind == "table":
            return self._table_features(source)
        device = None if self.device == "auto" else self.device
        features = extract(self.encoder_, source, device=device)
        if len(features.x) < len(source):
            missing = sorted(set(range(len(source))) - set(features.ids.tolist()))
            raise InputError(f"{len(missing)} samples cannot be read, the first is {source.keys[missing[0]]}")
        return features.x

    @torch.no_grad()
    def _table_features(self, source: Source) -> Array:
        """In double precision, where a row's features do not depend on the rows beside it to any digit that counts."""
        preprocess = self.encoder_.preprocess
        assert preprocess is not None  # load_encoder always sets it
        if not len(source):
            return np.zeros((0, self.encoder_.feature_dim))
        rows = torch.stack([source.read(i) for i in range(len(source))]).double()
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (preprocess.mean, preprocess.std))
        self.encoder_.double()
        try:
            features = self.encoder_((rows - mean) / std)
        finally:
            self.encoder_.float()
        return np.asarray(features.numpy())

    def _source(self, X: Any, *, fitting: bool) -> Source:
        """X as a source of samples; two-dimensional X is checked as scikit-learn does."""
        if isinstance(X, Source):
            return X
        if isinstance(X, str | os.PathLike):
            return open_source(Path(X), channels=self._channels(fitting))
        if _is_paths(X):
            return from_files(Path(), [os.fspath(item) for item in X], name="files", channels=self._channels(fitting))
        if _dimensions(X) > 2:
            return open_source(np.asarray(X), channels=self._channels(fitting))
        table: Array = validate_data(self, X, reset=fitting, dtype=np.float64)
        if self.image_shape is None:
            return open_source(table.astype(np.float32), kind="table")
        return open_source(self._as_images(table))

    def _channels(self, fitting: bool) -> int | None:
        """Channels to read: any when fitting, the encoder's afterwards."""
        preprocess = None if fitting else self.encoder_.preprocess
        return None if preprocess is None else preprocess.channels

    def _as_images(self, table: Array) -> Array:
        shape = tuple(self.image_shape or ())
        if len(shape) not in (2, 3) or int(np.prod(shape)) != table.shape[1]:
            raise InputError(f"image_shape {shape} does not make images of rows with {table.shape[1]} values")
        images = table.reshape(len(table), *shape).astype(np.float32)
        return images if len(shape) == 3 else images[:, None]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        tags.non_deterministic = False
        return tags


def _dimensions(X: Any) -> int:
    return int(getattr(X, "ndim", 0))


def _is_paths(X: Any) -> bool:
    """A list of files: text or paths, not numbers that are written as text in an array."""
    return isinstance(X, Sequence) and len(X) > 0 and all(isinstance(item, str | os.PathLike) for item in X)
