"""What the studies of policies in the world share: seeds, pairs, the DPO oracle, and rows of results.

The studies of one setting share the parts that they have in common, too: models after SFT, oracles, and policies of
``methods_study.py`` are trained once.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from claims.credit_study import Cell, credit, trained_oracles
from claims.data import Judged, SeedData, Sizes, flipped, seed_data, starts
from claims.kept import Kept
from claims.methods_study import BASELINES
from claims.paired import difference, over_seeds
from claims.policies import Task
from claims.stacked import Shape
from claims.training import log_probs
from claims.world import World


@dataclass(frozen=True)
class Setting:
    """Settings of a study of policies.

    Args:
        seeds: number of seeds.
        first_seed: the first of them.
        sizes: numbers of a seed's data.
        oracle: rate and epochs of the oracle.
        weak_reference: rate and epochs of a reference between the model after SFT and the oracle.
        rates: learning rates of policies.
        epochs: epochs of policies.
        validation_questions: questions by which a policy's rate is chosen.
        held_out_questions: questions of the results.
    """

    seeds: int = 10
    first_seed: int = 1
    sizes: Sizes = field(default_factory=Sizes)
    oracle: Cell = field(default_factory=lambda: Cell(1e-4, 2))
    weak_reference: Cell = field(default_factory=lambda: Cell(5e-5, 2))
    rates: tuple[float, ...] = (1e-5, 3e-5, 1e-4, 2e-4, 3e-4, 1e-3)
    epochs: int = 2
    validation_questions: int = 300
    held_out_questions: int = 1000


QUICK = Setting(
    seeds=2,
    sizes=Sizes(sft_steps=10, pairs=64, validation=24, held_out=24, start_questions=50, learnt=(0, 1)),
    rates=(1e-4,),
    validation_questions=20,
    held_out_questions=20,
)


def with_flipped(setting: Setting, share: float) -> Setting:
    """Return the setting with so large a share of wrong labels."""
    return replace(setting, sizes=replace(setting.sizes, flipped=share))


def kept_parts(folder: Path, setting: Any) -> Kept:
    """Return the finished parts of a study with these settings, a dataclass."""
    return Kept(folder, json.loads(json.dumps(asdict(setting))))


def progress() -> tqdm:
    """Return a bar that counts optimizer steps."""
    return tqdm(unit="step", file=sys.stderr, mininterval=10)


@dataclass(frozen=True)
class Prepared:
    """Seeds with their models and pairs.

    Args:
        setting: the settings.
        task: what policies are trained on and judged by.
        starts: by seed, the share of right responses of the model after SFT.
        redrawn: the same of the seeds that were not taken.
        kept: finished parts.
    """

    setting: Setting
    task: Task
    starts: dict[str, float]
    redrawn: dict[str, float]
    kept: Kept

    def oracles(self, cell: Cell, on_step: Callable[[], object]) -> tuple[Tensor, dict[str, list[float]]]:
        """Return DPO oracles [seeds, P], and their credit on validation and held-out pairs."""
        shape, seeds = self.task.shape, self.task.seeds
        judged = Judged.of(shape, seeds)
        train = partial(trained_oracles, shape, seeds, self.task.pairs, judged, cell, ("dpo", 0), on_step=on_step)
        models = self.kept.tensor(f"reference-{cell.rate:g}-{cell.epochs}", lambda: train().models)
        return models, credit(judged.scores(shape, models, range(len(seeds))), judged)


def prepared(setting: Setting, work: Path, on_step: Callable[[], object]) -> Prepared:
    """Return the seeds' models and pairs; what is not kept in ``work`` yet is made."""
    world, shape, sizes = World(), Shape(), setting.sizes
    learnt, redrawn = starts(
        world, shape, sizes, setting.seeds, first=setting.first_seed, folder=work / "starts", on_step=on_step
    )
    seeds = [seed_data(world, shape, sizes, seed, *found) for seed, found in learnt.items()]
    pairs = [flipped(each.pairs, sizes.flipped, each.seed) for each in seeds]
    questions = setting.validation_questions, setting.held_out_questions
    return Prepared(
        setting,
        Task(world, shape, seeds, pairs, setting.epochs, *questions),
        {str(seed): right for seed, (_, right) in learnt.items()},
        {str(seed): right for seed, right in redrawn.items()},
        kept_parts(work / f"methods-{sizes.flipped:g}", setting),
    )


def log_ratios(shape: Shape, seeds: Sequence[SeedData], models: Tensor, pairs: Sequence) -> list[Tensor]:
    """Return the oracles' scores of the pairs, per seed, [N, 2, T]: log-ratios to the models after SFT."""
    below = log_probs(shape, torch.stack([each.start for each in seeds]), pairs)
    return list(log_probs(shape, models, pairs) - below)


def rows(found: Mapping[str, Mapping], comparisons: int, baselines: Iterable[str] = BASELINES) -> dict[str, dict]:
    """Return one row for each policy, from the results of ``policies.compared``.

    Args:
        found: by name, ``rate``, ``held_out`` and ``validation`` of a policy.
        comparisons: settings from which that of a policy was chosen.
        baselines: policies to which the others are compared, those that are found.
    """
    known = [name for name in baselines if name in found]
    return {
        name: {
            "rate": own["rate"],
            "comparisons": comparisons,
            "right": over_seeds(own["held_out"]),
            "by_seed": own["held_out"],
            "minus": {other: difference(own["held_out"], found[other]["held_out"]) for other in known if other != name},
            "validation": own["validation"],
        }
        for name, own in found.items()
    }
