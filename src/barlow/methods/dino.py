"""DINO: the scores of a slow teacher are predicted."""

from torch import Tensor, nn

from barlow.config import PretrainConfig
from barlow.methods.memory import Centre, Target
from barlow.methods.method import Method, Terms, count_for, settings_of
from barlow.models import Prototypes
from barlow.models.network import TwinNetwork
from barlow.objectives import DINOLoss
from barlow.objectives.dino import moved_centre
from barlow.plan import Plan
from barlow.schedules import cosine_decay


class DINO(Method):
    """The head is the classes, which the teacher has too; the teacher's decay rises to 1 by a half cosine."""

    title = "DINO"
    paper = "Caron et al., Emerging Properties in Self-Supervised Vision Transformers, arXiv 2104.14294"
    options = frozenset({"temperature", "target_ema"})

    def __init__(self, config: PretrainConfig, plan: Plan, network: TwinNetwork, rank: int = 0) -> None:
        super().__init__(config, plan, network, rank)
        temperature = config.objective.temperature
        self.loss = DINOLoss() if temperature is None else DINOLoss(temperature=temperature)
        assert isinstance(network.head, Prototypes)  # `head` made it
        self.memory["teacher"] = self.teacher = Target(network, plan.device, plan.precision)
        centre = Centre(len(network.head.weight)).to(network.head.weight)  # its device and type
        self.memory["centre"] = self.centre = centre
        self._scores: list[Tensor] = []  # of the step under way

    @classmethod
    def head(cls, config: PretrainConfig, plan: Plan) -> nn.Module | None:
        # 1,024 classes on small data, the paper's 65,536 on ImageNet
        return Prototypes(config.model.projector[-1], count_for(plan.n_train, least=1024, most=65536, samples_each=20))

    @property
    def settings(self) -> str:
        count = len(self.centre.value)
        return f"{settings_of(self.loss)}, {count} prototypes, teacher decay {self.target_decay():.5g} to 1"

    def prepare(self, views: list[Tensor], step: int) -> tuple[list[Tensor], Terms]:
        self._scores = t_a, t_b = self.teacher(views[:2])[2:]
        return views[:2], lambda outputs: self.loss.terms(outputs[2], outputs[3], t_a, t_b, self.centre.value)

    def after_step(self, network: TwinNetwork, step: int, skip: Tensor) -> None:
        t_a, t_b = self._scores
        self.centre.move(moved_centre(self.centre.value, t_a, t_b), skip)
        self.teacher.follow(network, cosine_decay(step, total=self.plan.total_steps, base=self.target_decay()), skip)
