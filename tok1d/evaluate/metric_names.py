"""The metrics of evaluations by name, and the names of their records."""

from __future__ import annotations

from dataclasses import dataclass

from tok1d.evaluate.features import metric_name
from tok1d.evaluate.request import Kind

PAIRS = ("psnr", "mse", "ssim", "lpips")
MANIFOLD = ("precision", "recall", "density", "coverage")
# Share of the images whose most likely class is that of their reconstruction; semantic5: is among its first five.
SEMANTIC = ("semantic", "semantic5")
ON_FEATURES = ("labels", "fd", "sfd", "kid", "score", *MANIFOLD)
BY_NETWORK = (*SEMANTIC, *ON_FEATURES)
OF_SAMPLES = ("memorised",)  # without features, see `memorised`
METRICS = (*PAIRS, *BY_NETWORK, *OF_SAMPLES)
OF_ORIGINALS = (*PAIRS, *SEMANTIC)  # not of samples, which have no originals
REPORT_METRICS = ("psnr", "mse", "labels", "fd")  # metrics of a run's report
# Metrics of records, without networks, whose lowest (LOW) or highest (HIGH) value is the best.
LOW = ("mse", "lpips", "fd", "fid", "rfid", "gfid", "sfd", "sfid", "kd", "kid", "memorised")
_AGREEMENTS = ("label_agreement", "judge_accuracy", "semantic_agreement", "semantic_agreement_top5")
HIGH = ("psnr", "ssim", *_AGREEMENTS, "score", "inception_score", *MANIFOLD)


@dataclass(frozen=True)
class Number:
    """The value of a metric for a set of images.

    Args:
        value: None if it is not available; `note` then states the reason.
        network: label of the feature network; None for a metric without one.
        compared: whether the metric compares with a reference.
    """

    metric: str
    value: float | None
    network: str | None = None
    unit: str = ""
    note: str = ""
    compared: bool = False


def record_name(number: Number, kind: Kind) -> str:
    """The name of a metric in records."""
    if number.metric in (*PAIRS, *OF_SAMPLES):
        return number.metric
    if number.metric == "labels":
        return "judge_accuracy" if kind == "reconstruction" else "label_agreement"
    if number.metric in SEMANTIC:
        name = "semantic_agreement" if number.metric == "semantic" else "semantic_agreement_top5"
        return metric_name(name, number.network or "")
    ours = {"fd": "rfid" if kind == "reconstruction" else "gfid", "sfd": "sfid", "score": "inception_score"}
    return metric_name(ours.get(number.metric, number.metric), number.network or "")


def lower_is_better(name: str) -> bool:
    """Whether the lowest value of a record of that name is the best: distances and errors, not shares and scores."""
    metric = name.partition("@")[0]
    assert metric in LOW or metric in HIGH, name
    return metric in LOW
