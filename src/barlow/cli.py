"""The command line, generated from function signatures and the config dataclasses by tyro.

The only module that imports the command-line library. Heavy imports happen inside the commands, so that help and
mistyped flags answer at once.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import inspect
import io
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args

import tyro
from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from barlow.bounds import Bounds, Count, ImageSize, Seed, Workers, check
from barlow.config import CHOICES, TRACKERS, PretrainConfig, leaves
from barlow.errors import InputError, suggest, tell
from barlow.files import user_path

FAILED, MISTAKE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141
WIDE = "10000"  # columns that no message of the command-line library fills

Flat = OmitArgPrefixes[PretrainConfig]
Data = Annotated[Positional[str], arg(metavar="DATA")]
BatchSize = Annotated[int, Bounds(1, 2**20)]
RunPath = Annotated[Positional[Path], arg(metavar="RUN")]


def pretrain(
    data: Data,
    out: Path,
    config: Flat,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Train an encoder on unlabelled data.

    Args:
        data: folder of images, .npz or .npy array, IDX files, tar shards, or a named data set
        out: folder of the run
        resume: continue the run in --out from its last checkpoint
        overwrite: replace the run in --out
    """
    from barlow.training.pretrain import pretrain as run_pretraining

    with _told_of_interruption():
        run_pretraining(data, out, config=config, resume=resume, overwrite=overwrite)


@contextlib.contextmanager
def _told_of_interruption(how_to_go_on: str = "") -> Iterator[None]:
    """A signal that was met with a checkpoint: one line, and the exit code that a scheduler expects.

    `how_to_go_on` replaces the run's own advice where the run is a part of something larger.
    """
    from barlow.training.pretrain import Interrupted

    try:
        yield
    except Interrupted as interrupted:
        if interrupted.told:
            advice = how_to_go_on and f"interrupted after saving; {how_to_go_on}"
            tell(f"barlow: {advice or interrupted}")
        sys.exit(interrupted.code)


def demo(out: Path = Path("runs/demo"), seed: Seed = 0, overwrite: bool = False) -> None:
    """Pretrain two methods on embedded digits, measure them, report.

    After a kill the same command goes on.

    Args:
        out: folder of the two runs and the report
        seed: seed of the runs
        overwrite: replace an earlier demo in --out
    """
    from barlow.demo import run_demo

    with _told_of_interruption(f"continue with `barlow demo --out {out} --seed {seed}`"):
        run_demo(out, seed=seed, overwrite=overwrite)


def evaluate(
    run: RunPath,
    data: str,
    protocols: tuple[str, ...] = ("knn", "linear"),
    seed: Seed = 0,
    held_out: Annotated[float, Bounds(0, 1, above=True, below=True)] = 0.2,
    device: str | None = None,
    workers: Workers | None = None,
    batch_size: BatchSize = 256,
    check_overlap: bool = True,
) -> None:
    """Measure an encoder on labelled data, beside two baselines.

    Started by torchrun, the first process measures; the others have nothing to do.

    Args:
        run: run folder, or an encoder's .safetensors file
        data: labelled data: class folders, arrays with labels, or a named data set
        protocols: knn, linear, few-shot, and more (an unknown name lists them)
        seed: seed of the split and of everything drawn
        held_out: share of every class that is scored, where neither the data nor the run says what to score
        device: cpu, cuda, ...; by default the best there is
        workers: readers of images at a time; by default one per processor for image files
        batch_size: images per forward pass
        check_overlap: compare all images by content and warn of scored ones that were trained on
    """
    if _ranks()[0] > 0:
        return
    from barlow.evaluation import evaluate as measure
    from barlow.tables import print_results

    results = measure(
        run,
        data,
        protocols,
        seed=seed,
        held_out=held_out,
        device=device,
        workers=workers,
        batch_size=batch_size,
        check_overlap=check_overlap,
    )
    print_results(results)


