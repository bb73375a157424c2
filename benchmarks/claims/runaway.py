"""What the log of a run shows while it trains, and how well it tells runs that end badly from others."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from claims.training import Run
from sepo.objectives import select
from sepo.runs.runaway import ChosenLikelihood
from sepo.selection import SIDES

LOST = 0.1
"""A run ends badly if its share of right responses is lower by this than that of the same policy and seed at a lower
rate, or before training."""
PARTS = (0.25, 0.5, 1.0)
"""Parts of the training by which a run is warned of."""
TOLERATED = 0.02
"""Share of the runs that do not end badly of which a bound may warn."""
NATS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
STATISTICS = {
    "fall of the computed chosen tokens": NATS,
    "fall of the computed rejected tokens": NATS,
    "growth of the margin, computed tokens": NATS,
    "fall of all chosen tokens": NATS,
    "share of chosen responses that fell": SHARES,
}
"""Statistics of a step by name, with their bounds. Nats are per token, since training began."""
LOGGED = "fall of the computed chosen tokens"
"""The statistic of ``sepo.runs.runaway``."""


def computed(run: Run) -> Tensor:
    """Return the tokens of a run's pairs whose log-probabilities a step of ``sepo.training`` has, bool [N, 2, T].

    They are the selected ones if stored scores select, and all chosen ones with ``pref_ftx``.
    """
    mask = torch.ones_like(run.pairs.responses, dtype=torch.bool)
    if run.method is None or not run.method.needs_scores:
        return mask
    sides = {"chosen_mask": mask[:, 0], "rejected_mask": mask[:, 1]}
    scores = {"chosen_scores": run.scores[:, 0], "rejected_scores": run.scores[:, 1]}
    selected = torch.stack(select(run.method, **sides, **scores), 1)
    if run.chosen_nll_weight or run.method.needs_response:
        selected[:, 0] = True
    return selected


class Watch:
    """Recorder of means of every step of a stack over its pairs, from which the statistics are computed.

    ``chosen`` and ``rejected`` are mean log-probabilities of the computed tokens, ``chosen_change`` and
    ``rejected_change`` the same minus those of the model before training, ``chosen_all`` that change over all chosen
    tokens, and ``falling`` the share of pairs whose computed chosen tokens together are less likely than before.

    Args:
        runs: the K models.
        start: [K, N, 2, T] log-probabilities of the models before training.

    Attributes:
        steps: for each step, by name, a value for each model.
    """

    def __init__(self, runs: Sequence[Run], start: Tensor) -> None:
        self._start, self._models = start, torch.arange(len(runs))[:, None]
        self._counted = torch.stack([computed(run) for run in runs])
        self.steps: list[dict[str, list[float]]] = []

    def __call__(self, logps: Tensor, rows: Tensor) -> None:
        """Record a step from log-probabilities [K, B, 2, T] of the rows [K, B]."""
        counted, change = self._counted[self._models, rows], logps - self._start[self._models, rows]
        counts = counted.sum((1, 3))
        found = {"chosen_all": change[:, :, 0].mean((1, 2))}
        for suffix, values in (("", logps), ("_change", change)):
            means = torch.where(counted, values, 0.0).sum((1, 3)) / counts
            found |= {f"chosen{suffix}": means[:, 0], f"rejected{suffix}": means[:, 1]}
        fell = torch.where(counted, change, 0.0)[:, :, 0].sum(-1) < 0
        found["falling"] = fell.double().mean(1)
        self.steps.append({name: values.tolist() for name, values in found.items()})

    def by_name(self) -> dict[str, list[list[float]]]:
        """Return the steps of each model, by name."""
        return {name: list(zip(*(step[name] for step in self.steps), strict=True)) for name in self.steps[0]}


def highest(steps: Mapping[str, Sequence[float]], *, referenced: bool, batch: int) -> dict[str, dict[str, float]]:
    """Return the highest value of every statistic by part of the training, each as a mean over the latest pairs.

    Args:
        steps: what ``Watch`` recorded of a run, by name.
        referenced: whether the policy has a reference, so that the log has the change since before training.
        batch: pairs per step.
    """

    def changes(values: Sequence[float], first: float | None = 0.0) -> list[float]:
        likelihood = ChosenLikelihood(first)
        found = [likelihood.add(value, batch) for value in values]
        return [0.0 if each is None else each for each in found]

    # Without a reference, a log has no log-probabilities of before training.
    suffix, first = ("_change", 0.0) if referenced else ("", None)
    chosen, rejected = (changes(steps[f"{side}{suffix}"], first) for side in SIDES)
    statistics = (
        [-each for each in chosen],
        [-each for each in rejected],
        [won - lost for won, lost in zip(chosen, rejected, strict=True)],
        [-each for each in changes(steps["chosen_all"])],
        changes(steps["falling"]),
    )
    return {
        name: {f"{part:g}": max(values[: max(1, int(part * len(values)))]) for part in PARTS}
        for name, values in zip(STATISTICS, statistics, strict=True)
    }


def bad_runs(right: Mapping[float, Sequence[float]], start: Sequence[float]) -> dict[float, list[bool]]:
    """Return which runs of a policy end badly, by rate and seed, from their shares of right responses.

    >>> bad_runs({1e-4: [0.5, 0.2], 1e-3: [0.42, 0.35]}, start=[0.1, 0.4])
    {0.0001: [False, True], 0.001: [False, False]}
    """
    best, found = list(start), {}
    for rate in sorted(right):
        found[rate] = [now < before - LOST for now, before in zip(right[rate], best, strict=True)]
        best = [max(each) for each in zip(right[rate], best, strict=True)]
    return found


def separation(
    rows: Iterable[tuple[bool, Mapping[str, float]]], bound: float
) -> dict[str, int | float | dict[str, float | None] | None]:
    """Return of how many runs a bound warns.

    Args:
        rows: for each run, whether it ends badly, and the highest value of a statistic by part of the training.
        bound: the bound.

    Returns:
        Numbers of ``bad`` and ``good`` runs; the share of the bad ones that are ``warned`` of by part of the training,
        and that of the good ones that are warned of at any time, ``false``. None for a share of no runs.
    """
    rows = list(rows)
    bad, good = ([highest for ends, highest in rows if ends is which] for which in (True, False))

    def share(found: Sequence[Mapping[str, float]], part: str) -> float | None:
        return sum(each[part] > bound for each in found) / len(found) if found else None

    parts = [f"{part:g}" for part in PARTS]
    return {
        "bad": len(bad),
        "good": len(good),
        "warned": {part: share(bad, part) for part in parts},
        "false": share(good, parts[-1]),
    }


def lowest_bound(rows: Sequence[tuple[bool, Mapping[str, float]]], bounds: Sequence[float]) -> float:
    """Return the lowest bound that warns of a tolerated share of the good runs; the highest if none does."""
    tolerable = [bound for bound in bounds if (separation(rows, bound)["false"] or 0.0) <= TOLERATED]
    return min(tolerable, default=max(bounds))
