"""Do policies trained on selected tokens get better, and how good must a scorer be before selection pays?

    python benchmarks/claims/world_methods.py                    # 1,024 pairs; writes results/world_methods.json
    python benchmarks/claims/world_methods.py --flipped 0.3333   # with wrong labels; writes world_methods_flipped.json
    python benchmarks/claims/world_methods.py --quick            # two seeds, tiny sizes: does everything run

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
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from claims.command import parser, write_result
from claims.figure import draw
from claims.methods_study import methods
from claims.policies import compared
from claims.training import log_probs
from claims.world_task import QUICK, Setting, prepared, progress, rows, with_flipped


def references(found, on_step):
    """Return the oracle's scores, references of three strengths with their log-probabilities, and their credit."""
    task, setting = found.task, found.setting
    below = log_probs(task.shape, torch.stack([each.start for each in task.seeds]), task.pairs)
    stronger, credits = {"the model after SFT": below}, {}
    for name, cell in (("half-trained by DPO", setting.weak_reference), ("the DPO oracle", setting.oracle)):
        models, credits[name] = found.oracles(cell, on_step)
        stronger[name] = log_probs(task.shape, models, task.pairs)
    return list(stronger["the DPO oracle"] - below), stronger, credits


def measured(setting, names, without, work):
    """Run everything that is not kept yet; return the result without its frame."""
    bar = progress()
    step = partial(bar.update)
    found = prepared(setting, work, step)
    oracle, stronger, credits = references(found, step)
    candidates = {
        name: policy
        for name, policy in methods(found.task, oracle, stronger).items()
        if (not names or any(each in name for each in names)) and not any(each in name for each in without)
    }
    trained = compared(found.task, candidates, setting.rates, found.kept, step)
    bar.close()
    return {
        "starts": found.starts,
        "redrawn": found.redrawn,
        "oracle": credits,
        "policies": rows(trained, len(setting.rates)),
    }


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("--flipped", type=float, default=0.0, help="share of the pairs with the wrong label")
    options.add_argument("--only", nargs="+", default=[], help="methods whose names contain one of these")
    options.add_argument("--without", nargs="+", default=[], help="no methods whose names contain one of these")
    given = options.parse_args(argv)
    setting = with_flipped(QUICK if given.quick else Setting(), given.flipped)
    name = "world_methods_flipped.json" if given.flipped else "world_methods.json"
    written = write_result(given, name, setting, partial(measured, setting, given.only, given.without))
    if not (given.only or given.without or given.flipped):
        draw(json.loads(written.read_text(encoding="utf-8")), written.with_suffix(".png"))


if __name__ == "__main__":
    main()
