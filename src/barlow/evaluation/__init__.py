"""Features of a frozen encoder, and what they are worth: k-NN, linear, few-shot, retrieval, transfer, detection."""

from barlow.evaluation.baselines import principal_pixels, random_init, raw_pixels
from barlow.evaluation.evaluate import evaluate
from barlow.evaluation.features import Features, extract, join
from barlow.evaluation.few_shot import FewShotScore, few_shot, ridge_predict
from barlow.evaluation.frozen import encoder_hash, eval_mode, frozen
from barlow.evaluation.intervals import bootstrap_interval, mean_interval
from barlow.evaluation.knn import knn_accuracy, knn_predict, nearest
from barlow.evaluation.linear import LinearProbe, choose_c, fit_linear, linear_probe
from barlow.evaluation.protocols import KNN, PROTOCOLS, FewShot, Linear, Retrieval
from barlow.evaluation.retrieval import average_precision, recall_at
from barlow.evaluation.session import BASELINES, Result
from barlow.evaluation.task import EvaluationProtocol, Score, Subset, Task

__all__ = [
    "BASELINES",
    "KNN",
    "PROTOCOLS",
    "EvaluationProtocol",
    "Features",
    "FewShot",
    "FewShotScore",
    "Linear",
    "LinearProbe",
    "Result",
    "Retrieval",
    "Score",
    "Subset",
    "Task",
    "average_precision",
    "bootstrap_interval",
    "choose_c",
    "encoder_hash",
    "eval_mode",
    "evaluate",
    "extract",
    "few_shot",
    "fit_linear",
    "frozen",
    "join",
    "knn_accuracy",
    "knn_predict",
    "linear_probe",
    "mean_interval",
    "nearest",
    "principal_pixels",
    "random_init",
    "raw_pixels",
    "recall_at",
    "ridge_predict",
]
