"""Policies of many methods at many learning rates, in one world: shares of right sampled responses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from claims.data import QUESTIONS, SeedData
from claims.stacked import Shape
from claims.training import Run, right_share, trained
from claims.world import Pairs, World
from sepo.objectives import Method

BATCH = 32
TIE_NOISE = 1e-3


@dataclass(frozen=True)
class Task:
    """What policies are trained on and judged by.

    Args:
        world: the world.
        shape: sizes of the models.
        seeds: the seeds' data.
        pairs: per seed, the training pairs.
        epochs: passes over them.
        validation: validation questions.
        held_out: held-out questions.
    """

    world: World
    shape: Shape
    seeds: Sequence[SeedData]
    pairs: Sequence[Pairs]
    epochs: int
    validation: int
    held_out: int


@dataclass(frozen=True)
class Policy:
    """A way to train a policy.

    Args:
        method: the resolved method; None for SFT on the chosen responses.
        credit: per seed, [N, 2, T] token scores or rewards; None if it uses none.
        rewards: True if the credit is T-REG's token rewards.
        references: per seed, [N, 2, T] log-probabilities of another reference than the model before training.
        chosen_nll_weight: ``pref_ftx``.
        scored_by: the method's reference, in words.
    """

    method: Method | None
    credit: Sequence[Tensor] | None = None
    rewards: bool = False
    references: Sequence[Tensor] | None = None
    chosen_nll_weight: float = 0.0

    def run(self, task: Task, place: int, rate: float) -> Run:
        credit = None if self.credit is None else self.credit[place]
        return Run(
            task.pairs[place], self.method, rate, task.seeds[place].seed,
            scores=None if self.rewards else credit, rewards=credit if self.rewards else None,
            reference=None if self.references is None else self.references[place],
            chosen_nll_weight=self.chosen_nll_weight,
        )  # fmt: skip


def known_credit(pairs: Pairs, seed: int) -> Tensor:
    """Return the credit of one who knows the wrong tokens, [N, 2, T]: -1 for these, 0 for others, ties drawn."""
    noise = torch.rand(pairs.wrong.shape, generator=torch.Generator().manual_seed(seed))
    return -pairs.wrong.float() + TIE_NOISE * noise


def random_credit(pairs: Pairs, seed: int) -> Tensor:
    return torch.rand(pairs.wrong.shape, generator=torch.Generator().manual_seed(seed + 1))


def judged(task: Task, policy: Policy, rate: float, on_step: Callable[[], object] = lambda: None) -> dict:
    """Train a policy of every seed with a rate; return the shares of right responses, [seeds] each."""
    places = range(len(task.seeds))
    starts = torch.stack([each.start for each in task.seeds])
    steps = task.epochs * max(1, len(task.pairs[0]) // BATCH)
    models, _ = trained(
        task.shape, starts, [policy.run(task, place, rate) for place in places], steps=steps,
        batch=min(BATCH, len(task.pairs[0])), on_step=on_step,
    )  # fmt: skip
    shares = {
        name: right_share(task.world, task.shape, models, count=getattr(task, name), seed=QUESTIONS[name])
        for name in ("validation", "held_out")
    }
    return {"rate": rate, **{name: [round(share, 4) for share in found.tolist()] for name, found in shares.items()}}


def chosen_rate(runs: Sequence[Mapping]) -> Mapping:
    """Return the run with the highest mean share on the validation questions; of equals, that of the lowest rate."""
    return max(sorted(runs, key=lambda run: run["rate"]), key=lambda run: sum(run["validation"]))
