"""What a seed of the study has: the model after SFT, pairs to train on, validation pairs and held-out pairs."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from claims.stacked import Shape
from claims.training import log_probs, own_pairs, pretrained, right_share
from claims.world import Pairs, World, flips
from sepo.errors import SepoError

QUESTIONS = {"start": 777, "validation": 888, "held_out": 999}
"""Seeds of the questions by which models are judged."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of a seed's data.

    Args:
        sft_steps: steps of SFT, of 32 rows.
        pairs: training pairs.
        flipped: share of the training and validation pairs with the wrong label.
        validation: validation pairs.
        held_out: held-out pairs.
        start_questions: questions by which the model after SFT is judged.
        learnt: a model whose share of right responses is outside has not learnt the world, and its seed is redrawn.
    """

    sft_steps: int = 1500
    pairs: int = 1024
    flipped: float = 0.0
    validation: int = 250
    held_out: int = 250
    start_questions: int = 1000
    learnt: tuple[float, float] = (0.05, 0.6)


@dataclass(frozen=True)
class SeedData:
    """Data of one seed.

    Args:
        seed: the seed.
        start: [P] the model after SFT.
        right: its share of right responses.
        pairs: the training pairs, labels flipped.
        validation: validation pairs in their true order.
        labels: [validation] 1, or -1 where the label is flipped.
        held_out: held-out pairs in their true order.
    """

    seed: int
    start: Tensor
    right: float
    pairs: Pairs
    validation: Pairs
    labels: Tensor
    held_out: Pairs


def starts(
    world: World, shape: Shape, sizes: Sizes, count: int, *, first: int, folder: Path, at_once: int = 5,
    on_step: Callable[[], object] = lambda: None,
) -> tuple[dict[int, tuple[Tensor, float]], dict[int, float]]:  # fmt: skip
    """Return the models after SFT of the first seeds that learnt the world with their shares of right responses.

    Seeds are drawn from ``first`` on; the second result has those that did not learn it. Models are kept in a folder.

    Raises:
        SepoError: as many seeds as are needed did not learn it.
    """
    learnt: dict[int, tuple[Tensor, float]] = {}
    redrawn: dict[int, float] = {}
    while len(learnt) < count:
        if len(redrawn) >= count:
            raise SepoError(
                f"{len(redrawn)} of {len(redrawn) + len(learnt)} seeds have shares of right responses outside "
                f"{sizes.learnt} after {sizes.sft_steps} SFT steps: train longer."
            )
        begin = first + len(learnt) + len(redrawn)
        seeds = list(range(begin, begin + min(at_once, count - len(learnt))))
        stack = _start_stack(world, shape, sizes, seeds, folder=folder, on_step=on_step)
        shares = right_share(world, shape, stack, count=sizes.start_questions, seed=QUESTIONS["start"])
        for seed, parameters, share in zip(seeds, stack, shares.tolist(), strict=True):
            if sizes.learnt[0] <= share <= sizes.learnt[1]:
                learnt[seed] = (parameters, share)
            else:
                redrawn[seed] = share
    return learnt, redrawn


def _start_stack(world, shape, sizes, seeds, *, folder, on_step):
    names = {seed: folder / f"sft-{seed}.safetensors" for seed in seeds}
    asked = json.dumps({"world": asdict(world), "shape": asdict(shape), "steps": sizes.sft_steps}, sort_keys=True)
    missing = [seed for seed, path in names.items() if not path.exists() or _settings(path) != asked]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        found = pretrained(world, shape, missing, steps=sizes.sft_steps, on_step=on_step)
        for seed, parameters in zip(missing, found, strict=True):
            save_file({"parameters": parameters.clone()}, names[seed], metadata={"settings": asked})
    return torch.stack([load_file(path)["parameters"] for path in names.values()])


def _settings(path: Path) -> str | None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("settings")


def seed_data(world: World, shape: Shape, sizes: Sizes, seed: int, start: Tensor, right: float) -> SeedData:
    """Return the data of a seed; the three sets of pairs are of different draws of questions."""
    pairs = own_pairs(world, shape, start, count=sizes.pairs, seed=seed + 10_000)
    validation = own_pairs(world, shape, start, count=sizes.validation, seed=seed + 20_000)
    held_out = own_pairs(world, shape, start, count=sizes.held_out, seed=seed + 30_000)
    labels = 1.0 - 2.0 * flips(sizes.validation, sizes.flipped, seed + 1).double()
    return SeedData(seed, start, right, pairs, validation, labels, held_out)


def flipped(pairs: Pairs, share: float, seed: int) -> Pairs:
    """Return pairs of which so large a share have the wrong label."""
    return pairs.swapped(flips(len(pairs), share, seed))


@dataclass(frozen=True)
class Judged:
    """Validation and held-out pairs of all seeds, and the base's log-probabilities of their tokens.

    Args:
        pairs: per seed, validation pairs and then held-out pairs.
        base: [seeds, N, 2, T].
        validation: number of validation pairs.
        labels: per seed, [validation].
    """

    pairs: list[Pairs]
    base: Tensor
    validation: int
    labels: list[Tensor]

    @classmethod
    def of(cls, shape: Shape, seeds: Sequence[SeedData]) -> "Judged":
        pairs = [
            Pairs(*(torch.cat([getattr(each.validation, name), getattr(each.held_out, name)]) for name in _FIELDS))
            for each in seeds
        ]
        base = log_probs(shape, torch.stack([each.start for each in seeds]), pairs)
        return cls(pairs, base, len(seeds[0].validation), [each.labels for each in seeds])

    def scores(self, shape: Shape, models: Tensor, places: Sequence[int]) -> Tensor:
        """Return the log-ratios, [K, N, 2, T], of models [K, P] of the seeds at these places."""
        return log_probs(shape, models, [self.pairs[place] for place in places]) - self.base[list(places)]


_FIELDS = ("prompts", "responses", "wrong")