def embed(
    run: RunPath,
    data: Data,
    out: Path,
    split: str | None = None,
    batch_size: BatchSize = 256,
    device: str | None = None,
    workers: Workers | None = None,
    overwrite: bool = False,
) -> None:
    """Write the features of every sample to a .parquet or .npz file.

    Started by torchrun, every process writes a file of its own beside --out.

    After a kill the same command goes on.

    Args:
        run: run folder, or an encoder's .safetensors file
        data: what to embed
        out: file to write, .parquet or .npz
        split: part of the data, where it has parts; by default train
        batch_size: samples per forward pass
        device: cpu, cuda, ...; by default a GPU where there is one
        workers: readers of images at a time; by default one per processor for image files
        overwrite: replace a file at --out that barlow did not write
    """
    from barlow.embedding import embed as write
    from barlow.embedding import open_for, shard
    from barlow.files import check_outputs
    from barlow.models import load_encoder

    rank, ranks = _ranks()
    file = shard(out, rank, ranks)  # a wrong name is refused before the data are looked through
    check_outputs([file], inputs=[run, data], overwrite=overwrite)
    encoder = load_encoder(run)
    source = open_for(encoder, data, split=split)
    features = write(
        encoder,
        source,
        out=out,
        batch_size=batch_size,
        device=device,
        workers=workers,
        rank=rank,
        world_size=ranks,
        overwrite=overwrite,
    )
    if source.note:
        print(f"{source.name}: {source.note}")
    print(f"{len(features)} samples, {features.x.shape[1]} features each: {file}")


def search(run: RunPath, query: Annotated[Positional[str], arg(metavar="QUERY")], data: str, k: Count = 10) -> None:
    """Find the images nearest to a query image.

    Args:
        run: run folder, or an encoder's .safetensors file
        query: image file, or a folder of them
        data: images to search, or a feature file that `barlow embed` wrote with this encoder
        k: how many
    """
    from barlow.embedding import search as find

    for found in find(run, query, data, k=k):
        for match in found:
            label = f"  {match.label}" if match.label is not None else ""
            print(_printable(f"{match.similarity:.4f}  {match.key}{label}"))


