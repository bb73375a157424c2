"""The study of credit: oracles of all kinds at all settings, the AUROC of every estimator, and what proxies show.

A *cell* is a learning rate and a number of epochs; in it every oracle of every seed is trained. Of each estimator, the
cell (and beta) with the highest mean AUROC over the seeds on validation pairs is chosen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from claims.data import Judged, SeedData, flipped
from claims.estimators import (
    CENTERED,
    CENTERED_SURPRISAL,
    ESTIMATORS,
    KINDS,
    RANDOM,
    SURPRISAL,
    Member,
    estimated,
    members,
)
from claims.measures import agreement, auroc, first_error, margins, proxies
from claims.stacked import Shape, pair_logits, stacked_pairs
from claims.training import trained
from claims.world import Pairs
from sepo.selection.estimators import centered_log_probs, centered_scores

BATCH = 32
LIKELIHOOD = {"0": "dpo", "0.2": "dpo, pref_ftx 0.2", "1": "dpo, pref_ftx 1"}
"""Kinds of DPO oracles that differ in the weight of the likelihood of the chosen responses, by that weight."""


@dataclass(frozen=True)
class Cell:
    """A learning rate and a number of epochs over the pairs."""

    rate: float
    epochs: int

    def steps(self, pairs: int) -> int:
        return self.epochs * max(1, pairs // BATCH)


@dataclass(frozen=True)
class Trained:
    """Oracles of one kind and order at a cell, of all seeds.

    Args:
        models: [seeds, P].
        scores: [seeds, N, 2, T] of the judged pairs.
        checkpoints: by the number of epochs, the same scores of the oracles at that time; the last one included.
    """

    models: Tensor
    scores: Tensor
    checkpoints: dict[int, Tensor]


def oracle_pairs(seeds: Sequence[SeedData], count: int, share: float) -> list[Pairs]:
    """Return the pairs on which the oracles of each seed are trained: the first, with flipped labels."""
    return [flipped(each.pairs[:count], share, each.seed) for each in seeds]


def trained_oracles(
    shape: Shape, seeds: Sequence[SeedData], pairs: Sequence[Pairs], judged: Judged, cell: Cell, member: Member,
    *, kept: Sequence[int] = (), on_step: Callable[[], object] = lambda: None,
) -> Trained:  # fmt: skip
    """Train the oracles of one kind and order of all seeds.

    Args:
        shape: sizes of the models.
        seeds: the seeds' data.
        pairs: per seed, the training pairs.
        judged: pairs to score.
        cell: rate and epochs.
        member: kind and order.
        kept: epochs after which the oracles are scored, too.
        on_step: called after each step.
    """
    kind, order = member
    starts = torch.stack([each.start for each in seeds])
    runs = [
        KINDS[kind].run(own, rate=cell.rate, seed=each.seed + 1000 * order)
        for own, each in zip(pairs, seeds, strict=True)
    ]
    per_epoch = max(1, len(pairs[0]) // BATCH)
    batch = min(BATCH, len(pairs[0]))
    models, found = trained(
        shape, starts, runs, steps=cell.steps(len(pairs[0])), batch=batch,
        checkpoints=[epoch * per_epoch for epoch in kept if epoch < cell.epochs], on_step=on_step,
    )  # fmt: skip
    places = range(len(seeds))
    checkpoints = {step // per_epoch: judged.scores(shape, each, places) for step, each in found.items()}
    scores = judged.scores(shape, models, places)
    return Trained(models, scores, {**checkpoints, cell.epochs: scores})


def credit(scores: Tensor, judged: Judged) -> dict[str, list[float]]:
    """Return AUROC and first-error accuracy of scores [seeds, N, 2, T] within rejected responses, per seed."""
    found: dict[str, list[float]] = {"validation": [], "held_out": [], "first_error": []}
    for own, pairs in zip(scores, judged.pairs, strict=True):
        rejected, wrong = own[:, 1], pairs.wrong[:, 1]
        parts = {"validation": slice(None, judged.validation), "held_out": slice(judged.validation, None)}
        for name, part in parts.items():
            found[name].append(auroc(rejected[part], wrong[part]))
        found["first_error"].append(first_error(rejected[parts["held_out"]], wrong[parts["held_out"]]))
    return found


@torch.no_grad()
def divergences(shape: Shape, starts: Tensor, models: Tensor, judged: Judged, at_once: int = 64) -> Tensor:
    """Return KL(base || oracle) at the positions of the judged tokens, [seeds, N, 2, T]."""
    prompts, responses = stacked_pairs(judged.pairs)
    parts = []
    for each in zip(prompts.split(at_once, 1), responses.split(at_once, 1), strict=True):
        below, above = (pair_logits(shape, stack, *each).log_softmax(-1) for stack in (starts, models))
        parts.append((below.exp() * (below - above)).sum(-1))
    return torch.cat(parts, 1)


@torch.no_grad()
def entropies(shape: Shape, starts: Tensor, judged: Judged, at_once: int = 64) -> Tensor:
    """Return the base's entropy at the positions of the judged tokens, [seeds, N, 2, T]."""
    prompts, responses = stacked_pairs(judged.pairs)
    parts = []
    for each in zip(prompts.split(at_once, 1), responses.split(at_once, 1), strict=True):
        logps = pair_logits(shape, starts, *each).log_softmax(-1)
        parts.append(-(logps.exp() * logps).sum(-1))
    return torch.cat(parts, 1)


