"""Policies of many methods at many learning rates, in one world: shares of right sampled responses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import fmean

import torch
from torch import Tensor

from claims.data import QUESTIONS, SeedData
from claims.kept import Kept
from claims.stacked import Shape
from claims.training import Run, log_probs, right_share, trained
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

    @cached_property
    def below(self) -> Tensor:
        """Log-probabilities of the models after SFT, the references of most methods, [seeds, N, 2, T]."""
        return log_probs(self.shape, self.models, self.pairs)

    @property
    def models(self) -> Tensor:
        """The models before training, [seeds, P]."""
        return torch.stack([each.start for each in self.seeds])

    def right_before(self) -> list[float]:
        """Return the share of right responses to the held-out questions before training, by seed."""
        return _shares(self, self.models, "held_out")


@dataclass(frozen=True)
class Policy:
    """A way to train a policy.

    Args:
        method: the resolved method; None for SFT on the chosen responses.
        credit: per seed, [N, 2, T] token scores or rewards; None if it uses none.
        rewards: True if the credit is T-REG's token rewards.
        references: per seed, [N, 2, T] log-probabilities of another reference than the model before training.
        chosen_nll_weight: ``pref_ftx``.
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
            reference=(task.below if self.references is None else self.references)[place],
            chosen_nll_weight=self.chosen_nll_weight,
        )  # fmt: skip


def known_credit(pairs: Pairs, seed: int) -> Tensor:
    """Return the credit of one who knows the wrong tokens, [N, 2, T]: -1 for these, 0 for others, ties drawn."""
    noise = torch.rand(pairs.wrong.shape, generator=torch.Generator().manual_seed(seed))
    return -pairs.wrong.float() + TIE_NOISE * noise


def random_credit(pairs: Pairs, seed: int) -> Tensor:
    return torch.rand(pairs.wrong.shape, generator=torch.Generator().manual_seed(seed + 1))


def compared(
    task: Task,
    policies: Mapping[str, Policy],
    rates: Sequence[float],
    kept: Kept,
    on_step: Callable[[], object] = lambda: None,
) -> dict[str, dict]:
    """Train every policy of every seed at every rate, and judge each at its best rate.

    The best rate has the highest mean share of right responses to the validation questions over the seeds; of equals,
    the lowest one.

    Args:
        task: what they are trained on.
        policies: by name.
        rates: learning rates.
        kept: where finished parts are kept.
        on_step: called after each step.

    Returns:
        By name: the best ``rate``, ``held_out``, the shares of right responses of each seed at it, and ``validation``,
        the mean shares by rate.
    """
    found = {}
    for name, policy in policies.items():
        label, shares, models = name.replace(" ", "_").replace("%", ""), {}, {}
        for rate in sorted(rates):
            models[rate] = kept.tensor(f"policy-{label}-{rate:g}", partial(_trained, task, policy, rate, on_step))
            shares[rate] = kept.part(f"validation-{label}-{rate:g}", partial(_shares, task, models[rate], "validation"))
        best = max(shares, key=lambda rate: sum(shares[rate]))
        found[name] = {
            "rate": best,
            "held_out": kept.part(f"held_out-{label}-{best:g}", partial(_shares, task, models[best], "held_out")),
            "validation": {f"{rate:g}": fmean(own) for rate, own in shares.items()},
        }
    return found


def _trained(task: Task, policy: Policy, rate: float, on_step: Callable[[], object]) -> Tensor:
    places = range(len(task.seeds))
    steps = task.epochs * max(1, len(task.pairs[0]) // BATCH)
    runs, batch = [policy.run(task, place, rate) for place in places], min(BATCH, len(task.pairs[0]))
    return trained(task.shape, task.models, runs, steps=steps, batch=batch, on_step=on_step)[0]


def _shares(task: Task, models: Tensor, name: str) -> list[float]:
    """Return each model's share of right responses to the validation or held-out questions."""
    count = getattr(task, name)
    return right_share(task.world, task.shape, models, count=count, seed=QUESTIONS[name]).tolist()
