"""Do policies trained on selected tokens get better, and how good must a scorer be before selection pays?

    python benchmarks/claims/world_methods.py                  # 1,024 pairs; writes results/world_methods.json
    python benchmarks/claims/world_methods.py --flipped 0.33   # a third of the labels flipped; another --output
    python benchmarks/claims/world_methods.py --quick          # two seeds, tiny sizes: does everything run

In the world of ``world.py``: for every seed a model after SFT, pairs of its own samples, a DPO oracle on them, and
policies of every method of ``methods_study.py`` at every learning rate. The rate of a method is the one with the
highest mean share of right sampled responses to the validation questions, over the seeds; of equals the lowest.

Result file: ``setting``, ``machine``, ``versions``, ``date``; ``starts`` and ``redrawn`` seeds; ``oracle`` (AUROC on
held-out pairs by seed); ``policies`` (by name: chosen ``rate`` of so many ``comparisons``, share of ``right`` responses
to the held-out questions with interval over seeds, ``by_seed``, the paired differences ``minus`` by baseline, and
``validation``, the means by rate).

An interrupted run continues by the same command; finished parts are kept in --work.
"""

import json
import sys
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from claims.command import parser, write_result
from claims.credit_study import Cell, credit, trained_oracles
from claims.data import Judged, Sizes, flipped, seed_data, starts
from claims.figure import draw
from claims.kept import Kept
from claims.methods_study import BASELINES, methods
from claims.paired import difference, over_seeds
from claims.policies import Task, compared
from claims.stacked import Shape
from claims.training import log_probs
from claims.world import World


@dataclass(frozen=True)
class Setting:
    """Settings of the study.

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


def references(shape, seeds, pairs, judged_pairs, setting, kept, on_step):
    """Return the oracle's scores and its credit, and references of three strengths with their log-probabilities."""
    below = log_probs(shape, torch.stack([each.start for each in seeds]), pairs)
    found, measured = {"the model after SFT": below}, {}
    for name, cell in (("half-trained by DPO", setting.weak_reference), ("the DPO oracle", setting.oracle)):
        train = partial(trained_oracles, shape, seeds, pairs, judged_pairs, cell, ("dpo", 0), on_step=on_step)
        models = kept.tensor(f"reference-{cell.rate:g}-{cell.epochs}", lambda train=train: train().models)
        found[name] = log_probs(shape, models, pairs)
        measured[name] = credit(judged_pairs.scores(shape, models, range(len(seeds))), judged_pairs)
    return list(found["the DPO oracle"] - below), found, measured


def measured(setting, work, names):
    """Run everything that is not kept yet; return the result without its frame."""
    world, shape, sizes = World(), Shape(), setting.sizes
    bar = tqdm(unit="step", file=sys.stderr, mininterval=10)
    step = partial(bar.update)
    learnt, redrawn = starts(
        world, shape, sizes, setting.seeds, first=setting.first_seed, folder=work / "starts", on_step=step
    )
    kept = Kept(work / f"methods-{sizes.flipped:g}", json.loads(json.dumps(asdict(setting))))
    seeds = [seed_data(world, shape, sizes, seed, *found) for seed, found in learnt.items()]
    pairs = [flipped(each.pairs, sizes.flipped, each.seed) for each in seeds]
    oracle, stronger, credits = references(shape, seeds, pairs, Judged.of(shape, seeds), setting, kept, step)
    questions = setting.validation_questions, setting.held_out_questions
    task = Task(world, shape, seeds, pairs, setting.epochs, *questions)
    candidates = {
        name: policy
        for name, policy in methods(task, oracle, stronger).items()
        if not names or any(each in name for each in names)
    }
    found = compared(task, candidates, setting.rates, kept, step)
    bar.close()
    return {
        "starts": {str(seed): right for seed, (_, right) in learnt.items()},
        "redrawn": {str(seed): right for seed, right in redrawn.items()},
        "oracle": credits,
        "policies": rows(found, len(setting.rates)),
    }


def rows(found, rates):
    """Return one row for each policy, from the results of ``policies.compared``."""
    return {
        name: {
            "rate": own["rate"],
            "comparisons": rates,
            "right": over_seeds(own["held_out"]),
            "by_seed": own["held_out"],
            "minus": {
                other: difference(own["held_out"], found[other]["held_out"])
                for other in BASELINES
                if other in found and other != name
            },
            "validation": own["validation"],
        }
        for name, own in found.items()
    }


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("--flipped", type=float, default=0.0, help="share of the pairs with the wrong label")
    options.add_argument("--only", nargs="+", default=[], help="methods whose names contain one of these")
    given = options.parse_args(argv)
    setting = QUICK if given.quick else Setting(sizes=Sizes(flipped=given.flipped))
    written = write_result(given, "world_methods.json", setting, lambda work: measured(setting, work, given.only))
    if not given.only:
        draw(json.loads(written.read_text(encoding="utf-8")), written.with_suffix(".png"))


if __name__ == "__main__":
    main()
