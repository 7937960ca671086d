"""From the settings to a method: its trainable head, its loss, what it remembers."""

from typing import Any, cast

from torch import nn

from barlow.config import METHODS, ObjectiveConfig, PretrainConfig
from barlow.errors import InputError, suggest
from barlow.models import Prototypes, build_predictor
from barlow.objectives import (
    BarlowTwinsLoss,
    BYOLLoss,
    DINOLoss,
    MixedBarlowTwinsLoss,
    MoCoLoss,
    NTXentLoss,
    SimSiamLoss,
    SwAVLoss,
    VariantLoss,
    VICRegLoss,
    WMSELoss,
)
from barlow.objectives.variants import Variant
from barlow.objectives.w_mse import SAMPLES_PER_FEATURE
from barlow.ranks import Ranks
from barlow.training.baselines import BYOL, DINO, MoCo, OfPairs, SimSiam, SwAV
from barlow.training.methods import AsymmetricBarlowTwins, BarlowTwins, Method, MixedBarlowTwins
from barlow.training.network import TwinNetwork
from barlow.training.plan import Plan
from barlow.training.targets import Centre, Queue, Target, queue_length

WHITENED = 64  # features that W-MSE whitens, its paper's for small images, when the batch has enough samples
PROTOTYPES = (100, 3000)  # of SwAV: on small data, and on ImageNet as in its paper
SAMPLES_PER_PROTOTYPE = 400  # in between: 3,000 for ImageNet's 1.28 million images
CLASSES = (1024, 65536)  # of DINO: on small data, and on ImageNet as in its paper
SAMPLES_PER_CLASS = 20
MOCO_QUEUE = 4096  # keys; its paper's 65,536 are for ImageNet
SWAV_QUEUE = 3840  # embeddings, the paper's
LONGEST_DECAY = {"byol": 0.996, "dino": 0.996, "moco-v2": 0.999}  # the papers'
FOLLOWED = 10  # times the target's memory that a run must last: short runs have faster targets


