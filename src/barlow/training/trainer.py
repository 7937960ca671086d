"""Everything that changes during a run, and the one step that changes it."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from barlow.config import PretrainConfig
from barlow.data import Batch
from barlow.errors import InputError
from barlow.methods import method_class
from barlow.methods.memory import follow
from barlow.methods.method import Terms, detached, rank_seed
from barlow.models import Encoder, build_encoder, build_projector
from barlow.models.network import TwinNetwork, autocast, guard_convolutions, to_layout
from barlow.models.sync_norm import synchronise_norms
from barlow.plan import Plan, choose_optimizer, resolve_recipe
from barlow.schedules import warmup_cosine
from barlow.training.checkpoint import capture_rng, restore_rng, seed_generators
from barlow.training.faults import NonFiniteWatch
from barlow.training.gradient_cache import cached_backward
from barlow.training.optimizers import (
    build_optimizer,
    clip_gradients,
    load_optimizer_state,
    parameter_groups,
    set_lr,
)
from barlow.views import SignalViewMaker, TableViewMaker, ViewMaker, view_maker


class Trainer:
    """Network, objective, optimizer and schedule; `train_step` makes views of a batch and moves the weights once.

    A run is a pure function of the plan and the seed: views depend on (seed, epoch, sample), mixing on
    (seed, rank, step), the learning rate on the step, and the generators of torch (which dropout draws from), NumPy
    and Python are seeded anew from (seed, rank, step) at every step. So any rank resumes exactly without a state of
    its own.
    """

    def __init__(
        self,
        config: PretrainConfig,
        plan: Plan,
        *,
        encoder: nn.Module | None = None,
        reference: Tensor | None = None,
        rank: int = 0,
    ) -> None:
        self.config, self.plan = config, plan
        self._rank_seed = rank_seed(config.training.seed, rank)
        self._method_class = method_class(config.objective.method)
        self.micro_batch: int | None = None
        self.device = torch.device(plan.device)
        self.step = 0
        self.network = self._build_network(encoder).to(self.device)
        if plan.kind == "image":
            self.network = self.network.to(memory_format=torch.channels_last)
        self.average: Encoder | None = None  # of the encoder's weights, exponentially weighted
        if config.model.ema:
            self.average = copy.deepcopy(self.network.encoder).eval().requires_grad_(False)
        self.optimizer = build_optimizer(
            choose_optimizer(config.optimizer.optimizer, plan.encoder),
            parameter_groups(self.network),
            lr=plan.lr,
            lr_biases=plan.lr_biases,
            weight_decay=config.optimizer.weight_decay,
        )
        self.method = self._method_class(config, plan, self.network, rank)
        self.recipe = resolve_recipe(plan.recipe).with_views(config.views.views)
        if not self._method_class.takes_all_views:  # a view that the loss never sees is not made
            self.recipe = self.recipe.with_views(min(2, self.recipe.view_count))
        self.maker = self._build_maker(reference)
        self.watch = NonFiniteWatch(self.device)
        self.watch.guard(self.optimizer)
        self._forward = self._wrap()

    def _build_network(self, encoder: nn.Module | None) -> TwinNetwork:
        torch.manual_seed(self.config.training.seed)
        model, plan = self.config.model, self.plan
        size = plan.image_size if plan.kind == "image" else 0
        built = build_encoder(
            encoder if encoder is not None else plan.encoder,
            channels=plan.channels,
            image_size=size,
            stem=model.stem,
        )
        if model.activation_checkpointing:
            built.checkpoint_activations()
        projector = build_projector(
            built.feature_dim,
            model.projector,
            head=model.head,
            norm=model.projector_norm,
            last_norm=self._method_class.standardises_output,
        )
        network: nn.Module = TwinNetwork(built, projector, self._method_class.head(self.config, plan))
        if plan.world_size > 1:
            network = synchronise_norms(network, plan.device)
        if plan.device == "cpu" and plan.precision == "bfloat16":
            guard_convolutions(network)
        assert isinstance(network, TwinNetwork)  # the container itself is never replaced
        return network

    def _build_maker(self, reference: Tensor | None) -> ViewMaker | SignalViewMaker | TableViewMaker:
        plan = self.plan
        return view_maker(
            self.recipe,
            image_size=plan.image_size,
            mean=plan.mean,
            std=plan.std,
            seed=self.config.training.seed,
            reference=reference,
            value_range=plan.value_range,
            dtype=torch.bfloat16 if plan.precision == "bfloat16" else torch.float32,
        )

    def _wrap(self) -> nn.Module:
        network: nn.Module = self.network
        if self.config.training.compile:
            network.compile()
        if self.plan.world_size > 1:
            ids = [self.device.index or 0] if self.device.type == "cuda" else None
            network = DistributedDataParallel(network, device_ids=ids)
            # The statistics of all ranks are equal already. As argument this flag is deprecated from torch 2.13 on, and
            # its successor is unknown before.
            network.broadcast_buffers = False
        return network

    @property
    def encoder(self) -> Encoder:
        """What the run is for: the trained encoder, or its moving average when one is kept."""
        return self.network.encoder if self.average is None else self.average

    @property
    def cutter(self) -> ViewMaker | None:
        """What a loader cuts views of large images with; signals and table rows are never cut."""
        return self.maker if isinstance(self.maker, ViewMaker) else None

    @property
    def lr(self) -> float:
        """Learning rate of the weights at this step."""
        return self.plan.lr * self._multiplier()

    def _multiplier(self) -> float:
        return warmup_cosine(self.step, total=self.plan.total_steps, warmup=self.plan.warmup_steps)

    def views(self, batch: Batch, epoch: int) -> list[Tensor]:
        """The views of a batch, on the training device, channels last."""
        if batch.cuts is not None:
            assert isinstance(self.maker, ViewMaker)  # only images are cut where they are decoded
            views = self.maker.finish([cut.to(self.device, non_blocking=True) for cut in batch.cuts], batch.ids, epoch)
        else:
            assert batch.images is not None  # a batch has one or the other
            views = self.maker(batch.images.to(self.device, non_blocking=True), batch.ids, epoch)
        return [to_layout(view) for view in views]

    def train_step(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """One update of the weights; the terms of the objective before it, and the gradient's norm, on the device."""
        self.network.train()
        seed_generators(self._rank_seed, self.step)
        with torch.no_grad():
            inputs, terms_of = self.method.prepare(self.views(batch, epoch), self.step)
        self.optimizer.zero_grad(set_to_none=True)
        terms = self._backward([to_layout(view) for view in inputs], terms_of)
        terms["gradient_norm"] = self._clip()
        self.watch.update(self.step, terms)
        set_lr(self.optimizer, self._multiplier())
        self.optimizer.step()
        if self.average is not None and self.config.model.ema:
            follow(self.average, self.network.encoder, self.config.model.ema, self.watch.tripped)
            for mine, theirs in zip(self.average.buffers(), self.network.encoder.buffers(), strict=True):
                mine.copy_(theirs)  # batch statistics are averages already
        self.method.after_step(self.network, self.step, self.watch.tripped)
        self.step += 1
        return terms

    def _clip(self) -> Tensor:
        """The gradient's norm, and the gradient cut to the limit where there is one."""
        limit = self.config.optimizer.clip
        return clip_gradients(self.optimizer, math.inf if limit is None else limit)

    def _backward(self, inputs: list[Tensor], terms_of: Terms) -> dict[str, Tensor]:
        if self.micro_batch is not None and self.micro_batch < len(inputs[0]):
            return cached_backward(
                self._embed_one, inputs, self.micro_batch, lambda *z: terms_of(z), module=self._forward
            )
        with autocast(self.plan.device, self.plan.precision):
            embeddings = self._forward(inputs)
        terms = terms_of(embeddings)
        terms["loss"].backward()  # type: ignore[no-untyped-call]
        return detached(terms)

    def _embed_one(self, view: Tensor) -> Tensor:
        with autocast(self.plan.device, self.plan.precision):
            embedding: Tensor = self._forward([view])[0]
        return embedding

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, as tensors and plain values."""
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.average.state_dict() if self.average is not None else None,
            "method": self.method.memory.state_dict(),
            "rng": capture_rng(self.device),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; strict. Raises InputError when it is the state of another network."""
        try:
            self.network.load_state_dict(state["network"], strict=True)
            self.method.memory.load_state_dict(
                state.get("method", {}), strict=True
            )  # before there were baselines: none
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise InputError(f"the checkpoint is of another network: {reason}") from None
        load_optimizer_state(self.optimizer, state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["ema"])
        restore_rng(state["rng"], self.device)
        self.step = int(state["step"])
