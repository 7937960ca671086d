"""Features of a frozen encoder, and what they are worth: k-NN, linear, few-shot, retrieval, transfer, detection."""

from barlow.evaluation.annotations import read_coco, read_voc
from barlow.evaluation.baselines import principal_pixels, random_init, raw_pixels
from barlow.evaluation.detection import DetectorTraining, evaluate_detection
from barlow.evaluation.evaluate import ON_FOLDERS, evaluate
from barlow.evaluation.features import Features, extract, join
from barlow.evaluation.few_shot import FewShotScore, few_shot, ridge_predict
from barlow.evaluation.frozen import encoder_hash, eval_mode, frozen
from barlow.evaluation.intervals import bootstrap_interval, mean_interval, wilson_interval
from barlow.evaluation.knn import knn_accuracy, knn_predict, nearest
from barlow.evaluation.linear import LinearProbe, choose_c, fit_linear, linear_probe
from barlow.evaluation.paired import Comparison, ahead, best_of, compare, compare_scores
from barlow.evaluation.paper_linear import PaperLinear
from barlow.evaluation.protocols import KNN, PROTOCOLS, FewShot, Linear, Retrieval
from barlow.evaluation.retrieval import average_precision, recall_at
from barlow.evaluation.semi_supervised import SemiSupervised, fine_tuning
from barlow.evaluation.session import BASELINES, Result, Settings, protocol_title
from barlow.evaluation.supervised import Optimisation
from barlow.evaluation.task import EvaluationProtocol, Score, Subset, Task
from barlow.evaluation.voc07 import voc07

__all__ = [
    "BASELINES",
    "KNN",
    "ON_FOLDERS",
    "PROTOCOLS",
    "Comparison",
    "DetectorTraining",
    "EvaluationProtocol",
    "Features",
    "FewShot",
    "FewShotScore",
    "Linear",
    "LinearProbe",
    "Optimisation",
    "PaperLinear",
    "Result",
    "Retrieval",
    "Score",
    "SemiSupervised",
    "Settings",
    "Subset",
    "Task",
    "ahead",
    "average_precision",
    "best_of",
    "bootstrap_interval",
    "choose_c",
    "compare",
    "compare_scores",
    "encoder_hash",
    "eval_mode",
    "evaluate",
    "evaluate_detection",
    "extract",
    "few_shot",
    "fine_tuning",
    "fit_linear",
    "frozen",
    "join",
    "knn_accuracy",
    "knn_predict",
    "linear_probe",
    "mean_interval",
    "nearest",
    "principal_pixels",
    "protocol_title",
    "random_init",
    "raw_pixels",
    "read_coco",
    "read_voc",
    "recall_at",
    "ridge_predict",
    "voc07",
    "wilson_interval",
]
