"""Estimators of token credit in the world: which oracles each one is made of, and how their scores are combined."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from claims.training import Run
from claims.world import Pairs
from sepo.objectives import resolve_method
from sepo.selection.estimators import first_error_scores, mean_scores


@dataclass(frozen=True)
class Kind:
    """A way to train an oracle.

    Args:
        objective: of sepo; None for SFT on the chosen responses.
        beta: of the objective; None if it has none.
        swapped: True to train on the pairs with chosen and rejected responses exchanged.
        pref_ftx: weight of the likelihood of the chosen responses beside the objective.
    """

    objective: str | None
    beta: float | None = None
    swapped: bool = False
    pref_ftx: float = 0.0

    def run(self, pairs: Pairs, *, rate: float, seed: int) -> Run:
        """Return the run that trains an oracle of this kind; the seed is that of the order of the pairs."""
        pairs = pairs.swapped() if self.swapped else pairs
        if self.objective is None:
            return Run(pairs, None, rate, seed, chosen_nll_weight=1.0)
        method = resolve_method(self.objective, beta=self.beta)
        return Run(pairs, method, rate, seed, chosen_nll_weight=self.pref_ftx)


KINDS = {
    "dpo": Kind("dpo", 0.1),
    "dpo, pref_ftx 0.2": Kind("dpo", 0.1, pref_ftx=0.2),
    "dpo, pref_ftx 1": Kind("dpo", 0.1, pref_ftx=1.0),
    "dpo, beta 0.01": Kind("dpo", 0.01),
    "dpo, beta 1": Kind("dpo", 1.0),
    "reversed dpo": Kind("dpo", 0.1, swapped=True),
    "ipo": Kind("ipo", 0.1),
    "minor_dpo": Kind("minor_dpo", 0.1),
    "sft, chosen": Kind(None),
    "sft, rejected": Kind(None, swapped=True),
}

Member = tuple[str, int]
"""A kind and the number of the order of the pairs in which it was trained."""


@dataclass(frozen=True)
class Estimator:
    """An estimator of the credit of every token.

    Args:
        members: its oracles, each one training.
        combine: their scores, [..., T] each, to those of the estimator.
        family: estimators of one family differ in a hyperparameter, and the best of them by validation pairs counts.
        checkpoints: True if the scores of every checkpoint of the only member are combined.
    """

    members: tuple[Member, ...]
    combine: Callable[[Sequence[Tensor]], Tensor]
    family: str
    checkpoints: bool = False


def _single(scores: Sequence[Tensor]) -> Tensor:
    return scores[0]


def _difference(scores: Sequence[Tensor]) -> Tensor:
    """Return the mean of the first half minus the mean of the second: log pi+ - log pi-, the base cancels."""
    half = len(scores) // 2
    return mean_scores(scores[:half]) - mean_scores(scores[half:])


def _first_error(scores: Sequence[Tensor]) -> Tensor:
    flat = scores[0].flatten(0, -2)
    return torch.stack([first_error_scores(each) for each in flat]).view(scores[0].shape)


def _of(kind: str, count: int = 1) -> tuple[Member, ...]:
    return tuple((kind, order) for order in range(count))


PLAIN = "DPO oracle"
ESTIMATORS = {
    PLAIN: Estimator(_of("dpo"), _single, PLAIN),
    "DPO oracle, beta 0.01": Estimator(_of("dpo, beta 0.01"), _single, PLAIN),
    "DPO oracle, beta 1": Estimator(_of("dpo, beta 1"), _single, PLAIN),
    "IPO oracle": Estimator(_of("ipo"), _single, "IPO oracle"),
    "MinorDPO oracle": Estimator(_of("minor_dpo"), _single, "MinorDPO oracle"),
    "SFT on chosen": Estimator(_of("sft, chosen"), _single, "SFT on chosen"),
    "DPO - reversed DPO": Estimator(_of("dpo") + _of("reversed dpo"), _difference, "DPO - reversed DPO"),
    "SFT on chosen - SFT on rejected": Estimator(
        _of("sft, chosen") + _of("sft, rejected"), _difference, "SFT on chosen - SFT on rejected"
    ),
    "mean over checkpoints of DPO": Estimator(
        _of("dpo"), mean_scores, "mean over checkpoints of DPO", checkpoints=True
    ),
    "mean of 4 DPO": Estimator(_of("dpo", 4), mean_scores, "mean of 4 DPO"),
    "mean of 8 DPO": Estimator(_of("dpo", 8), mean_scores, "mean of 8 DPO"),
    "mean of 4 MinorDPO": Estimator(_of("minor_dpo", 4), mean_scores, "mean of 4 MinorDPO"),
    "mean of 4 (DPO - reversed DPO)": Estimator(
        _of("dpo", 4) + _of("reversed dpo", 4), _difference, "mean of 4 (DPO - reversed DPO)"
    ),
    "mean of 4 (SFT on chosen - SFT on rejected)": Estimator(
        _of("sft, chosen", 4) + _of("sft, rejected", 4), _difference, "mean of 4 (SFT on chosen - SFT on rejected)"
    ),
    "first error of DPO": Estimator(_of("dpo"), _first_error, "first error of DPO"),
}
CENTERED = "DPO oracle, centered"
"""Log-ratio plus KL(base || oracle); needs the oracle's whole distribution."""
SURPRISAL = "surprisal"
CENTERED_SURPRISAL = "surprisal, centered"
RANDOM = "random"


def members() -> list[Member]:
    """Return every oracle that the estimators need, each once."""
    return list(dict.fromkeys(member for each in ESTIMATORS.values() for member in each.members))


def estimated(name: str, scores: Mapping[Member, Tensor], checkpoints: Sequence[Tensor]) -> Tensor:
    """Return the scores of an estimator from those of its members, and those of the checkpoints of ``("dpo", 0)``."""
    estimator = ESTIMATORS[name]
    if estimator.checkpoints:
        return estimator.combine(checkpoints)
    return estimator.combine([scores[member] for member in estimator.members])