def _printable(line: str) -> str:
    """Names of files may hold line breaks, and bytes that are no text: these are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def export(run: RunPath, format: str, out: Path, preprocessing: bool = False, overwrite: bool = False) -> None:
    """Write the encoder in the format another tool reads.

    Args:
        run: run folder, or an encoder's .safetensors file
        format: safetensors, torchvision, timm, onnx, torch-export, or hf
        out: file (folder, for timm and hf) to write
        preprocessing: onnx and torch-export: normalise stored pixels inside the model
        overwrite: replace files at --out that barlow did not write
    """
    from barlow.exporting import export as write

    print(write(run, format, out, preprocessing=preprocessing, overwrite=overwrite))


def import_(
    file: Annotated[Positional[Path], arg(metavar="FILE")],
    out: Path,
    layout: str = "auto",
    trained_on: str | None = None,
    stem: str = "auto",
    overwrite: bool = False,
) -> None:
    """Read a checkpoint of another code base, to measure and export it.

    Args:
        file: checkpoint: .pth, .pt, .ckpt, or .safetensors
        out: folder of the encoder
        layout: official, mixed, solo-learn, lightly, or auto (by the key names)
        trained_on: data it was trained on (imagenet, cifar10, ...), for the preprocessing; official: imagenet
        stem: small, small-pooled or small-padded, where a 3x3 first convolution leaves it open
        overwrite: replace an encoder in --out that was not imported
    """
    from barlow.importing import import_checkpoint

    print(import_checkpoint(file, out, layout=layout, data=trained_on, stem=stem, overwrite=overwrite))


def report(
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN...", help_behavior_hint="(one or more)")],
    out: Path | None = None,
    data: str | None = None,
    points: Annotated[int, Bounds(3, 65535)] = 4000,
    layout: str = "tsne",
    overwrite: bool = False,
) -> None:
    """Write one self-contained HTML page about one or several runs.

    Args:
        runs: run folders
        out: page to write; report.html in the first run by default
        data: images for the map and the neighbours; the run's own data by default
        points: samples on the map, at most
        layout: how the map is laid out: tsne, or umap (with umap-learn)
        overwrite: replace a file at --out that barlow did not write
    """
    from barlow.report import report as write

    print(write(runs, out=out, data=data, points=points, layout=layout, overwrite=overwrite))


def serve(
    runs_dir: Annotated[Positional[Path], arg(metavar="RUNS_DIR")],
    host: str = "127.0.0.1",
    port: Annotated[int, Bounds(0, 65535)] = 8384,
) -> None:
    """Show a folder's runs in the browser, live; search them by image.

    Args:
        runs_dir: folder that holds the runs
        host: address to listen on; beyond 127.0.0.1 everybody who reaches it can look and search
        port: port to listen on
    """
    from barlow.serve import serve as show

    show(runs_dir, host=host, port=port)


def views(
    data: Data,
    out: Path = Path("views.png"),
    recipe: str = "auto",
    samples: Annotated[int, Bounds(1, 1000)] = 8,
    image_size: ImageSize | None = None,
    seed: Seed = 0,
    channels: Annotated[int, Bounds(1, 2**12)] | None = None,
    overwrite: bool = False,
) -> None:
    """Draw originals and their views, to judge a recipe by eye.

    Args:
        data: where the samples come from
        out: picture to write
        recipe: augmentation recipe by name, or a TOML file
        samples: originals shown
        image_size: side of the views, in pixels; worked out from the data by default
        seed: seed of the views and of the choice of samples
        channels: channels to read the images with; by default what the data hold
        overwrite: replace a file at --out that barlow did not write
    """
    from barlow.training.pictures import draw_views

    drawn = draw_views(
        data,
        out,
        recipe=recipe,
        samples=samples,
        image_size=image_size,
        seed=seed,
        channels=channels,
        overwrite=overwrite,
    )
    print(drawn)


def replay(run: RunPath, device: str | None = None) -> None:
    """Run the step again that had a NaN or an infinity, to find where.

    The batch of all processes goes through one.

    Args:
        run: run folder
        device: cpu, cuda, ...; by default as the run had it
    """
    from barlow.training.replay import replay as again

    for line in again(run, device=device):
        print(line)


def study(
    name: Annotated[Positional[str], arg(metavar="NAME")] = "",
    data: Annotated[Positional[str], arg(metavar="DATA")] = "",
    out: Path | None = None,
    seeds: Annotated[int, Bounds(1, 10**6)] = 3,
    budget: str = "full",
    set: UseAppendAction[tuple[str, ...]] = (),
    cells: str = "",
    launch: str = "local",
    launch_with: UseAppendAction[tuple[str, ...]] = (),
) -> None:
    """Run one of the papers' experiments; without NAME, list them.

    The same command goes on after an interruption; finished cells are kept.

    Args:
        name: overfitting, mixing, width, ...; left out, all are listed
        data: folder, array, or named data set to train on
        out: folder of the study: a run folder per cell, tables, figure, findings
        seeds: runs of every cell, with seeds 0, 1, ...
        budget: full, or small (a thousand images on two cores)
        set: key=value: a setting of all cells, or levels of an axis by commas; repeatable
        cells: share of the cells to run, such as 1/4
        launch: local, slurm, or ray
        launch_with: key=value for submitit or Ray; repeatable
    """
    from barlow.studies import run_study
    from barlow.studies.runner import overview, report_on
    from barlow.studies.settings import split_pairs

    if not name:
        print("\n".join(overview()))
        return
    if not data or out is None:
        raise InputError(f"missing {'--out' if data else 'DATA'}. See `barlow study --help`.")
    settings, options = split_pairs(set), split_pairs(launch_with, "--launch-with")
    with _told_of_interruption("the same command goes on"):
        results = run_study(
            name,
            data,
            out,
            seeds=seeds,
            settings=settings,
            budget=budget,
            cells=cells,
            launch_on=launch,
            launch_with=options,
        )
    for line in report_on(results):
        print(line)
    if results.failed:
        sys.exit(FAILED)


def doctor() -> None:
    """Show versions, devices, speed, memory and disk, with advice."""
    from barlow.doctor import examine

    for line in examine():
        print(line)


def completion(shell: Annotated[Positional[str], arg(metavar="SHELL")]) -> None:
    """Print a script that completes commands and flags in your shell.

    Once, in bash: barlow completion bash > ~/.barlow-completion.bash

    Then, in ~/.bashrc: source ~/.barlow-completion.bash

    Args:
        shell: bash, zsh, or fish
    """
    from barlow.completion import Command, completion_script

    known = _values()
    commands = {
        name: Command(
            _summary(function), {flag: known.get(f"{name} {flag}", known.get(flag, ())) for flag in _flags(function)}
        )
        for name, function in COMMANDS.items()
    }
    print(completion_script(shell, commands), end="")


def _flags(function: Callable[..., None]) -> Iterator[str]:
    for parameter in inspect.signature(function).parameters.values():
        if parameter.annotation is Flat:
            yield from (_flag(name, value) for _, name, value in leaves())
        elif Positional not in getattr(parameter.annotation, "__metadata__", ()):
            yield _flag(parameter.name, parameter.default)


def _flag(name: str, default: object = None) -> str:
    """What sets it; what is so unless told otherwise is set by its opposite."""
    return ("--no-" if default is True else "--") + name.replace("_", "-")


def _values() -> dict[str, tuple[str, ...]]:
    """The values of flags that take one of a few."""
    from barlow.evaluation.protocols import PROTOCOLS
    from barlow.exporting import WRITERS
    from barlow.importing import LAYOUTS as CHECKPOINTS
    from barlow.methods import METHODS
    from barlow.models.encoders import OWN
    from barlow.report.gallery import LAYOUTS as MAPS
    from barlow.views import RECIPES

    return {_flag(name): choices for name, choices in CHOICES.items()} | {
        "--method": tuple(METHODS),
        "--encoder": (*OWN, "resnet18", "resnet50", "vit_small_patch16_224"),
        "--recipe": tuple(RECIPES),
        "--protocols": tuple(PROTOCOLS),
        "--trackers": TRACKERS,
        "--format": tuple(WRITERS),
        "--device": ("cpu", "cuda", "mps"),
        "import --layout": ("auto", *CHECKPOINTS),
        "import --stem": ("auto", "small", "small-pooled", "small-padded"),
        "report --layout": MAPS,
    }


def _ranks() -> tuple[int, int]:
    """This process's rank and how many there are, as torchrun says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "pretrain": pretrain,
    "evaluate": evaluate,
    "embed": embed,
    "search": search,
    "export": export,
    "import": import_,
    "report": report,
    "serve": serve,
    "views": views,
    "study": study,
    "replay": replay,
    "doctor": doctor,
    "completion": completion,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: runs one command; a person's mistake is one line on stderr and exit code 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    warnings.showwarning = _one_line_warning
    hook, threading.excepthook = threading.excepthook, _one_line_of_thread
    try:
        _check_homes(arguments)
        _parse(arguments or ["--help"])()
        sys.stdout.flush()  # or a full disk would only show at the interpreter's end, as a traceback
    except InputError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        tell("barlow: interrupted")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # `barlow ... | head`: nobody is left to tell
        sys.exit(BROKEN_PIPE)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _fail(f"{error.strerror or error}{where}")
    except (MemoryError, RuntimeError) as error:
        from barlow.training.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or ["no room for a Python object"])[0]
        _fail(f"out of memory ({reason}); free some, or read fewer or smaller samples at once")
    finally:
        threading.excepthook = hook
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # the interpreter flushes again when it ends, and would fail on what is left
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _check_homes(arguments: Sequence[str]) -> None:
    """Every path of every command: `~name` of nobody would otherwise raise wherever the path is first used."""
    for argument in arguments:
        path = argument.rpartition("=")[2]
        if path.startswith("~") and os.path.expanduser(path) == path:  # noqa: PTH111  pathlib raises instead
            raise InputError(
                f"there is no user '{path[1:].partition('/')[0]}', as '{path}' has it; give the path in full"
            )