def build_head(config: PretrainConfig, plan: Plan) -> nn.Module | None:
    """What the method trains after the projector: a predictor, prototypes, or nothing."""
    widths, method = config.model.projector, config.objective.method
    hidden, width = widths[0], widths[-1]
    if config.objective.predictor:
        return build_predictor(width, width)
    match method:
        case "byol":
            return build_predictor(width, hidden)
        case "simsiam":
            return build_predictor(width, max(2, width // 4))
        case "swav":
            return Prototypes(width, _count(PROTOTYPES, plan.n_train, SAMPLES_PER_PROTOTYPE))
        case "dino":
            return Prototypes(width, _count(CLASSES, plan.n_train, SAMPLES_PER_CLASS))
        case "w-mse":
            return nn.Linear(width, min(WHITENED, width, config.training.batch_size // SAMPLES_PER_FEATURE))
        case _:
            return None


def _count(limits: tuple[int, int], n_train: int, per: int) -> int:
    fewest, most = limits
    return min(most, max(fewest, n_train // per))


def build_method(config: PretrainConfig, plan: Plan, network: TwinNetwork, *, rank: int = 0) -> Method:
    """The method that the settings name, around a network on its device. Raises InputError for an unknown variant."""
    method = config.objective.method
    if method == "barlow-twins":
        return _barlow_twins(config, plan, network)
    if method == "mixed-barlow-twins":
        return _mixed(config, plan, rank)
    given = config.objective.temperature
    temperature: dict[str, Any] = {} if given is None else {"temperature": given}
    match method:
        case "simclr":
            return _of_pairs(NTXentLoss(**temperature))
        case "vicreg":
            return _of_pairs(VICRegLoss(form=config.objective.form))
        case "w-mse":
            return _of_pairs(WMSELoss())
        case "simsiam":
            return SimSiam("no settings of its own", SimSiamLoss())
        case "swav":
            return _swav(config, plan, network, SwAVLoss(**temperature), rank)
        case "moco-v2":
            return _moco(config, plan, network, MoCoLoss(**temperature), rank)
        case "byol":
            return _byol(config, plan, network)
        case "dino":
            return _dino(config, plan, network, DINOLoss(**temperature))
        case _:
            raise InputError(f"unknown method '{method}'. {suggest(method, METHODS)}")


def _barlow_twins(config: PretrainConfig, plan: Plan, network: TwinNetwork) -> Method:
    objective = config.objective
    loss, said = _pair_loss(objective, plan), f"lambda {plan.lambd:.5g}"
    options = [objective.variant, objective.predictor and "predictor", objective.stop_gradient and "stop-gradient"]
    decay = objective.target_ema
    said = ", ".join([said, *(str(option) for option in options if option)])
    if not (objective.predictor or objective.stop_gradient or decay is not None):
        return BarlowTwins(said, loss)
    target = None if decay is None else _target(network, plan)
    said = said if decay is None else f"{said}, target decay {decay:.5g}"
    return AsymmetricBarlowTwins(said, loss, stop_gradient=objective.stop_gradient, target=target, decay=decay)


def _pair_loss(objective: ObjectiveConfig, plan: Plan) -> BarlowTwinsLoss | VariantLoss:
    if objective.variant is None:
        return BarlowTwinsLoss(plan.lambd, objective.form)
    variant = cast(Variant, objective.variant)  # which the loss checks
    if objective.temperature is None:
        return VariantLoss(variant, plan.lambd, form=objective.form)
    return VariantLoss(variant, plan.lambd, temperature=objective.temperature, form=objective.form)


def _mixed(config: PretrainConfig, plan: Plan, rank: int) -> Method:
    objective, seed = config.objective, config.training.seed
    whole = objective.mix_global
    return MixedBarlowTwins(
        f"lambda {plan.lambd:.5g}",
        MixedBarlowTwinsLoss(plan.lambd, objective.lambd_reg, objective.form, mix_global=whole),
        alpha=objective.mix_alpha,
        per_sample=objective.mix_per_sample,
        seed=seed if whole else rank_seed(seed, rank),
        ranks=_ranks(plan, rank) if whole else None,
    )


def _of_pairs(loss: NTXentLoss | VICRegLoss | WMSELoss) -> Method:
    return OfPairs(_words(loss), loss)


def _words(loss: nn.Module) -> str:
    """A loss's settings as it prints them, for people."""
    return loss.extra_repr().replace("=", " ")


def _swav(config: PretrainConfig, plan: Plan, network: TwinNetwork, loss: SwAVLoss, rank: int) -> Method:
    prototypes = network.head
    assert isinstance(prototypes, Prototypes)  # build_head made it
    count, width = prototypes.weight.shape
    batch, seed = config.training.batch_size, config.training.seed
    length = queue_length(SWAV_QUEUE, plan.n_train, batch) if batch < count else 0
    queues = [Queue(length, width, seed=seed + view).to(prototypes.weight) for view in range(2)] if length else []
    said = f"{_words(loss)}, {count} prototypes, queue of {length}"
    return SwAV(said, loss, prototypes, queues, _ranks(plan, rank))


def _moco(config: PretrainConfig, plan: Plan, network: TwinNetwork, loss: MoCoLoss, rank: int) -> Method:
    length = queue_length(MOCO_QUEUE, plan.n_train, 2 * config.training.batch_size)
    width, weights = config.model.projector[-1], next(network.parameters())
    queue = Queue(length, width, seed=config.training.seed).to(weights)  # its device and type
    decay = _decay(config.objective, plan)
    said = f"{_words(loss)}, queue of {length}, target decay {decay:.5g}"
    return MoCo(said, loss, _target(network, plan), queue, _ranks(plan, rank), decay)


def _byol(config: PretrainConfig, plan: Plan, network: TwinNetwork) -> Method:
    decay = _decay(config.objective, plan)
    said = f"target decay {decay:.5g} to 1"
    return BYOL(said, BYOLLoss(), _target(network, plan), decay=decay, total_steps=plan.total_steps)


def _dino(config: PretrainConfig, plan: Plan, network: TwinNetwork, loss: DINOLoss) -> Method:
    assert isinstance(network.head, Prototypes)  # build_head made it
    count, decay = len(network.head.weight), _decay(config.objective, plan)
    teacher = Target(network, plan.device, plan.precision)
    centre = Centre(count).to(network.head.weight)  # its device and type
    said = f"{_words(loss)}, {count} prototypes, teacher decay {decay:.5g} to 1"
    return DINO(said, loss, teacher, centre, decay=decay, total_steps=plan.total_steps)


def _target(network: TwinNetwork, plan: Plan) -> Target:
    """A slow copy of encoder and projector, without the predictor."""
    return Target(TwinNetwork(network.encoder, network.projector), plan.device, plan.precision)


def _decay(objective: ObjectiveConfig, plan: Plan) -> float:
    """The paper's for runs that last ten times its memory of 1 / (1 - decay) steps; shorter runs have a shorter one."""
    if objective.target_ema is not None:
        return objective.target_ema
    return min(LONGEST_DECAY[objective.method], max(0.0, 1 - FOLLOWED / plan.total_steps))


def _ranks(plan: Plan, rank: int) -> Ranks:
    return Ranks((plan.local_batch,) * plan.world_size, rank)


def rank_seed(seed: int, rank: int) -> int:
    """Every rank draws on its own."""
    return seed + 1_000_003 * rank