def untrained(shape: Shape, seeds: Sequence[SeedData], judged: Judged) -> dict[str, dict[str, list[float]]]:
    """Return the credit of the estimators that need no oracle. Surprising tokens count as wrong."""
    starts = torch.stack([each.start for each in seeds])
    generator = torch.Generator().manual_seed(0)
    return {
        SURPRISAL: credit(judged.base, judged),
        CENTERED_SURPRISAL: credit(centered_log_probs(judged.base, entropies(shape, starts, judged)), judged),
        RANDOM: credit(torch.rand(judged.base.shape, generator=generator), judged),
    }


def measured_cell(
    shape: Shape, seeds: Sequence[SeedData], pairs: Sequence[Pairs], judged: Judged, cell: Cell,
    *, kept: Sequence[int], on_step: Callable[[], object] = lambda: None,
) -> dict:  # fmt: skip
    """Train all oracles of a cell; return the credit of every estimator and the records of proxies."""
    found = {
        member: trained_oracles(
            shape, seeds, pairs, judged, cell, member, kept=kept if _recorded(member) else (), on_step=on_step
        )
        for member in members()
    }
    scores = {member: each.scores for member, each in found.items()}
    checkpoints = list(found["dpo", 0].checkpoints.values())
    starts = torch.stack([each.start for each in seeds])
    divergence = divergences(shape, starts, found["dpo", 0].models, judged)
    estimators = {name: credit(estimated(name, scores, checkpoints), judged) for name in ESTIMATORS}
    estimators[CENTERED] = credit(centered_scores(scores["dpo", 0], divergence), judged)
    return {
        "rate": cell.rate,
        "epochs": cell.epochs,
        "estimators": estimators,
        "oracles": records(found, seeds, judged),
    }


def likelihood_cell(
    shape: Shape, seeds: Sequence[SeedData], pairs: Sequence[Pairs], judged: Judged, cell: Cell,
    *, on_step: Callable[[], object] = lambda: None,
) -> dict:  # fmt: skip
    """Train the oracles of ``LIKELIHOOD``; return the credit of each."""
    weights = {
        weight: credit(trained_oracles(shape, seeds, pairs, judged, cell, (kind, 0), on_step=on_step).scores, judged)
        for weight, kind in LIKELIHOOD.items()
    }
    return {"rate": cell.rate, "epochs": cell.epochs, "weights": weights}


def clean_cell(
    shape: Shape,
    seeds: Sequence[SeedData],
    judged: Judged,
    cell: Cell,
    count: int,
    *,
    on_step: Callable[[], object] = lambda: None,
) -> dict:
    """Train two DPO oracles of every seed on so many pairs without flipped labels; return their records.

    The labels of the validation pairs are not flipped, either.
    """
    right = replace(judged, labels=[torch.ones_like(each) for each in judged.labels])
    pairs, kept = [each.pairs[:count] for each in seeds], range(1, cell.epochs)
    found = {
        ("dpo", order): trained_oracles(shape, seeds, pairs, right, cell, ("dpo", order), kept=kept, on_step=on_step)
        for order in range(2)
    }
    return {"rate": cell.rate, "epochs": cell.epochs, "oracles": records(found, seeds, right)}


def _recorded(member: Member) -> bool:
    """Return whether the proxies of an oracle are recorded: two orders of each kind that is a scorer by itself."""
    kind, order = member
    return order < 2 and not KINDS[kind].swapped


def records(found: dict[Member, Trained], seeds: Sequence[SeedData], judged: Judged) -> list[dict]:
    """Return one record for each oracle, checkpoint and seed: proxies on validation pairs and credit on held-out ones.

    Only orders 0 and 1 are recorded; the agreement of one is that with the other at the same time.
    """
    rows = []
    for (kind, order), own in found.items():
        if not _recorded((kind, order)):
            continue
        for epoch, scores in own.checkpoints.items():
            measured = credit(scores, judged)
            other = found.get((kind, 1 - order))
            for place, seed in enumerate(seeds):
                held = scores[place, : judged.validation]
                row = {
                    "kind": kind, "order": order, "seed": seed.seed, "after": epoch,
                    "auroc": measured["held_out"][place], "first_error": measured["first_error"][place],
                    **proxies(held, judged.labels[place]),
                }  # fmt: skip
                if other is not None:
                    row["agreement"] = agreement(held, other.checkpoints[epoch][place, : judged.validation])
                row["true_accuracy"] = float((margins(held) > 0).double().mean())
                rows.append(row)
    return rows
