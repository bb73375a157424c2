"""Which estimator of token credit finds wrong tokens best, and do policies trained with it get better?

    python benchmarks/claims/credit_world.py            # writes benchmarks/claims/results/credit_world.json
    python benchmarks/claims/credit_world.py --quick    # two seeds, tiny sizes: does everything run

In the world of ``world.py``, made hard: 128 pairs, a third of them with the wrong label. For every seed a model after
SFT, pairs of its own samples, oracles of all kinds (``estimators.py``) at every learning rate and number of epochs, and
policies on 1,024 pairs with the tokens that an estimator selects.

Result file: ``setting`` (all sizes and grids), ``machine``, ``versions``, ``date``; ``starts`` (share of right responses
after SFT per seed) and ``redrawn`` seeds; ``estimators`` (name -> chosen ``rate``, ``epochs``, ``variant``, number of
``comparisons`` and ``trainings``, ``auroc`` and ``first_error`` on held-out pairs with intervals over seeds,
``by_seed``, and paired differences ``minus_plain`` and ``minus_surprisal``); ``grid`` (name -> AUROC by rate and epochs,
validation and held-out); ``data_share`` (AUROC of the plain oracle by number of pairs); ``proxies`` (Spearman
correlations of proxies with credit, within seed); ``policies`` (name -> ``rate``, ``right`` with interval, ``by_seed``,
``minus_plain``, ``validation`` by rate).

An interrupted run continues by the same command; finished parts are kept in --work.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from claims.credit_study import (
    Cell,
    credit,
    measured_cell,
    oracle_pairs,
    trained_oracles,
    untrained,
)
from claims.credit_tables import estimator_rows, policy_rows
from claims.data import Judged, Sizes, flipped, seed_data, starts
from claims.estimators import ESTIMATORS, PLAIN, estimated
from claims.kept import Kept
from claims.policies import Policy, Task, judged, known_credit, random_credit
from claims.proxies import correlations
from claims.stacked import Shape
from claims.training import log_probs
from claims.world import Pairs, World
from sepo.hosts.llamafactory.bench.machine import machine, versions
from sepo.objectives import resolve_method

RESULTS = Path(__file__).parent / "results"
WORK = Path.home() / ".cache" / "sepo" / "claims"


@dataclass(frozen=True)
class Setting:
    """Settings of the study.

    Args:
        seeds: number of seeds.
        first_seed: the first of them; others were used to choose how hard the world is.
        sizes: numbers of a seed's data.
        oracle_pairs: pairs on which oracles are trained, the first of the training pairs.
        rates: learning rates of oracles.
        epochs: epochs of oracles.
        shares: numbers of pairs of the study of data.
        policy_rates: learning rates of policies.
        policy_epochs: epochs of policies.
        validation_questions: questions by which a policy's rate is chosen.
        held_out_questions: questions of the results.
    """

    seeds: int = 10
    first_seed: int = 1
    sizes: Sizes = field(default_factory=lambda: Sizes(flipped=1 / 3))
    oracle_pairs: int = 128
    rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4, 1e-3)
    epochs: tuple[int, ...] = (2, 8)
    shares: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    policy_rates: tuple[float, ...] = (1e-5, 3e-5, 1e-4, 2e-4, 3e-4, 1e-3)
    policy_epochs: int = 2
    validation_questions: int = 300
    held_out_questions: int = 1000


QUICK = Setting(
    seeds=2, sizes=Sizes(sft_steps=60, pairs=64, flipped=1 / 3, validation=24, held_out=24, start_questions=50,
        learnt=(0.0, 1.0)),
    oracle_pairs=32, rates=(3e-4,), epochs=(2,), shares=(32,), policy_rates=(1e-4,), validation_questions=20,
    held_out_questions=20,
)  # fmt: skip


def policy_pairs(seeds, setting):
    """Return each seed's training pairs with flipped labels; the first are those of the oracles."""
    first, share = setting.oracle_pairs, setting.sizes.flipped
    oracles = oracle_pairs(seeds, first, share)
    others = [flipped(each.pairs[first:], share, each.seed + 1) for each in seeds]
    return [
        Pairs(*(torch.cat([getattr(a, name), getattr(b, name)]) for name in ("prompts", "responses", "wrong")))
        for a, b in zip(oracles, others, strict=True)
    ]


def policies(shape, seeds, pairs, setting, rows, on_step):
    """Return the policies to train, by name: selection by the plain oracle, by the best other estimator, and controls."""
    best = max((name for name in rows if name in ESTIMATORS and name != PLAIN), key=lambda n: rows[n]["validation"])
    known = [known_credit(own, each.seed) for own, each in zip(pairs, seeds, strict=True)]
    chance = [random_credit(own, each.seed) for own, each in zip(pairs, seeds, strict=True)]
    credits = {
        "plain oracle": estimator_scores(shape, seeds, pairs, setting, rows[PLAIN], on_step),
        f"best estimator: {best}": estimator_scores(shape, seeds, pairs, setting, rows[best], on_step),
        "known tokens": known,
        "random tokens": chance,
    }
    selecting = {"SePO 30 %": ("sepo", {}), "DPO 30 %": ("dpo", {"beta": 0.1, "token_scorer": "oracle"})}
    found = {
        f"{label}, {name}": Policy(resolve_method(objective, **words), scores)
        for label, (objective, words) in selecting.items()
        for name, scores in credits.items()
    }
    everything = resolve_method("sepo", chosen_ratio=1.0, rejected_ratio=1.0)
    found["SePO, all tokens"] = Policy(everything, known)
    found["DPO, all tokens"] = Policy(resolve_method("dpo", beta=0.1))
    found["SFT on chosen"] = Policy(None, chosen_nll_weight=1.0)
    return found


