"""Experiments of the Mixed Barlow Twins paper (Bandara et al. 2023, arXiv 2312.02151), and its open questions."""

from barlow.studies.barlow_paper import HIDDEN
from barlow.studies.claims import FIRST, LAST, Claim, difference, gain_of, trend
from barlow.studies.study import Axis, Figure, Study, numeric_axis

ALONE = "a cell is one process, whose batch is the global one: this is per batch"
PLAIN, MIXED = {"method": "plain"}, {"method": "mixed"}

_METHOD = Axis("method", "method", {"plain": {"method": "barlow-twins"}, "mixed": {"method": "mixed-barlow-twins"}})


def _embedding(width: float) -> dict[str, object]:
    return {"projector": (HIDDEN, int(width))}


OVERFITTING = Study(
    name="overfitting",
    question="Does Barlow Twins overfit when its embedding is wide, and does mixing prevent it?",
    source="Mixed Barlow Twins, its first two experiments and headline",
    axes=(numeric_axis("width", "width of the embedding", (128, 1024, 2048, 4096), _embedding, whole=True), _METHOD),
    metrics=("knn", "linear", "knn_drop", "loss_gap", "knn_mean", "heldout_loss", "knn_curve"),
    figure=Figure("lines", ("knn_curve",), series="width", panels="method"),
    small={"validate_every": 2},
    columns="method",
    claims=(
        Claim(
            "Mixing raises k-NN accuracy, over all widths.",
            "CIFAR-10, ResNet-18: k-NN 85.92 -> 91.14.",
            "knn",
            difference(MIXED, PLAIN),
        ),
        Claim(
            "Mixing raises linear accuracy, over all widths.",
            "CIFAR-10, ResNet-18: linear 90.88 -> 93.48.",
            "linear",
            difference(MIXED, PLAIN),
        ),
        Claim(
            "Mixing narrows the gap between held-out and training loss, over all widths.",
            "what mixing is for; shown there by k-NN accuracy alone.",
            "loss_gap",
            difference(PLAIN, MIXED),
        ),
        Claim(
            "Without mixing k-NN accuracy falls after its best, more so for the widest embedding than the narrowest.",
            "k-NN accuracy over epochs falls late in training, and earlier for wider embeddings.",
            "knn_drop",
            difference({"width": LAST, "method": "plain"}, {"width": FIRST, "method": "plain"}),
        ),
        Claim(
            "At the widest embedding k-NN falls less after its best with mixing than without.",
            "with mixing k-NN accuracy keeps rising.",
            "knn_drop",
            difference({"width": LAST, "method": "plain"}, {"width": LAST, "method": "mixed"}),
        ),
        Claim(
            "The gain by mixing is larger at the widest embedding than at the narrowest.",
            "plain Barlow Twins is best at a middle width; mixing gains up to the widest.",
            "knn",
            gain_of(
                difference({"width": LAST, "method": "mixed"}, {"width": LAST, "method": "plain"}),
                difference({"width": FIRST, "method": "mixed"}, {"width": FIRST, "method": "plain"}),
            ),
        ),
    ),
)

MIXING = Study(
    name="mixing",
    question="How strong should mixing be, with which weights, and how does it change the speed of learning?",
    source="Mixed Barlow Twins, its ablation of lambda_reg, and its open questions 2 and 4",
    axes=(
        numeric_axis("lambd_reg", "weight of the mixing terms", (0.25, 1, 2, 4, 8), lambda v: {"lambd_reg": float(v)}),
        numeric_axis("alpha", "alpha of Beta(alpha, alpha)", (0.2, 0.5, 1, 2, 4), lambda v: {"mix_alpha": float(v)}),
        Axis(
            "weights",
            "mixing weights",
            {"per batch": {}, "per sample": {"mix_per_sample": True}, "global": {"mix_global": True}},
        ),
    ),
    metrics=("knn", "knn_mean", "half_way", "mixing_projector", "loss_gap"),
    figure=Figure("lines", ("knn",), x="lambd_reg", series="alpha", panels="weights", log_x=True),
    settings={"method": "mixed-barlow-twins"},
    left_out=lambda levels: ALONE if levels["weights"] == "global" else None,
    small_levels={"lambd_reg": ("0.25", "1", "4"), "alpha": ("0.2", "1", "4")},
    columns="alpha",
    claims=(
        Claim(
            "More mixing, higher accuracy, up to a point: k-NN is better at the largest lambda_reg than the smallest.",
            "ImageNet, 300 epochs, lambda_reg 0/.0025/.1/1/2/3: 71.3/70.9/71.6/72.2/72.1/72.0 (linear).",
            "knn",
            difference({"lambd_reg": LAST}, {"lambd_reg": FIRST}),
        ),
        Claim(
            "Learning is faster with more mixing (mean k-NN over training, mean slope per doubling of lambda_reg).",
            "an open question of the paper.",
            "knn_mean",
            trend("lambd_reg"),
        ),
        Claim(
            "Uniform weights (alpha 1) are at most a point behind weights near the ends (alpha .2).",
            "the paper draws from Beta(1, 1); others are an open question.",
            "knn",
            difference({"alpha": "1"}, {"alpha": "0.2"}),
            above=-0.01,
        ),
        Claim(
            "Uniform weights (alpha 1) are at most a point behind those of the largest alpha.",
            "the paper draws from Beta(1, 1); others are an open question.",
            "knn",
            difference({"alpha": "1"}, {"alpha": LAST}),
            above=-0.01,
        ),
        Claim(
            "One weight per batch is at most a point behind one per sample.",
            "the paper draws one weight per batch.",
            "knn",
            difference({"weights": "per batch"}, {"weights": "per sample"}),
            above=-0.01,
        ),
    ),
)

