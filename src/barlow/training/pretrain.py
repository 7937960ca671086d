"""`barlow.pretrain`: images in, a run folder with a trained encoder out."""

import inspect
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from barlow.config import PretrainConfig, config_from_settings, config_to_dict, flag, leaves
from barlow.data import CorruptSample, Loader, Source, WorkerDied, difference, identity, open_source
from barlow.errors import InputError
from barlow.evaluation.frozen import eval_mode
from barlow.evaluation.knn import TEMPERATURE, K
from barlow.files import LOCK, locked, read_json, remove_leftovers, user_path, write_json
from barlow.models import save_encoder
from barlow.models.network import deterministic_kernels, is_of_compiler
from barlow.models.whitenet import FIRST_LAYER_IMAGES
from barlow.plan import (
    Plan,
    choose_device,
    choose_optimizer,
    environment,
    make_plan,
    plan_from_dict,
    split_indices,
)
from barlow.ranks import Team
from barlow.records import Facts
from barlow.run import CONFIG, FACTS, HEALTH, METRICS, Run
from barlow.training.checkpoint import CheckpointError, CheckpointWriter, generators_given_back, load_latest, pause
from barlow.training.distributed import joined
from barlow.training.faults import Fault, save_replay
from barlow.training.loop import Hooks, Meter, Record, train
from barlow.training.memory import StepMemory, is_out_of_memory, placing, view_shapes
from barlow.training.progress import ProgressDisplay
from barlow.training.signals import SignalFlag
from barlow.training.trackers import MetricsLog, open_trackers
from barlow.training.trainer import Trainer
from barlow.training.validation import Validator, drawn

CHECKPOINTS = "checkpoints"
AGREE_EVERY = 10  # steps between the ranks' agreements on whether to stop
MOST_NAMED = 10  # unreadable samples named on screen
MANY = 20_000  # samples whose decoding takes long enough to be announced
MOST_ROWS = 10_000  # training rows kept to draw corrupted features from
# Of a plan, between start and resume. The data are compared by content: a copy may lie elsewhere.
MAY_CHANGE = frozenset({"data_name", "local_batch", "world_size", "device", "workers"})
OF_EACH_RANK = {"device": "", "workers": 0}  # of a plan; machines of one run need not be equal
REWRITTEN = (CONFIG, FACTS, METRICS, HEALTH, "encoder.*")  # files that a killed run may have left half written
# In the order of their removal: a folder is a run as long as it has its settings, so they go last, and come last.
EARLIER_RUN = (
    *(CHECKPOINTS, METRICS, HEALTH, "evaluations", "tensorboard", "replay-*.pt"),
    *("gallery.json", "gallery.npz", "encoder.json", "encoder.safetensors"),
    *(FACTS, CONFIG),
)


