"""Charts of all logged training metrics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sepo.report.charts import Chart, Line, by_side, look, thinned
from sepo.report.subject import Subject
from sepo.runs.settings_texts import recorded_factors
from sepo.selection import SIDES

SECONDS = "seconds"
"""Name of the seconds of training in the entries of a log."""
_KEY_CHARACTERS = 60
_MOST_OTHERS = 24
"""Maximum number of charts of other metrics, as a log may have any number of them."""
_MOST_OBJECTIVES = 8
"""Maximum number of objectives of sums whose metrics have titles, as settings may have any number of them."""
_NOT_DRAWN = re.compile(
    r"step|time|event|epoch|process|total_flos|train_.*|.*_(runtime|per_second|flos)|num_input_tokens_seen"
)


@dataclass(frozen=True)
class _Metric:
    """A metric with title and description; ``{}`` in its name stands for a side."""

    name: str
    title: str
    text: str
    percent: bool = False


_METRICS = (
    _Metric("loss", "Loss", "Training loss."),
    _Metric("reward", "Reward", "Mean reward of the sampled responses, by the judge."),
    _Metric("reward_std", "Spread of the rewards", "Standard deviation of the judge's rewards."),
    _Metric("rto/dense_return", "Token rewards", "Mean sum of a response's rewards from oracle and divergence."),
    _Metric("rto/oracle_reward", "Oracle's reward", "Mean reward of a token from the oracle."),
    _Metric("rewards/{}", "Rewards", "Mean reward of the responses, the input of the objective's link."),
    _Metric("rewards/margins", "Reward margin", "Mean of the chosen response's reward minus the rejected one's."),
    _Metric(
        "rewards/accuracies", "Accuracy", "Share of pairs whose chosen response has the higher reward.", percent=True
    ),
    _Metric("select/{}_ratio", "Selected share", "Share of the responses' tokens that train the policy.", percent=True),
    _Metric(
        "select/{}_effective",
        "Effective tokens",
        "Mean effective number of tokens of a response, (Σw)² / Σw² of the token weights w: the number of selected "
        "tokens if these are equal.",
    ),
    _Metric(
        "objective/empty_pair",
        "Pairs without selected tokens",
        "Share of pairs with loss 0, as one of their responses has no selected token.",
        percent=True,
    ),
    _Metric("select/ratio", "Selected share", "Share of the sampled tokens that train the policy.", percent=True),
    _Metric("select/tokens", "Selected tokens", "Selected tokens per device batch; in stage rto, per response."),
    _Metric("kl", "Drift from the reference", "Mean of log π − log π_ref over the sampled tokens, in nats."),
    _Metric("entropy", "Entropy", "Mean entropy of the policy at the sampled tokens, in nats."),
    _Metric("completions/mean_length", "Length of the responses", "Mean number of tokens of the sampled responses."),
    _Metric("kl/{}", "Drift from the reference", "Mean of log π − log π_ref over the computed tokens, in nats."),
    _Metric("kl/{}_full", "KL from the reference", "Mean KL(π_ref ‖ π) over the vocabulary, per token, in nats."),
    _Metric("objective/{}_kl", "KL from the reference per response", "The same KL, summed over the response, in nats."),
    _Metric(
        "objective/rejected_clamped",
        "Clamped share",
        "Share of pairs whose penalty on the rejected response is clamped to zero (MinorDPO).",
        percent=True,
    ),
    _Metric(
        "objective/chosen_penalised",
        "Penalised share",
        "Share of pairs whose chosen response is less probable than under the reference (DPOP).",
        percent=True,
    ),
    _Metric("treg/reward_{}", "Token rewards", "Mean token reward over the regularized tokens (T-REG)."),
    _Metric("objective/treg_weight", "Regularizer's weight", "Mean weight of T-REG's regularizer."),
    _Metric("objective/pair_weight", "Weight of the pairs", "Mean weight of the pairs, in (0, 1] (WPO)."),
    _Metric(
        "objective/regularizer_share",
        "Share of the regularizer",
        "Share of the added terms in the loss.",
        percent=True,
    ),
    _Metric("objective/router_loss", "Load balance", "Mean load-balancing loss of the experts, without its weight."),
    _Metric("logps/{}", "Log-probabilities", "Summed log-probabilities of the computed tokens, in nats."),
    _Metric("grad_norm", "Gradient norm", "Norm of the gradient before clipping."),
    _Metric("learning_rate", "Learning rate", "Learning rate of the optimizer."),
)


@dataclass(frozen=True)
class _Axis:
    """A horizontal axis: the name of its values in the entries of a log, its label, and the section of its charts."""

    name: str
    label: str
    section: str


_STEPS = _Axis("step", "step", "training")
_COMPARED = ("rewards/accuracies", "rewards/margins", "loss")
_COMPARED_OVER = (
    _Axis("step", "step", "comparison"),
    _Axis(SECONDS, "seconds of training", "comparison"),
)


def compared_charts(subjects: Sequence[Subject]) -> list[Chart]:
    """Return charts of accuracy, margin and loss over steps and over seconds of training.

    Args:
        subjects: one for each variant of a comparison; entries of their logs have ``seconds`` if these are known.
    """
    metrics = {metric.name: metric for metric in _METRICS}
    charts = []
    for name in _COMPARED:
        for axis in _COMPARED_OVER:
            charts += [
                replace(chart, key=f"{chart.key}-{axis.name}", title=f"{chart.title} by {axis.label}")
                for chart in _charts(subjects, metrics[name], axis)
            ]
    return charts


def training_charts(subjects: Sequence[Subject]) -> list[Chart]:
    """Return a chart for every logged metric with values, evaluations as points; chosen and rejected together."""
    charts: list[Chart] = []
    drawn: set[str] = set()
    for metric in (*_METRICS, *_metrics_of_sums(subjects)):
        names = [metric.name.format(side) for side in SIDES] if "{}" in metric.name else [metric.name]
        drawn |= set(names)
        charts += _charts(subjects, metric)
    others = sorted({_plain(name) for subject in subjects for entry in subject.log for name in entry} - drawn)
    unknown = [_Metric(name, name, "As logged by the trainer.") for name in others if not _NOT_DRAWN.fullmatch(name)]
    # A name with braces would be taken for one with a side.
    more = [chart for metric in unknown if "{" not in metric.name for chart in _charts(subjects, metric)]
    return _with_unique_keys(charts + more[:_MOST_OTHERS])


def _metrics_of_sums(subjects: Sequence[Subject]) -> list[_Metric]:
    """Return the metrics of each objective of the subjects' sums: its loss and its parts'."""
    names = dict.fromkeys(name for subject in subjects for name in recorded_factors(subject.settings))
    metrics = []
    for name in [name for name in names if not set("{}") & set(name)][:_MOST_OBJECTIVES]:
        loss = f"Loss of the objective {name} in a sum of objectives, before its factor."
        metrics.append(_Metric(f"objective/{name}_loss", f"Loss of {name}", loss))
        metrics += [
            replace(metric, name=metric.name.replace("/", f"/{name}_"), title=f"{metric.title}, {name}")
            for metric in _METRICS
            if metric.name.startswith("objective/")
        ]
    return metrics


def _with_unique_keys(charts: Sequence[Chart]) -> list[Chart]:
    """Make keys unique: names of metrics may differ only in characters that are not in keys."""
    seen: dict[str, int] = {}
    unique = []
    for chart in charts:
        seen[chart.key] = seen.get(chart.key, 0) + 1
        unique.append(chart if seen[chart.key] == 1 else replace(chart, key=f"{chart.key}--{seen[chart.key]}"))
    return unique


def _plain(name: str) -> str:
    """Return a metric's name without the prefix of an evaluation: ``eval_``, and the data set's name."""
    if not name.startswith("eval_"):
        return name
    rest = name.removeprefix("eval_")
    group, slash, metric = rest.rpartition("/")
    known = {known.name.partition("/")[0] for known in _METRICS if ("/" in known.name) == bool(slash)}
    if slash:
        return next((f"{name}/{metric}" for name in known if group.endswith(f"_{name}")), rest)
    return next((name for name in known if metric.endswith(f"_{name}")), rest)


def _charts(subjects: Sequence[Subject], metric: _Metric, axis: _Axis = _STEPS) -> list[Chart]:
    key = re.sub(r"[^a-z0-9]+", "-", metric.name.replace("{}", "").lower()).strip("-")[:_KEY_CHARACTERS] or "metric"

    def build(name: str, side: str | None, lines: Sequence[Line]) -> Chart:
        return Chart(
            key=f"{axis.section}-{name}",
            title=f"{metric.title}{f', {side} responses' if side else ''}",
            description=metric.text,
            x_label=axis.label,
            y_label=metric.name.format(side or "*"),
            lines=lines,
            y_percent=metric.percent,
            x_whole=axis.name == "step",
            section=axis.section,
        )

    if "{}" in metric.name:
        return by_side(
            subjects, lambda subject, side: _lines(subjects, subject, metric.name.format(side), side, axis), build, key
        )
    lines = [line for subject in subjects for line in _lines(subjects, subject, metric.name, None, axis)]
    return [build(key, None, lines)] if lines else []


def _lines(subjects: Sequence[Subject], subject: Subject, name: str, side: str | None, axis: _Axis) -> list[Line]:
    label, colour = look(subjects, subject, side)
    if len(subjects) == 1 and side is None:
        label = "training"
    lines = [Line(label, *_series(subject, name, axis), colour)]
    for evaluated in sorted({key for entry in subject.log for key in entry if key != name and _plain(key) == name}):
        data = evaluated.removeprefix("eval_").removesuffix(name).strip("_")
        text = f"evaluation{f' ({data})' if data else ''}"
        lines.append(
            Line(
                text if label == "training" else f"{label}, {text}",
                *_series(subject, evaluated, axis),
                colour,
                "points",
            )
        )
    return [line for line in lines if len(line.x)]


def _series(subject: Subject, name: str, axis: _Axis) -> tuple[np.ndarray, np.ndarray]:
    """Return steps (or seconds) and values, without values that are not finite."""
    points = [
        (float(entry[axis.name]), float(entry[name]))
        for entry in subject.log
        if _is_number(entry.get(name)) and _is_number(entry.get(axis.name))
    ]
    finite = np.array([point for point in points if np.isfinite(point).all()], float).reshape(-1, 2)
    ordered = finite[np.argsort(finite[:, 0], kind="stable")]
    kept = ordered[thinned(len(ordered))]
    return kept[:, 0], kept[:, 1]


def _is_number(value: object) -> bool:
    """Return whether a value can be plotted; an integer of a log may be too large for a float."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53)