ARCHITECTURES = Study(
    name="architectures",
    question="Does mixing help beyond ResNets?",
    source="Mixed Barlow Twins has ResNets only; the cross-architecture check",
    axes=(
        Axis(
            "encoder",
            "encoder",
            {name: {"encoder": name} for name in ("resnet18", "vit_small_patch16_224", "convnext_tiny")},
            lambda name: {"encoder": name},
        ),
        _METHOD,
    ),
    metrics=("knn", "5-shot", "knn_drop", "rankme"),
    figure=Figure("dots", ("knn", "5-shot"), x="encoder", series="method"),
    small={"stem": "auto"},
    small_levels={"encoder": ("resnet10-narrow", "test_vit", "test_convnext")},
    columns="method",
    claims=(
        Claim(
            "Mixing raises k-NN accuracy, averaged over the architectures.",
            "k-NN, CIFAR-10: ResNet-18 90.52, ResNet-50 91.39 with mixing; no other architecture.",
            "knn",
            difference(MIXED, PLAIN),
        ),
        Claim(
            "Mixing helps the last architecture no less than the first, to 3 points.",
            "no figures; by default the first is a ResNet, the last a ConvNeXt.",
            "knn",
            gain_of(
                difference({"encoder": LAST, "method": "mixed"}, {"encoder": LAST, "method": "plain"}),
                difference({"encoder": FIRST, "method": "mixed"}, {"encoder": FIRST, "method": "plain"}),
            ),
            above=-0.03,
        ),
    ),
)

_REGULARISERS: dict[str, dict[str, object]] = {
    "0": {"method": "barlow-twins"},
    **{f"{v:g}": {"method": "mixed-barlow-twins", "lambd_reg": v} for v in (0.25, 1.0, 4.0, 16.0)},
}

LINEARITY = Study(
    name="linearity",
    question="How far is the embedding of a mixed image from the mix of embeddings?",
    source="Mixed Barlow Twins, the assumption behind equation 5",
    axes=(
        numeric_axis("width", "width of the embedding", (128, 512, 2048), _embedding, whole=True),
        Axis("lambd_reg", "weight of the mixing terms (0: plain Barlow Twins)", _REGULARISERS, numeric=True),
    ),
    metrics=("mixing_projector", "mixing_encoder", "knn"),
    figure=Figure("lines", ("mixing_projector", "mixing_encoder"), x="width", series="lambd_reg", log_x=True),
    small_levels={"lambd_reg": ("0", "1", "4")},
    columns="lambd_reg",
    claims=(
        Claim(
            "Training with mixing makes the embedding more linear between images.",
            "assumed by equation 5, without figures.",
            "mixing_projector",
            difference({"lambd_reg": LAST}, {"lambd_reg": "0"}),
            above=None,
            below=0.0,
        ),
        Claim(
            "It makes the encoder's features more linear, too.",
            "no figures.",
            "mixing_encoder",
            difference({"lambd_reg": LAST}, {"lambd_reg": "0"}),
            above=None,
            below=0.0,
        ),
        Claim(
            "Without mixing, wider embeddings are less linear.",
            "no figures.",
            "mixing_projector",
            trend("width", lambd_reg="0"),
        ),
    ),
)