def pretrain(
    data: str | Path | np.ndarray | Tensor | Source,
    out: str | Path,
    *,
    config: PretrainConfig | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Pretrain an encoder on unlabelled data and return its run.

    `data` is what `barlow.data.open_source` takes; labels it may have are used for the k-NN score alone. `out`
    is a new folder, unless `resume` continues the run in it (or begins one, so that a scheduler can repeat one
    command) or `overwrite` replaces it. `config` holds all settings; keyword settings such as `epochs=20` or
    `method="mixed-barlow-twins"` are laid over it (see `barlow.config`). `encoder` may be a `torch.nn.Module` mapping
    a batch `[B, C, h, w]` to features `[B, F]`.

    Raises InputError for unknown or impossible settings, data that cannot be trained on, an existing run without
    `resume` or `overwrite`, both of them together, and a resume whose settings or data differ.
    """
    if resume and overwrite:
        raise InputError("--resume continues a run and --overwrite replaces it; give one of them")
    module = settings.pop("encoder") if isinstance(settings.get("encoder"), nn.Module) else None
    folder = user_path(out)
    settings = {**settings, "encoder": "custom"} if module is not None else settings
    chosen = _settings_of(folder, config, settings, resume=resume)
    device = choose_device(chosen.training.device)
    with ExitStack() as stack:
        team = stack.enter_context(joined(device))
        asked = stack.enter_context(SignalFlag())
        if device.startswith("cuda:"):  # streams and events are those of the current GPU
            stack.enter_context(torch.cuda.device(device))
        stack.enter_context(generators_given_back(torch.device(device)))
        session = _begin(data, folder, chosen, module, team, stack, resume=resume, overwrite=overwrite, quiet=quiet)
        stack.enter_context(deterministic_kernels())
        session.run(asked)
    if asked.received is not None and session.trainer.step < session.plan.total_steps:
        raise Interrupted(folder, asked.exit_code, told=team.is_main)
    return Run(folder)


class _NotFinite(Exception):  # noqa: N818  carries the fault out of the loop
    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


class Interrupted(Exception):  # noqa: N818  a request that was met, not an error
    """The run was asked to end by a signal, and has saved.

    `code` is what a scheduler expects as exit code; of several ranks one should tell (`told`).
    """

    def __init__(self, folder: Path, code: int, *, told: bool) -> None:
        super().__init__(f"interrupted after saving; continue with --resume --out {folder}")
        self.code, self.told = code, told


def _begin(
    data: Any,
    folder: Path,
    config: PretrainConfig,
    module: nn.Module | None,
    team: Team,
    held: ExitStack,
    *,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> "_Session":
    source = (
        data if isinstance(data, Source) else open_source(data, split=config.data.split, channels=config.data.channels)
    )
    stored = read_json(folder / FACTS, Facts).get("encoder") if resume and (folder / FACTS).exists() else None
    plan = make_plan(config, source, world_size=team.size, local_rank=team.local_rank, encoder=stored)
    team.check_agree("the settings or the data", {**plan.to_dict(), **OF_EACH_RANK, "config": config_to_dict(config)})
    with placing(plan.device):
        session = _Session(folder, config, plan, source, module, team, quiet=quiet or not team.is_main)
    if team.is_main:  # only now: settings that cannot be built must not replace an earlier run
        _prepare_folder(folder, config, plan, source, held, resume=resume, overwrite=overwrite)
    team.barrier()  # nobody looks into the folder before it is ready
    if resume:
        with placing(plan.device):
            session.restore()
    return session


def _settings_of(
    folder: Path, config: PretrainConfig | None, settings: Mapping[str, Any], *, resume: bool
) -> PretrainConfig:
    """The run's settings. On resume the stored ones; whatever is given must agree with them."""
    stored = Run(folder).config if resume and (folder / CONFIG).exists() else None
    chosen = config_from_settings(settings, config or stored)
    if stored is not None and chosen != stored:
        pairs = zip(leaves(chosen), leaves(stored), strict=True)
        differing = [f"{flag(name)} {now} (was {was})" for (_, name, now), (_, _, was) in pairs if now != was]
        raise InputError(f"{folder} was started with other settings: {', '.join(differing)}; start a new run instead")
    return chosen


def _prepare_folder(
    folder: Path,
    config: PretrainConfig,
    plan: Plan,
    source: Source,
    held: ExitStack,
    *,
    resume: bool,
    overwrite: bool,
) -> None:
    """Make the folder this run's alone, and ready; its lock is freed with `held`."""
    is_run = (folder / CONFIG).exists()
    if is_run and not (resume or overwrite):
        raise InputError(f"{folder} already holds a run; use --resume to continue it or --overwrite to replace it")
    if is_run and "objective" not in read_json(folder / CONFIG, dict[str, Any]):
        raise InputError(f"{folder / CONFIG} does not hold the settings of a run; choose a new folder for --out")
    if not is_run and folder.is_dir() and any(not _is_ours(path) for path in folder.iterdir()):
        raise InputError(f"{folder} is not empty and not a run; choose a new folder for --out")
    facts = _facts(plan, source)
    try:
        held.enter_context(locked(folder / LOCK, wait=False))
        for name in REWRITTEN:
            remove_leftovers(folder, name)
        if is_run and resume:
            _same_plan(folder, facts)
            write_json(folder / FACTS, {**read_json(folder / FACTS, Facts), **facts})
            return
        for path in (path for name in EARLIER_RUN for path in folder.glob(name)):
            _remove(path)
        write_json(folder / FACTS, facts)
        write_json(folder / CONFIG, config_to_dict(config))
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; choose another --out") from None


def _facts(plan: Plan, source: Source) -> dict[str, Any]:
    data = {"location": source.location, **identity(source)}
    return {**plan.to_dict(), "data": data, "environment": environment(), "status": "running"}


def _is_ours(path: Path) -> bool:
    """Whether a file is of a run that was killed before it had its settings."""
    return path.name in (FACTS, LOCK) or path.match(".*.tmp")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _same_plan(folder: Path, now: Mapping[str, Any]) -> None:
    """A resumed run must find the data as they were, or its order and views would be others."""
    then = read_json(folder / FACTS, Facts)
    if "data" in then and (found := difference(then["data"], now["data"])):  # earlier versions did not note them
        raise InputError(f"cannot resume {folder}: {now['data_name']} does not hold the data it began with: {found}")
    was, plan = plan_from_dict({**now, **then}), plan_from_dict(now)
    for name in (field.name for field in fields(Plan) if field.name not in MAY_CHANGE):
        old, new = getattr(was, name), getattr(plan, name)
        close = isinstance(new, tuple) and len(new) == len(old) > 0 and np.allclose(new, old, rtol=1e-6, atol=0)
        if old != new and not close:
            raise InputError(f"cannot resume {folder}: {name} is {new} now and was {old}")


class _Session:
    """One process's part in a run, from the folder's state to the encoder file."""

    def __init__(
        self,
        folder: Path,
        config: PretrainConfig,
        plan: Plan,
        source: Source,
        module: nn.Module | None,
        team: Team,
        *,
        quiet: bool,
    ) -> None:
        self.folder, self.config, self.plan, self.source, self.team = folder, config, plan, source, team
        self.display = ProgressDisplay(total_steps=plan.total_steps, steps_per_epoch=plan.steps_per_epoch, quiet=quiet)
        train_rows, held_rows = split_indices(config, source)
        self.reference: Tensor | None = None  # table rows [R, F] that corrupted features draw their values from
        if plan.kind == "table":
            some = drawn(train_rows, MOST_ROWS, config.training.seed)
            self.reference = torch.stack([source.read(int(i)) for i in some])
        self.trainer = Trainer(config, plan, encoder=module, reference=self.reference, rank=team.rank)
        if self.trainer.encoder.first_layer_fits_data:
            images = _sample_images(source, train_rows, plan, seed=config.training.seed)
            for encoder in {self.trainer.network.encoder, self.trainer.encoder}:  # the trained one and its average
                encoder.fit_first_layer(images.to(plan.device))
        self.loader = self._open_loader(train_rows)  # it may keep data on the device: before memory is measured
        recipe = self.trainer.recipe
        if recipe.kind != plan.kind:
            raise InputError(
                f"recipe '{recipe.name}' makes views of {recipe.kind} samples; these are {plan.kind} samples"
            )
        shapes = view_shapes(recipe, plan)
        self._check_views(recipe.name, shapes)
        self.memory = StepMemory(config, plan, self.trainer.network, self.trainer.method, shapes)
        self.trainer.micro_batch = self._agreed_micro_batch()
        self.meter = Meter()
        self.told: str | None = None
        self.failures: set[str] = set()
        self.started, self.earlier_s = time.time(), 0.0
        validator = Validator(source, train_rows, held_rows, self.trainer) if len(held_rows) else None
        self.validator = validator if team.is_main else None
        self.resume_step: int | None = None

    def _check_views(self, recipe: str, shapes: Sequence[tuple[int, ...]]) -> None:
        """Refuse what the first step would fail on, while an earlier run in the folder is still as it was."""
        if len(shapes) < 2:
            raise InputError(
                f"recipe '{recipe}' makes one view of a sample, and views are compared: give two [[views]]"
            )
        if self.config.objective.method == "mixed-barlow-twins" and shapes[0] != shapes[1]:
            raise InputError(
                f"recipe '{recipe}' makes views of two sizes, which cannot be mixed: give the first two one"
            )
        encoder = self.trainer.network.encoder
        for shape in sorted(set(shapes)):
            try:
                with torch.no_grad(), eval_mode(encoder):
                    encoder(next(encoder.parameters()).new_zeros(1, *shape))
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                reason = (str(error).strip() or repr(error)).splitlines()[0]
                raise InputError(
                    f"encoder '{self.plan.encoder}' cannot take views of {list(shape)}: {reason}"
                ) from error

    def _agreed_micro_batch(self) -> int | None:
        """The smallest of all ranks': they must go through the network the same number of times."""
        sizes = [size for size in self.team.gather(self.memory.micro_batch()) if size is not None]
        return min(sizes, default=None)

    def _open_loader(self, rows: np.ndarray) -> Loader:
        if len(rows) > MANY:
            self.display.say(f"data       opening {len(rows):,} samples; small ones of one size are decoded once, now")
        return Loader(
            self.source,
            rows,
            self.plan.local_batch,
            maker=self.trainer.cutter,
            seed=self.config.training.seed,
            rank=self.team.rank,
            world_size=self.team.size,
            workers=self.plan.workers,
            cache=self.config.data.cache,
            device=self.plan.device,
        )

    def restore(self) -> None:
        """Continue from the newest intact checkpoint, if there is one."""
        self.earlier_s = read_json(self.folder / FACTS, Facts).get("wall_s", 0.0)
        try:
            state = load_latest(self.folder / CHECKPOINTS)
        except CheckpointError as error:
            raise InputError(f"{error} No checkpoint of {self.folder} is intact; --overwrite starts anew") from None
        if state is not None:
            self.trainer.load_state_dict(state["trainer"])
            self.meter = Meter.from_state(state["meter"], self.trainer.device)
            if self.validator:
                self.validator.history = list(state["validations"])
        self.resume_step = self.trainer.step if state is not None else None
        self.team.check_agree(f"the checkpoint that {self.folder} holds", self.resume_step)

    def run(self, asked: SignalFlag) -> None:
        """Train to the end, or until asked to stop; leaves checkpoint, encoder and status behind."""
        self._announce()
        with ExitStack() as stack:
            log = stack.enter_context(self._logs()) if self.team.is_main else _ignore
            writer = CheckpointWriter(self.folder / CHECKPOINTS, self.config.output.keep_checkpoints)
            hooks = Hooks(
                log=log,
                checkpoint=self._checkpointing(writer),
                validate=self._validating(log, self.validator) if self.validator else None,
                check=self._check_finite,
                stop=lambda: self._asked_to_stop(asked),
                pause=lambda: self._pause(writer),
            )
            try:
                with self._one_line():
                    if hooks.validate and self.trainer.step == 0:
                        hooks.validate(0)
                    complete = train(self.trainer, self.loader, hooks, self.display, self.meter)
            except _NotFinite as found:
                self._keep_fault(found.fault)
            self._await(writer)
        if self.team.is_main:
            self._finish("finished" if complete else "interrupted")

    def _pause(self, writer: CheckpointWriter) -> float:
        """Only the process that writes knows how long it takes; the others wait for it."""
        longest = 60 * self.config.output.checkpoint_minutes
        return pause(writer.took_s, longest) if self.team.is_main else math.inf

    def _asked_to_stop(self, asked: SignalFlag) -> bool:
        """Alone at every step; ranks agree every few steps, since they must stop at the same one."""
        if self.team.size == 1:
            return asked.received is not None
        if self.trainer.step % AGREE_EVERY and self.trainer.step < self.plan.total_steps:
            return False
        number = self.team.largest(asked.received or 0)
        if number:
            asked.received = signal.Signals(number)  # every rank ends as the one that was asked
        return number > 0

    def _check_finite(self, *, wait: bool = False) -> None:
        """The quantities are global: the main rank sees what all have."""
        fault = self.trainer.watch.poll(wait=wait) if self.team.is_main else None
        if fault is not None:
            raise _NotFinite(fault)

    def _keep_fault(self, fault: Fault) -> NoReturn:
        """Keep the step for `barlow replay`; the reader of batches is free again."""
        state = {**self.trainer.state_dict(), "step": fault.step}
        epoch, start = divmod(fault.step, self.plan.steps_per_epoch)
        batch = self.loader.of_all_ranks(epoch, start)
        kept = {"epoch": epoch, "ids": batch.ids, "images": batch.images, "cuts": batch.cuts}
        kept |= {"reference": self.reference, "micro_batch": self.trainer.micro_batch}
        names = ", ".join(str(self.source.keys[i]) for i in batch.ids[:3].tolist())
        advice = "lower --lr, or set --clip"
        try:
            save_replay(self.folder, fault, batch=kept, state=state)
            advice = f"batch and state are kept: run `barlow replay {self.folder}`, or {advice}"
        except CheckpointError as error:
            advice = f"batch and state could not be kept ({error}); {advice}"
        self._set_status("failed")
        raise InputError(f"{fault} (samples {names}, ...); {advice}")

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        """What the machine did to the run, said without a traceback."""
        try:
            yield
        except WorkerDied as error:
            first, *rest = str(error).splitlines()
            raise InputError(" ".join([first, *rest[-1:]])) from error
        except Exception as error:
            if is_out_of_memory(error):
                raise InputError(self.memory.advice()) from error
            if not is_of_compiler(error):
                raise
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"--compile failed: {reason}; train without it, or install what it misses") from error

    @contextmanager
    def _logs(self) -> Iterator[Callable[[Record], None]]:
        settings = config_to_dict(self.config)
        names = self.config.output.trackers
        trackers = open_trackers(names, self.folder, config=settings, resume_step=self.resume_step)
        metrics = MetricsLog(self.folder / METRICS, self.resume_step)

        def log(line: Record) -> None:
            for target in (metrics, *trackers):
                with self._failures_said():
                    target.log(line)

        self._sync = metrics.sync
        try:
            yield log
        finally:
            for target in (metrics, *trackers):
                with self._failures_said():
                    target.close()

    def _checkpointing(self, writer: CheckpointWriter) -> Callable[[Meter], None]:
        def checkpoint(meter: Meter) -> None:
            self._check_finite(wait=True)  # or the state of a step after a fault would be kept as sound
            if not self.team.is_main:
                return
            with self._failures_said():
                self._sync()  # the lines up to this step must be there when the run continues from it
                writer.write(self._state(meter), self.trainer.step)
                self._set_status("running")  # a process that is killed leaves its time

        return checkpoint

    def _await(self, writer: CheckpointWriter) -> None:
        with self._failures_said():
            writer.wait()

    @contextmanager
    def _failures_said(self) -> Iterator[None]:
        """A file that cannot be written does not end a run that is going well; it is said once of each."""
        try:
            yield
        except (CheckpointError, OSError) as error:
            if str(error) not in self.failures:
                self.failures.add(str(error))
                self.display.say(f"warning    {error}")

    def _state(self, meter: Meter) -> dict[str, Any]:
        validations = self.validator.history if self.validator else []
        return {"trainer": self.trainer.state_dict(), "meter": meter.state_dict(), "validations": list(validations)}

    def _validating(self, log: Callable[[Record], None], validator: Validator) -> Callable[[int], Record]:
        def validate(epoch: int) -> Record:
            self._check_finite(wait=True)  # weights that are not sound are not worth a measurement
            record, diagnostics = validator(self.trainer, self.trainer.encoder, self.trainer.network.projector)
            log({"kind": "validation", "step": self.trainer.step, "epoch": epoch, **record})
            with self._failures_said():
                write_json(self.folder / HEALTH, diagnostics)
                self._save_encoder(epoch)
            self._tell(diagnostics["verdict"])
            return record

        return validate

    def _tell(self, verdict: Mapping[str, Any]) -> None:
        """The verdict in words when it has changed, and at the end; random weights have none yet."""
        step = self.trainer.step
        if step == self.plan.total_steps or (step > 0 and verdict["state"] != self.told):
            self.told = verdict["state"]
            self.display.say(f"health     {verdict['text']}")

    def _save_encoder(self, epoch: int) -> None:
        save_encoder(
            self.trainer.encoder,
            self.plan.preprocess(),
            self.folder,
            method=self.config.objective.method,
            data=self.plan.data_name,
            epochs=epoch,
            seed=self.config.training.seed,
        )

    def _finish(self, status: str) -> None:
        self._save_encoder(self.trainer.step // self.plan.steps_per_epoch)
        self._set_status(status)
        skipped = self._skipped()
        for key, reason in skipped[:MOST_NAMED]:
            self.display.say(f"skipped    {key}: {reason}")
        if len(skipped) > MOST_NAMED:
            self.display.say(f"skipped    {len(skipped) - MOST_NAMED} more unreadable samples, all in {FACTS}")
        self.display.say(f"{status:<10} {self.trainer.step} steps; run folder {self.folder}")

    def _skipped(self) -> list[tuple[str, str]]:
        """(key, reason) of every unreadable sample that training or validation met."""
        held = self.validator.skipped if self.validator else []
        return sorted({*self.loader.skipped, *held})

    def _set_status(self, status: str) -> None:
        wall = self.earlier_s + time.time() - self.started
        found = {"status": status, "step": self.trainer.step, "wall_s": wall, "skipped": self._skipped()}
        write_json(self.folder / FACTS, {**read_json(self.folder / FACTS, Facts), **found})

    def _announce(self) -> None:
        plan, config = self.plan, self.config
        size = f"{plan.image_size} px, " if plan.kind == "image" else ""
        held = f", {plan.n_held} held out" if plan.n_held else ""
        labels = f"labels only for the k-NN score (k {K}, T {TEMPERATURE:g})" if plan.has_labels else "no labels"
        say = self.display.say
        if self.source.note:
            say(f"data       {self.source.note}")
        say(f"data       {plan.data_name}: {plan.n_train:,} samples to train on{held}; {labels}")
        mean, std = (" ".join(f"{value:.3g}" for value in values) for values in (plan.mean, plan.std))
        say(f"views      recipe {plan.recipe}, {size}{plan.channels} channels, mean {mean}, std {std}")
        weights = sum(p.numel() for p in self.trainer.network.encoder.parameters())
        architecture = self.trainer.network.encoder.architecture
        widths = "-".join(map(str, config.model.projector))
        network = f"{architecture.name}, {architecture.stem} stem, {weights / 1e6:.1f} M weights"
        say(f"model      {network}; projector {widths}")
        say(f"objective  {config.objective.method}, {self.trainer.method.settings}")
        optimizer = choose_optimizer(config.optimizer.optimizer, plan.encoder)
        say(f"optimizer  {optimizer}, peak rate {plan.lr:.4g}, {plan.warmup_steps} warm-up steps")
        batch = plan.local_batch * plan.world_size
        say(
            f"training   {config.training.epochs} epochs of {plan.steps_per_epoch} steps, batch {batch}, "
            f"{plan.precision} on {plan.device}, seed {config.training.seed}"
        )
        say(f"memory     {self.memory.describe(self.trainer.micro_batch)}")
        if self.trainer.step:
            say(f"resuming   after step {self.trainer.step} of {plan.total_steps}")
        elif (expected := type(self.trainer.method).expected_loss(config, plan)) is not None:
            say(f"expected   a loss near {expected:.4g} if nothing were related; a fresh network starts lower")


def _sample_images(source: Source, rows: np.ndarray, plan: Plan, *, seed: int) -> Tensor:
    """Up to `FIRST_LAYER_IMAGES` readable training images, drawn by seed and normalised: [N, C, h, w]."""
    preprocess, images = plan.preprocess(), list[Tensor]()
    for row in drawn(rows, FIRST_LAYER_IMAGES, seed):
        with suppress(CorruptSample):
            images.append(preprocess(source.read(int(row))[None]))
    if not images:
        raise InputError(f"{source.name} has no readable image among {FIRST_LAYER_IMAGES} that were tried")
    return torch.cat(images)


def _ignore(line: Record) -> None:
    """Where the lines of all ranks but the first go."""


def _public_signature() -> inspect.Signature:
    """`pretrain` with every setting spelled out, for help() and editors; the defaults come from the config."""
    own = [p for p in inspect.signature(pretrain).parameters.values() if p.kind is not p.VAR_KEYWORD]
    given = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value) for _, name, value in leaves()]
    return inspect.Signature([*own, *given], return_annotation=Run)


pretrain.__signature__ = _public_signature()  # type: ignore[attr-defined]