def _parse(arguments: list[str]) -> Callable[[], Any]:
    """The chosen command with its arguments filled in; tyro's boxed errors become one line."""
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown), _unwrapped(arguments):
            return _chosen(arguments)
    except SystemExit as leave:
        if not leave.code:
            raise
        mistake = _input_error_behind(leave)
    raise mistake or InputError(_condense(shown.getvalue(), arguments[0]))


@contextlib.contextmanager
def _unwrapped(arguments: Sequence[str]) -> Iterator[None]:
    """A region in which tyro does not wrap its errors, which would be cut; help keeps the terminal's width."""
    before = os.environ.get("COLUMNS")
    if not {"-h", "--help"} & set(arguments):
        os.environ["COLUMNS"] = WIDE
    try:
        yield
    finally:
        os.environ.pop("COLUMNS", None)
        if before is not None:
            os.environ["COLUMNS"] = before


def _input_error_behind(leave: BaseException) -> InputError | None:
    """What the settings themselves said before tyro put it into a box."""
    error: BaseException | None = leave
    while error is not None and not isinstance(error, InputError):
        error = error.__context__
    return error


def _chosen(arguments: list[str]) -> Callable[[], Any]:
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        return lambda: print(importlib.metadata.version("barlow"))
    if name in ("-h", "--help"):
        return _overview
    if name not in COMMANDS:
        raise InputError(f"unknown command '{name}'. {suggest(name, COMMANDS)}")
    chosen = _filled_in(name, COMMANDS[name], rest)
    if name == "pretrain" and chosen.keywords["resume"]:
        from barlow.run import CONFIG, Run

        out = chosen.keywords["out"]
        if (out / CONFIG).exists():  # what is not said again is as it was
            return _filled_in(name, functools.partial(pretrain, config=Run(out).config), rest)
    return chosen


