"""Experiments of the Barlow Twins paper (Zbontar et al. 2021, arXiv 2103.03230), and of its review."""

from barlow.studies.claims import LAST, Claim, Contrast, difference, gain_of, mean_of, steeper, trend
from barlow.studies.study import Axis, Figure, Levels, Study, numeric_axis

HIDDEN = 512  # width of the projector's hidden layer, where only the last one varies
WIDEST_OF_ALL = 16_384  # above it, only the Gram form's cost stays small


def _embedding(width: float) -> dict[str, object]:
    return {"projector": (HIDDEN, int(width))}


def _methods(*names: str) -> Axis:
    return Axis("method", "method", {name: {"method": name} for name in names})


def _too_wide(levels: Levels) -> str | None:
    if int(levels["width"]) > WIDEST_OF_ALL and levels["method"] != "barlow-twins":
        return "only Barlow Twins in its Gram form is affordable at this width"
    return None


WIDTH = Study(
    name="width",
    question="Does accuracy keep rising with the width of the embedding?",
    source="Barlow Twins, figure 4",
    axes=(
        numeric_axis(
            "width", "width of the embedding", (16, 64, 256, 1024, 4096, 16_384, 65_536), _embedding, whole=True
        ),
        _methods("barlow-twins", "byol", "simclr"),
    ),
    metrics=("knn", "5-shot", "rankme", "heldout_loss"),
    figure=Figure("lines", ("knn",), x="width", series="method", log_x=True),
    small_levels={"width": ("16", "128", "1024", "8192")},
    left_out=_too_wide,
    columns="method",
    claims=(
        Claim(
            "Barlow Twins gains with the width (mean slope per doubling).",
            "accuracy rises throughout from 16 to 16,384 dimensions, without saturating (ImageNet, linear).",
            "knn",
            trend("width", method="barlow-twins"),
        ),
        *(
            Claim(
                f"Barlow Twins gains more with the width than {name} (mean slopes over the widths that both have).",
                f"{name} saturates quickly; Barlow Twins does not.",
                "knn",
                steeper("width", {"method": "barlow-twins"}, {"method": method}),
            )
            for name, method in (("BYOL", "byol"), ("SimCLR", "simclr"))
        ),
    ),
)

BATCH = Study(
    name="batch",
    question="How small may a batch be?",
    source="Barlow Twins, figure 2 and the learning rates of its batch-size ablation",
    axes=(
        numeric_axis(
            "batch_size",
            "batch size",
            (64, 128, 256, 512, 1024, 2048, 4096),
            lambda size: {"batch_size": int(size)},
            whole=True,
        ),
    ),
    metrics=("knn", "5-shot", "heldout_loss", "rankme"),
    figure=Figure("lines", ("knn",), x="batch_size", log_x=True),
    settings={"optimizer": "lars", "lambd": 0.0051},  # rates by batch as the paper tabulates them, one lambda
    small_levels={"batch_size": ("32", "64", "128", "256")},
    claims=(
        Claim(
            "A batch of 128 loses less than 3 points against one of 1024.",
            "batch 128/256/512/1024/2048/4096: 69.7/70.7/71.4/71.7/71.4/70.7 (ImageNet, 300 epochs, linear).",
            "knn",
            difference({"batch_size": "128"}, {"batch_size": "1024"}),
            above=-0.03,
        ),
        Claim(
            "At equal epochs the largest batch is not the best: one of 256 is at most a point behind it.",
            "4096 is as good as 256 (70.7), and a point behind 1024. ImageNet's 300 epochs at 4096 are about 94,000 "
            "updates; on small data a large batch makes very few, and its score says as much of that.",
            "knn",
            difference({"batch_size": "256"}, {"batch_size": LAST}),
            above=-0.01,
        ),
    ),
)

_LAMBDAS = (0.0005, 0.002, 0.02, 0.08)
_TERMS: dict[str, dict[str, object]] = {
    "baseline": {},
    "invariance only": {"variant": "invariance-only"},
    "redundancy only": {"variant": "redundancy-only"},
    "normalised along features": {"variant": "feature-norm"},
    "no BN in the projector": {"projector_norm": False},
    "no BN, no normalisation": {"projector_norm": False, "variant": "no-norm"},
    "cross-entropy": {"variant": "cross-entropy"},
    **{f"lambda {value:g}": {"lambd": value} for value in _LAMBDAS},
}


def _worse(level: str, words: str, figures: str) -> Claim:
    contrast = difference({"loss": "baseline"}, {"loss": level})
    return Claim(words, f"{figures}; baseline 71.4 (ImageNet, 300 epochs, linear).", "knn", contrast)