def estimator_scores(shape, seeds, pairs, setting, row, on_step):
    """Return an estimator's scores of the policies' pairs, [N, 2, T] per seed, at its chosen setting."""
    starts_ = torch.stack([each.start for each in seeds])
    everything = Judged(list(pairs), log_probs(shape, starts_, list(pairs)), 0, [])
    estimator = ESTIMATORS[row["variant"]]
    cell = Cell(row["rate"], row["epochs"])
    kept = setting_checkpoints(cell) if estimator.checkpoints else ()
    trained = {
        member: trained_oracles(
            shape, seeds, oracle_pairs(seeds, setting.oracle_pairs, setting.sizes.flipped), everything, cell, member,
            kept=kept, on_step=on_step,
        )
        for member in estimator.members
    }  # fmt: skip
    checkpoints = list(next(iter(trained.values())).checkpoints.values())
    return list(estimated(row["variant"], {member: each.scores for member, each in trained.items()}, checkpoints))


def setting_checkpoints(cell):
    """Return the epochs after which oracles are scored: four, evenly."""
    return sorted({max(1, cell.epochs * part // 4) for part in range(1, 5)})


def data_share(shape, seeds, judged_pairs, setting, count, on_step):
    """Return the credit of the plain oracle trained on so many pairs, at 1e-4, by epochs."""
    pairs = policy_pairs(seeds, setting) if count > setting.oracle_pairs else oracle_pairs(
        seeds, setting.oracle_pairs, setting.sizes.flipped
    )  # fmt: skip
    pairs, found = [each[:count] for each in pairs], {}
    for epochs in setting.epochs:
        if epochs * count <= 8 * 256:
            done = trained_oracles(
                shape, seeds, pairs, judged_pairs, Cell(1e-4, epochs), ("dpo", 0), on_step=on_step
            )  # fmt: skip
            found[str(epochs)] = credit(done.scores, judged_pairs)
    return found


def measured(setting, work):
    """Run everything that is not kept yet; return the result without its frame."""
    world, shape, sizes = World(), Shape(), setting.sizes
    bar = tqdm(unit="step", file=sys.stderr, mininterval=10)
    step = partial(bar.update)
    learnt, redrawn = starts(
        world, shape, sizes, setting.seeds, first=setting.first_seed, folder=work / "starts", on_step=step
    )  # fmt: skip
    kept = Kept(work / "credit", json.loads(json.dumps(asdict(setting))))
    seeds = [seed_data(world, shape, sizes, seed, *found) for seed, found in learnt.items()]
    pairs = oracle_pairs(seeds, setting.oracle_pairs, sizes.flipped)
    judged_pairs = Judged.of(shape, seeds)
    cells = [Cell(rate, epochs) for epochs in setting.epochs for rate in setting.rates]
    found = [
        kept.part(
            f"cell-{cell.rate:g}-{cell.epochs}",
            lambda cell=cell: measured_cell(
                shape, seeds, pairs, judged_pairs, cell, kept=setting_checkpoints(cell), on_step=step
            ),
        )
        for cell in cells
    ]  # fmt: skip
    without = kept.part("untrained", lambda: untrained(shape, seeds, judged_pairs))
    rows = estimator_rows(found, without)
    shares = {
        str(count): kept.part(f"pairs-{count}", lambda count=count: data_share(
            shape, seeds, judged_pairs, setting, count, step
        ))
        for count in setting.shares
    }  # fmt: skip
    task = Task(
        world, shape, seeds, policy_pairs(seeds, setting), setting.policy_epochs, setting.validation_questions,
        setting.held_out_questions,
    )  # fmt: skip
    trained = {}
    for name, policy in policies(shape, seeds, task.pairs, setting, rows, step).items():
        for rate in setting.policy_rates:
            part = f"policy-{name}-{rate:g}".replace(" ", "_").replace("%", "")
            trained.setdefault(name, []).append(
                kept.part(part, lambda policy=policy, rate=rate: judged(task, policy, rate, step))
            )
    bar.close()
    return {
        "starts": {str(seed): right for seed, (_, right) in learnt.items()},
        "redrawn": {str(seed): right for seed, right in redrawn.items()},
        "estimators": rows,
        "grid": {
            f"{each['rate']:g}, {each['epochs']}": {
                name: {part: sum(own[part]) / len(own[part]) for part in ("validation", "held_out", "first_error")}
                for name, own in each["estimators"].items()
            }
            for each in found
        },
        "data_share": shares,
        "proxies": correlations([{**row, "rate": each["rate"], "epochs": each["epochs"]} for each in found
                                 for row in each["oracles"]]),
        "policies": policy_rows(trained),
    }  # fmt: skip


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two seeds, tiny sizes: does everything run")
    parser.add_argument("--work", type=Path, help="directory of models and finished parts, kept for the next call")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args(argv)
    setting = QUICK if options.quick else Setting()
    work = options.work or WORK / ("quick" if options.quick else "full")
    output = options.output or (work if options.quick else RESULTS) / "credit_world.json"
    torch.set_num_threads(1)
    result = {
        "setting": asdict(setting),
        "machine": machine(cuda=False),
        "versions": versions(),
        "date": datetime.now(UTC).date().isoformat(),
        **measured(setting, work),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(_rounded(result), indent=1) + "\n", encoding="utf-8")
    print(f"written: {output}")


def _rounded(value):
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":
    main()
