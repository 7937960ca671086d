"""`barlow report RUN [RUN ...]`: make what pictures are missing, then write the page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from barlow.data import Source, open_source
from barlow.errors import InputError
from barlow.files import check_outputs
from barlow.models import Preprocess
from barlow.report.gallery import FACTS, check_map, make_gallery, read_gallery
from barlow.report.page import write_report
from barlow.run import Run
from barlow.views import ViewMaker, get_recipe, recipe_from_toml

PAGE = "report.html"


def report(
    runs: Sequence[Run | str | Path],
    *,
    out: str | Path | None = None,
    data: Any = None,
    points: int = 4000,
    layout: str = "tsne",
    overwrite: bool = False,
) -> Path:
    """Write the page of one run, or of several side by side, and return its path.

    `out` is `report.html` in the first run by default. The images of the map are those of `data`, or by default of
    the data the run was trained on, where they are still there; a map that is there already and fits the
    encoder, the data and `points` stays. `layout` as in `make_gallery`. Raises InputError for a path that is
    not a run, `data` that cannot be opened, a number of points or layout that no map has, and an `out` that barlow
    did not write unless `overwrite`.
    """
    check_map(points, layout)  # also where there is no map to make
    folders = [Run(run) for run in runs]
    if not folders:
        raise InputError("no run to report on; name a run folder")
    page = folders[0].path / PAGE if out is None else Path(out)
    if out is not None:
        check_outputs([page], inputs=[*(run.path for run in folders), data], overwrite=overwrite)
    for run in folders:
        _picture(run, data, points, layout)
    return write_report(folders, page)


def _picture(run: Run, data: Any, points: int, layout: str) -> None:
    source = _source(run, data)
    if source is None:
        return
    encoder = run.encoder()
    gallery = read_gallery(run.path) if (run.path / FACTS).exists() else None
    wanted = (str(encoder.facts["sha256"]), source.name, min(points, len(source)))
    if gallery is None or (gallery.encoder, gallery.data, len(gallery.keys)) != wanted:
        make_gallery(run, source, encoder, maker=_maker(run, source, encoder.preprocess), points=points, layout=layout)


def _source(run: Run, data: Any) -> Source | None:
    """The images to show; None where the run's own data is gone or nothing was trained yet."""
    if not (run.path / "encoder.safetensors").exists():
        return None
    if data is not None:
        return data if isinstance(data, Source) else open_source(data, channels=run.facts.get("channels"))
    try:
        return run.open_data()
    except InputError:
        return None


def _maker(run: Run, source: Source, shown: Preprocess | None) -> ViewMaker | None:
    """The run's own views; None for signals and tables, which have no picture."""
    if source.kind != "image" or shown is None or "recipe" not in run.facts:
        return None
    name = run.facts["recipe"]
    recipe = recipe_from_toml(Path(name)) if name.endswith(".toml") else get_recipe(name)
    return ViewMaker(
        recipe,
        image_size=shown.image_size,
        channels=shown.channels,
        mean=shown.mean,
        std=shown.std,
        seed=run.config.training.seed,
        value_range=run.facts.get("value_range", (0.0, 1.0)),
    )