LOSS_TERMS = Study(
    name="loss-terms",
    question="Which parts of the loss does it need?",
    source="Barlow Twins, table 5 and figure 5",
    axes=(Axis("loss", "loss", _TERMS),),
    metrics=("knn", "knn_gain", "linear", "rankme", "dead_share"),
    figure=Figure("dots", ("knn", "linear"), x="loss"),
    claims=(
        _worse("invariance only", "Without the redundancy term accuracy falls.", "invariance only 57.3"),
        Claim(
            "Without the invariance term nothing is learnt: less than 2 points above the untrained network.",
            "redundancy only 0.1, which is chance; baseline 71.4 (ImageNet, 300 epochs, linear).",
            "knn_gain",
            mean_of(loss="redundancy only"),
            above=None,
            below=0.02,
        ),
        _worse("normalised along features", "Normalising along features costs accuracy.", "along features 69.8"),
        Claim(
            "Batch normalisation in the projector can go: less than 2 points are lost.",
            "no BN in the MLP 71.2; baseline 71.4.",
            "knn",
            difference({"loss": "no BN in the projector"}, {"loss": "baseline"}),
            above=-0.02,
        ),
        _worse("no BN, no normalisation", "Without any normalisation accuracy falls.", "neither 53.4"),
        _worse("cross-entropy", "A cross-entropy with temperature is worse than the squares.", "cross-entropy 63.3"),
        Claim(
            "From .0005 to .02 the weight lambda hardly matters: less than 5 points.",
            "figure 5: within about 2 points from 0.0003 to 0.02 or so.",
            "knn",
            difference({"loss": "lambda 0.0005"}, {"loss": "lambda 0.02"}),
            above=-0.05,
            below=0.05,
        ),
    ),
)

_ASYMMETRIES: dict[str, dict[str, object]] = {
    "symmetric": {},
    "stop-gradient": {"stop_gradient": True},
    "predictor": {"predictor": True},
    "both": {"stop_gradient": True, "predictor": True},
    "EMA target": {"target_ema": 0.99},
}


def _symmetric_beats(level: str, figures: str, *, above: float = 0.0) -> Claim:
    lead = "is not better than" if above < 0 else "is worse than"
    words = f"{level[0].upper()}{level[1:]} {lead} the symmetric network."
    return Claim(words, figures, "knn", difference({"network": "symmetric"}, {"network": level}), above=above)


ASYMMETRY = Study(
    name="asymmetry",
    question="Do the asymmetries that other methods need help Barlow Twins?",
    source="Barlow Twins, table 6; the target network was asked for by its review",
    axes=(Axis("network", "network", _ASYMMETRIES),),
    metrics=("knn", "5-shot", "rankme", "heldout_loss"),
    figure=Figure("dots", ("knn", "5-shot"), x="network"),
    claims=(
        _symmetric_beats("stop-gradient", "stop-gradient 70.5, baseline 71.4."),
        _symmetric_beats("predictor", "predictor 70.2, baseline 71.4."),
        _symmetric_beats("both", "both 61.3, baseline 71.4."),
        _symmetric_beats("EMA target", "no figures; asked for by the review.", above=-0.01),
    ),
)

CHAINS = ("full", "no-grayscale", "no-colour", "crop-blur", "crop-flip", "crop-only")
_VIEWS: dict[str, dict[str, object]] = {
    **{chain: {"recipe": f"auto:{chain}"} for chain in CHAINS},
    "shuffle": {"recipe": "shuffle"},
    "shuffle-jitter": {"recipe": "shuffle-jitter"},
}


def _cropping_costs(method: str) -> Contrast:
    return difference({"views": "full", "method": method}, {"views": "crop-only", "method": method})