def _filled_in(name: str, function: Callable[..., None], arguments: list[str]) -> "functools.partial[None]":
    hints = inspect.get_annotations(function.func if isinstance(function, functools.partial) else function)

    @functools.wraps(function)
    def later(**values: Any) -> functools.partial[None]:
        for key, value in values.items():
            check(_flag(key), hints[key], value)
        return functools.partial(function, **{key: _at_home(value) for key, value in values.items()})

    later.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    with _OPTIONAL:
        return tyro.cli(later, args=arguments, prog=f"barlow {name}")


_OPTIONAL = ConstructorRegistry()


@_OPTIONAL.primitive_rule
def _or_none(asked: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """What may be left out reads `--workers INT` in help, not `--workers {None}|INT`; `None` is taken all the same."""
    kinds = set(get_args(asked.type)) - {NoneType}
    if asked.type_origin not in (Union, UnionType) or len(kinds) != 1 or NoneType not in get_args(asked.type):
        return None
    inner = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kinds.pop(), asked.markers))
    if not isinstance(inner, PrimitiveConstructorSpec):
        return None
    return dataclasses.replace(
        inner,
        instance_from_str=lambda words: None if words == ["None"] else inner.instance_from_str(words),
        is_instance=lambda value: value is None or inner.is_instance(value),
        str_from_instance=lambda value: ["None"] if value is None else inner.str_from_instance(value),
    )


def _at_home(value: Any) -> Any:
    """Paths with ~ in full: shells leave it alone in `--out=~/run`."""
    if isinstance(value, tuple):
        return tuple(map(_at_home, value))
    return user_path(value) if isinstance(value, Path) else value


def _overview() -> None:
    print("usage: barlow COMMAND [options]\n\nPretrain an encoder on unlabelled data, measure it, take it away.\n")
    for name, function in COMMANDS.items():
        print(f"  {name:<10} {_summary(function)}")
    print("\n`barlow COMMAND --help` tells more; `barlow --version` prints the version.")


def _summary(function: Callable[..., None]) -> str:
    return (function.__doc__ or "").splitlines()[0]


def _condense(boxed: str, command: str) -> str:
    """What a boxed error says, in one sentence, and the flag it suggests."""
    text = [line.strip("\u2502| ") for line in boxed.splitlines()[1:]]  # the first line is the box's title
    lines = [line for line in text if line.strip("-+\u2500\u256d\u256e\u2570\u256f ")]
    said = next(iter(lines), "cannot be read")
    if said.startswith("Missing from"):
        said = "missing " + ", ".join(line for line in lines[1:] if re.match(r"--|[A-Z]+[. ]*$", line))
    near = next((line.split()[0] for line in lines[1:] if re.match(r"--\w", line)), None)
    hint = f" Did you mean {near}?" if near and "Perhaps you meant:" in lines else ""
    return f"{said.rstrip('.')}.{hint} See `barlow {command} --help`."


def _one_line_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    tell(f"barlow: warning: {message}")


def _one_line_of_thread(failed: threading.ExceptHookArgs) -> None:
    """TensorBoard's writer is a thread of its own, which ends when its disk is full."""
    if isinstance(failed.exc_value, OSError):
        tell(f"barlow: warning: {failed.exc_value}")
    else:
        threading.__excepthook__(failed)


def _fail(message: str) -> None:
    tell(f"barlow: {' '.join(message.split())}")
    sys.exit(MISTAKE)
