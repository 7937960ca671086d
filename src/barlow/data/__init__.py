"""Where samples come from: folders, arrays, named data sets, shards; splits; loaders."""

from .content import difference, identity
from .describe import Description, describe
from .loader import Batch, Loader
from .opening import open_source
from .source import CorruptSample, DataWarning, Source
from .splits import holdout_split
from .workers import WorkerDied

__all__ = [
    "Batch",
    "CorruptSample",
    "DataWarning",
    "Description",
    "Loader",
    "Source",
    "WorkerDied",
    "describe",
    "difference",
    "holdout_split",
    "identity",
    "open_source",
]