AUGMENTATIONS = Study(
    name="augmentations",
    question="What is lost when augmentations are taken away?",
    source="Barlow Twins, figure 3; the shuffled pixels are a control that its review asked for",
    axes=(
        Axis("views", "views", _VIEWS, lambda text: {"recipe": text}),
        _methods("barlow-twins", "simclr", "byol"),
    ),
    metrics=("knn", "5-shot", "rankme"),
    figure=Figure("dots", ("knn",), x="views", series="method"),
    small_levels={"views": ("full", "no-colour", "crop-only", "shuffle", "shuffle-jitter")},
    columns="method",
    claims=(
        Claim(
            "Barlow Twins needs its augmentations: cropping alone is worse.",
            "accuracy falls with every augmentation removed, to less than half for crops alone.",
            "knn",
            _cropping_costs("barlow-twins"),
        ),
        Claim(
            "Barlow Twins loses more than BYOL when only cropping is left.",
            "as SimCLR; BYOL is more robust.",
            "knn",
            gain_of(_cropping_costs("barlow-twins"), _cropping_costs("byol")),
        ),
        Claim(
            "Barlow Twins loses about as much as SimCLR when only cropping is left: within 5 points.",
            "the two fall alike.",
            "knn",
            gain_of(_cropping_costs("barlow-twins"), _cropping_costs("simclr")),
            above=-0.05,
            below=0.05,
        ),
        Claim(
            "Views whose pixels are shuffled teach less than cropped ones.",
            "no figures; asked for by the review.",
            "knn",
            difference(
                {"views": "crop-only", "method": "barlow-twins"}, {"views": "shuffle", "method": "barlow-twins"}
            ),
        ),
        Claim(
            "Colour jitter helps with shuffled pixels too.",
            "no figures; asked for by the review.",
            "knn",
            difference(
                {"views": "shuffle-jitter", "method": "barlow-twins"}, {"views": "shuffle", "method": "barlow-twins"}
            ),
        ),
    ),
)

_ESTIMATES = tuple(f"{term}_{how}" for how in ("gauss", "knn") for term in ("entropy", "conditional", "information"))

INFORMATION = Study(
    name="information",
    question="Does training move the information-bottleneck terms as the objective's derivation says?",
    source="Barlow Twins, appendix A",
    axes=(_methods("barlow-twins", "mixed-barlow-twins"),),
    metrics=(
        *("information_gauss_change", "information_knn_change", "conditional_gauss_change", "conditional_knn_change"),
        *("entropy_gauss_change", "entropy_knn_change", "knn"),
        *(f"{estimate}_curve" for estimate in _ESTIMATES),
    ),
    figure=Figure("lines", tuple(f"{estimate}_curve" for estimate in _ESTIMATES), series="method"),
    snapshots=10,
    claims=tuple(
        Claim(
            words,
            "no figures; appendix A derives it, and assumes Gaussians.",
            f"{term}_{how}_change",
            contrast,
            *range_,
        )
        for how, by in (("gauss", "Gaussian"), ("knn", "nearest neighbours"))
        for term, words, contrast, range_ in (
            (
                "conditional",
                f"Training lowers H(Z|X), what Z keeps of the change of view ({by}).",
                mean_of(method="barlow-twins"),
                (None, 0.0),
            ),
            (
                "information",
                f"Training raises I(Z;X), what Z tells of the image ({by}).",
                mean_of(method="barlow-twins"),
                (0.0, None),
            ),
        )
    ),
)

METHODS_BESIDE: dict[str, str] = {
    "simclr": "Barlow Twins 73.2, SimCLR 69.3 (ImageNet, linear).",
    "moco-v2": "Barlow Twins 73.2, MoCo v2 71.1 (ImageNet, linear).",
    "byol": "Barlow Twins 73.2, BYOL 74.3 (ImageNet, linear).",
    "swav": "Barlow Twins 73.2, SwAV 75.3 with multi-crop (ImageNet, linear).",
}

METHODS = Study(
    name="methods",
    question="How do the methods compare on the same data, encoder and budget?",
    source="Barlow Twins, tables 1 and 2; Mixed Barlow Twins, its comparison tables",
    axes=(
        _methods(
            *("barlow-twins", "mixed-barlow-twins", "simclr", "moco-v2", "byol", "simsiam"),
            *("swav", "vicreg", "w-mse", "dino"),
        ),
    ),
    metrics=("linear", "knn", "1-shot", "5-shot", "rankme"),
    baselines=("linear_untrained", "linear_pixels"),
    figure=Figure("dots", ("linear", "knn", "5-shot"), x="method"),
    claims=(
        *(
            Claim(
                f"Barlow Twins is ahead of {method}.",
                figures,
                "linear",
                difference({"method": "barlow-twins"}, {"method": method}),
            )
            for method, figures in list(METHODS_BESIDE.items())[:2]
        ),
        *(
            Claim(
                f"Barlow Twins is within 3 points of {method}.",
                figures,
                "linear",
                difference({"method": "barlow-twins"}, {"method": method}),
                above=-0.03,
                below=0.03,
            )
            for method, figures in list(METHODS_BESIDE.items())[2:]
        ),
        Claim(
            "Mixing raises accuracy.",
            "CIFAR-10: linear 90.88 -> 93.48, k-NN 85.92 -> 91.14.",
            "linear",
            difference({"method": "mixed-barlow-twins"}, {"method": "barlow-twins"}),
        ),
    ),
)
