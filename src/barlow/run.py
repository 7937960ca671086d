"""The run folder: the only interface between commands.

config.json          the settings, as given
run.json             what was worked out (images, sizes, statistics, recipe), the environment, and the status
metrics.jsonl        one line per logged step, epoch and validation
checkpoints/         last.pt and the ones kept before it
encoder.safetensors  the weights, with encoder.json: architecture and preprocessing
health.json          the latest label-free diagnostics
evaluations/         one JSON per protocol and data set
report.html          the page
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from barlow.config import PretrainConfig, config_from_dict
from barlow.data import Source, difference, identity, open_source
from barlow.errors import InputError
from barlow.files import read_json, read_lines, user_path, write_json
from barlow.models import Encoder, load_encoder
from barlow.records import Evaluation, Facts, Health, Line, typed

MOST_BYTES = 200
"""Bytes of a result's names in the name of its file; file systems allow 255 with hash and ending."""

CONFIG, FACTS, METRICS, HEALTH = "config.json", "run.json", "metrics.jsonl", "health.json"


@dataclass(frozen=True)
class Run:
    """A run folder that exists. Reading is lazy: every property looks at the disk again."""

    path: Path

    def __init__(self, path: "str | Path | Run") -> None:
        folder = user_path(path.path if isinstance(path, Run) else path)
        if not (folder / CONFIG).is_file():
            raise InputError(
                f"{folder} is not a run folder (no {CONFIG}); create one with `barlow pretrain DATA --out {folder}`"
            )
        object.__setattr__(self, "path", folder)

    def __fspath__(self) -> str:
        """The folder, so that a run is taken wherever a path is."""
        return str(self.path)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def config(self) -> PretrainConfig:
        """The settings of the run, read back strictly."""
        file = self.path / CONFIG
        values = read_json(file, dict[str, Any])
        try:
            return config_from_dict(values)
        except InputError as error:
            raise InputError(f"{file}: {error}") from None

    @property
    def facts(self) -> Facts:
        """What was worked out from the data, the environment, and the status (running, finished, ...)."""
        return read_json(self.path / FACTS, Facts) if (self.path / FACTS).exists() else {}

    def open_data(self) -> Source:
        """The data the run was trained on. Raises InputError where they are not found, or are not what they were."""
        facts = self.facts
        then = facts.get("data", {})
        location = then.get("location")
        if not location:
            raise InputError(f"{self.path / FACTS} does not say where the data of this run lie")
        source = open_source(location, split=self.config.data.split, channels=facts.get("channels"))
        if found := difference(then, identity(source)):
            raise InputError(f"{location} does not hold the data of {self.path} any more: {found}")
        return source

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics_file(self) -> Path:
        """The file of `metrics`."""
        return self.path / METRICS

    def metrics(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, or those of one kind (step, epoch, validation); a torn last line is left out."""
        if not self.metrics_file.exists():
            return []
        lines = read_lines(self.metrics_file, Line)
        for number, line in enumerate(lines, start=1):
            measured = {name: value for name, value in line.items() if name not in Line.__annotations__}
            typed(measured, dict[str, float | None], f"line {number} of {self.metrics_file}")
        return [dict(line) for line in lines if kind is None or line["kind"] == kind]

    def health(self) -> Health:
        """The latest label-free diagnostics; empty when none were made."""
        file = self.path / HEALTH
        found = read_json(file, Health) if file.exists() else Health()
        matrix = found["correlation"]["matrix"] if "correlation" in found else []
        if any(len(row) != len(matrix) for row in matrix):
            raise InputError(f"{file} is damaged: its correlation matrix is not square")
        return found

    def evaluations(self) -> list[Evaluation]:
        """Every saved evaluation, by file name."""
        return [read_json(file, Evaluation) for file in sorted((self.path / "evaluations").glob("*.json"))]

    def save_evaluation(self, result: Mapping[str, Any]) -> Path:
        """Write one result as `evaluations/<protocol>-<data>.json`, replacing an earlier one of both.

        Letters of any script stay. Where that file holds a result of other names, which differ only in what a file's
        name leaves out, a hash of the names follows.
        """
        names = [str(result[key]) for key in ("protocol", "data")]
        stem = "-".join(re.sub(r"[^\w.]+", "-", name).strip("-.") for name in names)
        stem = stem.encode(errors="ignore")[:MOST_BYTES].decode(errors="ignore")
        file = self.path / "evaluations" / f"{stem}.json"
        earlier = read_json(file, dict[str, Any]) if file.is_file() else result
        if [str(earlier.get(key)) for key in ("protocol", "data")] != names:
            digest = hashlib.sha256("\n".join(names).encode(errors="surrogatepass")).hexdigest()[:8]
            file = file.with_name(f"{stem}-{digest}.json")
        write_json(file, result)
        return file

    def encoder(self) -> Encoder:
        """The trained encoder, in eval mode."""
        return load_encoder(self.path)
