"""DPO oracles of other sizes and on other pairs, at a rate that is chosen without knowing the wrong tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

from torch import Tensor

from claims.credit_study import Cell, credit, trained_oracles
from claims.data import QUESTIONS, Judged, SeedData
from claims.kept import Kept
from claims.measures import margins
from claims.stacked import Shape
from claims.training import pretrained, right_share
from claims.world import World
from claims.world_task import log_ratios

SELECTED = 0.3
START_QUESTIONS = 1000


@dataclass(frozen=True)
class ChosenOracle:
    """An oracle for each seed, at one rate.

    Args:
        scores: per seed, [N, 2, T] of the training pairs.
        measured: ``parameters`` of one oracle; the chosen ``rate`` of so many ``comparisons``; the preference
            ``accuracy`` on validation pairs by rate, a mean over the seeds; ``credit`` by seed.
    """

    scores: list[Tensor]
    measured: dict


def chosen_oracle(
    shape: Shape, seeds: Sequence[SeedData], rates: Sequence[float], epochs: int, kept: Kept, name: str,
    on_step: Callable[[], object],
) -> ChosenOracle:  # fmt: skip
    """Train oracles at all rates; return those with the highest mean preference accuracy, of equals the lowest rate.

    Args:
        shape: sizes of the oracles.
        seeds: the seeds' data; ``start`` is the base of an oracle.
        rates: learning rates.
        epochs: passes over the training pairs.
        kept: where finished models are kept.
        name: of these oracles, in ``kept``.
        on_step: called after each step.
    """
    pairs, judged = [each.pairs for each in seeds], Judged.of(shape, seeds)
    models, scores, accuracy = {}, {}, {}
    for rate in sorted(rates):
        train = partial(trained_oracles, shape, seeds, pairs, judged, Cell(rate, epochs), ("dpo", 0), on_step=on_step)
        models[rate] = kept.tensor(f"oracle-{name}-{rate:g}", lambda train=train: train().models)
        scores[rate] = judged.scores(shape, models[rate], range(len(seeds)))
        accuracy[rate] = fmean(
            float((margins(own[: judged.validation]) * labels > 0).double().mean())
            for own, labels in zip(scores[rate], judged.labels, strict=True)
        )
    best = max(accuracy, key=accuracy.get)
    measured = {
        "parameters": models[best].shape[1],
        "rate": best,
        "comparisons": len(rates),
        "accuracy": {f"{rate:g}": share for rate, share in accuracy.items()},
        "credit": credit(scores[best], judged),
    }
    return ChosenOracle(log_ratios(shape, seeds, models[best], pairs), measured)


def other_starts(
    world: World, shape: Shape, seeds: Sequence[SeedData], steps: int, kept: Kept, name: str,
    on_step: Callable[[], object],
) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
    """Return models of another shape or of fewer steps after SFT, [seeds, P], and by seed their right responses.

    No seed is redrawn.
    """
    numbers = [each.seed for each in seeds]
    models = kept.tensor(
        f"start-{name}", lambda: pretrained(world, shape, numbers, steps=steps, on_step=on_step)
    )  # fmt: skip
    shares = right_share(world, shape, models, count=START_QUESTIONS, seed=QUESTIONS["start"])
    return models, {str(seed): share for seed, share in zip(numbers, shares.tolist(), strict=True)}


def from_starts(seeds: Sequence[SeedData], models: Tensor) -> list[SeedData]:
    """Return the same data with other models before training."""
    return [replace(each, start=model) for each, model in zip(seeds, models, strict=True)]


def wrong_of_selected(scores: Sequence[Tensor], seeds: Sequence[SeedData]) -> list[float]:
    """Return, per seed, the share of wrong tokens among the 30 % with the highest scores of each chosen response."""
    kept = max(1, int(SELECTED * scores[0].shape[-1] + 1e-9))
    return [
        float(each.pairs.wrong[:, 0].gather(1, own[:, 0].topk(kept).indices).double().mean())
        for own, each in zip(scores, seeds, strict=True)
    ]
