"""Which estimator of token credit finds wrong tokens best, and do policies trained with it get better?

    python benchmarks/claims/credit_world.py            # writes benchmarks/claims/results/credit_world.json
    python benchmarks/claims/credit_world.py --quick    # two seeds, tiny sizes: does everything run

In the world of ``world.py``, made hard: 128 pairs, a third of them with the wrong label. For every seed a model after
SFT, pairs of its own samples, oracles of all kinds (``estimators.py``) at every learning rate and number of epochs, and
policies on 512 such pairs with the tokens that an estimator selects.

Result file: ``setting`` (all sizes and grids), ``machine``, ``versions``, ``date``; ``starts`` (share of right
responses after SFT by seed) and ``redrawn`` seeds; ``estimators`` (by name: chosen ``rate``, ``epochs`` and
``variant``, number of ``comparisons`` and ``trainings``; on held-out pairs ``auroc`` and ``first_error`` with intervals
over seeds, ``by_seed``, and the paired differences ``minus_plain`` and ``minus_surprisal``); ``grid`` (by rate and
epochs: the mean AUROC of every estimator on validation and on held-out pairs, and its first-error accuracy);
``likelihood`` (by rate, epochs and ``pref_ftx`` of a DPO oracle: ``auroc``, ``first_error``, and the paired
difference of the AUROC to that without it, ``minus_none``); ``data_share`` (by number of pairs and epochs: the plain
oracle's); ``proxies`` and ``proxies_clean`` (by kinds of oracles and target: Spearman correlations within seed);
``picks`` and ``picks_clean`` (by proxy: the credit of the oracle with its best value); ``policies`` (by name: chosen
``rate``, share of ``right`` responses with interval, ``by_seed``, the paired differences to the same objective with
the plain oracle (``minus_plain``), random tokens (``minus_random``) and all tokens (``minus_all``), ``validation`` by
rate).

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
from claims.credit_study import (
    Cell,
    clean_cell,
    credit,
    likelihood_cell,
    measured_cell,
    oracle_pairs,
    trained_oracles,
    untrained,
)
from claims.credit_tables import estimator_rows, likelihood_rows, policy_rows
from claims.data import Judged, Sizes, flipped, seed_data, starts
from claims.estimators import ESTIMATORS, PLAIN, estimated
from claims.kept import Kept
from claims.policies import Policy, Task, compared, known_credit, random_credit
from claims.proxies import correlations, picks
from claims.stacked import Shape
from claims.training import log_probs
from claims.world import Pairs, World
from sepo.objectives import resolve_method


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
        clean_pairs: pairs without flipped labels on which DPO oracles are trained for the proxies.
        clean_rates: learning rates of these.
        clean_epochs: their epochs.
        shares: numbers of pairs of the study of data.
        policy_pairs: pairs on which policies are trained, the first of the training pairs.
        policy_rates: learning rates of policies.
        policy_epochs: epochs of policies.
        validation_questions: questions by which a policy's rate is chosen.
        held_out_questions: questions of the results.
    """

    seeds: int = 10
    first_seed: int = 1
    sizes: Sizes = field(default_factory=lambda: Sizes(flipped=1 / 3))
    oracle_pairs: int = 128
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    epochs: tuple[int, ...] = (2, 8)
    clean_pairs: int = 256
    clean_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
    clean_epochs: int = 4
    shares: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    policy_pairs: int = 512
    policy_rates: tuple[float, ...] = (1e-5, 1e-4, 2e-4, 3e-4, 1e-3)
    policy_epochs: int = 2
    validation_questions: int = 300
    held_out_questions: int = 1000


QUICK = Setting(
    seeds=2,
    sizes=Sizes(sft_steps=10, pairs=64, flipped=1 / 3, validation=24, held_out=24, start_questions=50, learnt=(0, 1)),
    oracle_pairs=64, clean_pairs=64, policy_pairs=64, rates=(3e-4,), epochs=(2,), clean_rates=(3e-4,), clean_epochs=2,
    shares=(64,), policy_rates=(1e-4,), validation_questions=20,
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


def policies(shape, seeds, pairs, setting, rows, kept, on_step):
    """Return the policies to train: selection by the plain oracle, by the best other estimator, and controls."""
    best = max((name for name in rows if name in ESTIMATORS and name != PLAIN), key=lambda n: rows[n]["validation"])
    known = [known_credit(own, each.seed) for own, each in zip(pairs, seeds, strict=True)]
    chance = [random_credit(own, each.seed) for own, each in zip(pairs, seeds, strict=True)]
    credits = {
        label: list(
            kept.tensor(
                f"scores-{name}".replace(" ", "_"),
                partial(estimator_scores, shape, seeds, pairs, setting, row, on_step),
            )
        )
        for label, name, row in (
            ("plain oracle", PLAIN, rows[PLAIN]),
            (f"best estimator: {best}", best, rows[best]),
        )
    }
    credits |= {"known tokens": known, "random tokens": chance}
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
    """Return an estimator's scores of the policies' pairs, [seeds, N, 2, T], at its chosen setting."""
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
    return estimated(row["variant"], {member: each.scores for member, each in trained.items()}, checkpoints)


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
    likelihood = [
        kept.part(
            f"likelihood-{cell.rate:g}-{cell.epochs}",
            lambda cell=cell: likelihood_cell(shape, seeds, pairs, judged_pairs, cell, on_step=step),
        )
        for cell in cells
    ]
    clean = [
        kept.part(
            f"clean-{rate:g}",
            lambda rate=rate: clean_cell(
                shape, seeds, judged_pairs, Cell(rate, setting.clean_epochs), setting.clean_pairs, on_step=step
            ),
        )
        for rate in setting.clean_rates
    ]
    without = kept.part("untrained", lambda: untrained(shape, seeds, judged_pairs))
    rows = estimator_rows(found, without)
    shares = {
        str(count): kept.part(f"pairs-{count}", lambda count=count: data_share(
            shape, seeds, judged_pairs, setting, count, step
        ))
        for count in setting.shares
    }  # fmt: skip
    pairs_of_policies = [each[: setting.policy_pairs] for each in policy_pairs(seeds, setting)]
    questions = setting.validation_questions, setting.held_out_questions
    task = Task(world, shape, seeds, pairs_of_policies, setting.policy_epochs, *questions)
    candidates = policies(shape, seeds, task.pairs, setting, rows, kept, step)
    trained = compared(task, candidates, setting.policy_rates, kept, step)
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
        "likelihood": likelihood_rows(likelihood),
        "data_share": shares,
        "proxies": correlations(_records(found)),
        "proxies_clean": correlations(_records(clean)),
        "picks": picks(_records(found)),
        "picks_clean": picks(_records(clean)),
        "policies": policy_rows(trained, len(setting.policy_rates)),
    }  # fmt: skip


def _records(cells):
    return [{**row, "rate": cell["rate"], "epochs": cell["epochs"]} for cell in cells for row in cell["oracles"]]


def main(argv=None):
    options = parser(__doc__).parse_args(argv)
    setting = QUICK if options.quick else Setting()
    write_result(options, "credit_world.json", setting, partial(measured, setting))


if __name__ == "__main__":
    main()
