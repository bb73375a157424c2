"""Do selected tokens train SmolLM2-135M better? Responses in which few tokens are wrong, in both responses of a pair.

    python benchmarks/claims/smollm2_methods.py            # five seeds; writes results/smollm2_methods.json
    python benchmarks/claims/smollm2_methods.py --quick    # one seed, one rate, few steps: does everything run

The task is invitations/questions.py, the variants are in invitations/recipes/compare.yaml. Every step is a command of
`sepo`, whose output is in DIR/steps:

1. `sepo train`, stage sft: SmolLM2-135M-Instruct learns the answers and their misconception. It is the policy.
2. `sepo pairs`: two samples to each prompt; the one with fewer wrong facts is chosen.
3. `sepo compare` with the tuning seed, one half of the variants (with those that use the oracle) and the other half in
   a comparison each: every variant with every learning rate answers the validation questions. The rate of a variant is
   the one with the highest share of facts that are right; of equals the lowest one.
   The oracle is trained with the tuning seed, and serves all seeds.
4. `sepo compare` for each seed: every variant at its rate, answers to the held-out questions of the seed.
   Then the replication: two variants with five more seeds.
5. `sepo credit`: whether the oracle finds the wrong values, on sampled pairs of other questions.
6. `sepo sample`: answers of the policy before training to the held-out questions of each seed.

All seeds have the starting policy, the oracle and the pairs in common. A seed has its own draw and order of pairs,
first weights of the adapters, random selections and held-out questions. Validation and held-out questions have pairs
of values that are in no other question.

Result file: ``setting``, ``variants``, ``machine``, ``versions``, ``date``; ``samples`` and ``pairs`` (what the sampled
responses are like); ``before`` and ``policies`` (shares of ``right`` responses and of right ``facts`` with intervals
over seeds, ``by_seed``, the chosen ``rate`` of so many ``comparisons``, ``validation`` by rate, the paired differences
``minus`` by baseline), ``replication`` (the same); ``oracle`` (AUROC of its scores and of surprisal); ``seconds`` by
step.

The same command continues an interrupted run; finished steps are kept in --work.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from claims.command import parser, write_result
from claims.invitations import data
from claims.invitations.judge import write_registration
from claims.invitations.questions import FACTS, wrong_facts
from claims.paired import difference, over_seeds
from sepo.files import write_whole

CLAIMS = Path(__file__).resolve().parent
RECIPES = CLAIMS / "invitations" / "recipes"
MODEL = Path.home() / ".cache" / "sepo" / "demo" / "smollm2-135m-instruct"
BASELINES = ("dpo_ftx", "sepo_random_ftx", "sepo_ftx", "dpo", "sepo_random", "sepo", "sft")
"""Variants to which all are compared."""
WITH_ORACLE = "tuning-1"
"""The comparison that trains the oracle."""


@dataclass(frozen=True)
class Setting:
    """Settings of the study; the others are in the recipes.

    Args:
        seeds: the training seeds of the results.
        more_seeds: training seeds of the replication.
        replicated: the variants of the replication.
        tuning_seed: the seed with which learning rates are chosen.
        rates: learning rates of every variant.
        steps: optimizer steps of every variant.
        oracle_steps: optimizer steps of the oracle.
        revised: revised facts of a question.
        sizes: numbers of questions.
    """

    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    more_seeds: tuple[int, ...] = (6, 7, 8, 9, 10)
    replicated: tuple[str, ...] = ("sepo_ftx", "dpo_ftx")
    tuning_seed: int = 0
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    steps: int = 16
    oracle_steps: int = 40
    revised: int = 3
    sizes: data.Sizes = field(default_factory=data.Sizes)


QUICK = Setting(
    seeds=(1,), more_seeds=(2,), rates=(1e-3,), steps=2, oracle_steps=2,
    sizes=data.Sizes(start=16, prompts=48, credit=16, validation=4, held_out=4),
)  # fmt: skip


class Steps:
    """Commands of `sepo` in one directory, each of them run until it succeeds once, with its seconds.

    Args:
        work: the directory.
        model: directory of SmolLM2-135M-Instruct.
        threads: threads of each command.
    """

    def __init__(self, work: Path, *, model: Path, threads: int) -> None:
        self.work, self.model = work, model
        (work / "steps").mkdir(parents=True, exist_ok=True)
        paths = [write_registration(work / "judge"), CLAIMS.parent, CLAIMS.parents[1] / "plugin"]
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "OMP_NUM_THREADS": str(threads),
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self.seconds: dict[str, float] = {}

    @property
    def data(self) -> Path:
        """The ``dataset_dir`` of all commands."""
        return self.work / "data"

    @property
    def start(self) -> Path:
        """Directory of the starting policy."""
        return self.work / "start"

    @property
    def oracle(self) -> Path:
        """Directory of the oracle's adapter, over the starting policy."""
        return self.work / WITH_ORACLE / "oracle"

    def run(self, name: str, *words: str, depends: Any = None) -> None:
        """Run a command, or find it finished; its output is in ``steps/NAME.log``.

        A command that ended with an error or was killed is run again: it resumes by itself, as those of `sepo` do.

        Args:
            name: name of the step.
            *words: the command and its arguments.
            depends: plain JSON that the command depends on besides.

        Raises:
            SystemExit: the command failed, or the finished one was another.
        """
        record, log = (self.work / "steps" / f"{name}.{kind}" for kind in ("json", "log"))
        request = {"words": list(words), "depends": depends}
        found = (
            json.loads(record.read_text(encoding="utf-8")) if record.exists() else {"request": request, "seconds": 0}
        )
        if found["request"] != request:
            raise SystemExit(f"error: {record} is of other settings; name another --work.")
        if not found.get("finished"):
            print(f"{time.strftime('%H:%M:%S')} {name}: sepo {words[0]}; output in {log}", flush=True)
            begin = time.monotonic()
            with log.open("ab") as stream:
                command = [sys.executable, "-m", "sepo", *words]
                done = subprocess.run(command, env=self._environment, stdout=stream, stderr=subprocess.STDOUT)
            found |= {"seconds": round(found["seconds"] + time.monotonic() - begin, 1), "finished": not done.returncode}
            write_whole(record, json.dumps(found, indent=1) + "\n")
            if done.returncode:
                last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]
                raise SystemExit("\n".join([f"error: {name} ended with status {done.returncode} ({log}):", *last]))
        self.seconds[name] = found["seconds"]


def prepare(steps: Steps, setting: Setting) -> None:
    """Make the questions, the starting policy and the pairs."""
    seeds = (*setting.seeds, *setting.more_seeds)
    if not (steps.data / f"{data.held_out_name(seeds[-1])}.json").exists():
        data.write_questions(steps.data, revised=setting.revised, sizes=setting.sizes, seeds=seeds)
    sizes, where = asdict(setting.sizes), f"dataset_dir={steps.data}"
    start = [f"model_name_or_path={steps.model}", f"output_dir={steps.start}", "overwrite_output_dir=true"]
    steps.run("start", "train", str(RECIPES / "start.yaml"), where, *start, depends=sizes)
    pairs = [f"model_name_or_path={steps.start}", f"pairs_dir={steps.work / 'pairs'}"]
    steps.run("pairs", "pairs", str(RECIPES / "pairs.yaml"), where, *pairs)
    if not (steps.data / f"{data.PAIRS}.json").exists():
        data.write_pairs(steps.data, lines(steps.work / "pairs" / "samples.jsonl"))


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def variants() -> dict[str, dict[str, Any]]:
    """Return the keys of every variant, by name."""
    return yaml.safe_load((RECIPES / "compare.yaml").read_text(encoding="utf-8"))["variants"]


def uses_oracle(keys: Mapping[str, Any]) -> bool:
    return keys["stage"] == "sepo" and "objective" not in keys and "token_scorer" not in keys


def comparison(
    steps: Steps, setting: Setting, name: str, chosen: Mapping[str, Any], *, seed: int, questions: str, count: int
) -> dict[str, Any]:
    """Return the file of `sepo compare` for these variants with one seed; that of the tuning seed trains the oracle.

    Args:
        steps: the directory.
        setting: the study's settings.
        name: name of the comparison.
        chosen: keys by variant, learning rate or grid included.
        seed: the training seed.
        questions: data set of the questions.
        count: their number.
    """
    recipe = yaml.safe_load((RECIPES / "compare.yaml").read_text(encoding="utf-8"))
    trained = {"base": recipe.pop("base"), "oracle": {**recipe.pop("oracle"), "max_steps": setting.oracle_steps}}
    if seed != setting.tuning_seed:
        trained = {"oracle_base_model": str(steps.start), "oracle_model_adapters": str(steps.oracle)}
    recipe |= {
        "model_name_or_path": str(steps.start),
        "dataset_dir": str(steps.data),
        "output_dir": str(steps.work / name),
        "eval_dataset": questions,
        "generate": count,
        "max_steps": setting.steps,
        "seeds": [seed],
        "variants": dict(chosen),
    }
    return {**recipe, **trained} if any(map(uses_oracle, chosen.values())) else recipe


def compare(steps: Steps, name: str, recipe: Mapping[str, Any]) -> None:
    """Run `sepo compare` with this file."""
    write_whole(steps.work / f"{name}.yaml", yaml.safe_dump(dict(recipe), sort_keys=False))
    steps.run(name, "compare", str(steps.work / f"{name}.yaml"), depends=dict(recipe))


def tune(steps: Steps, setting: Setting, both: Callable[..., Iterable]) -> dict[str, dict[float, float]]:
    """Return the share of right facts of the answers to validation questions, by variant and learning rate."""
    found = variants()
    ordered = sorted(found, key=lambda variant: not uses_oracle(found[variant]))
    half = -(-len(ordered) // 2)
    groups = {WITH_ORACLE: ordered[:half], "tuning-2": ordered[half:]}

    def run(name: str) -> dict[str, dict[float, float]]:
        grid = {"grid": {"learning_rate": list(setting.rates)}}
        own = {variant: {**found[variant], **grid} for variant in groups[name]}
        recipe = comparison(
            steps, setting, name, own, seed=setting.tuning_seed, questions=data.VALIDATION,
            count=setting.sizes.validation,
        )  # fmt: skip
        compare(steps, name, {**recipe, "baseline": f"{groups[name][0]}-learning_rate={setting.rates[0]}"})
        return {
            variant: {
                rate: answers(steps.work / name, f"{variant}-learning_rate={rate}-{setting.tuning_seed}")["facts"]
                for rate in setting.rates
            }
            for variant in own
        }

    return {variant: own for each in both(run, groups) for variant, own in each.items()}


def answers(compared: Path, run: str) -> dict[str, float]:
    """Return the shares of right responses and of right facts of a run of a comparison."""
    rows = [json.loads(line) for line in lines(compared / "evaluations" / "heldout" / run / "generations.jsonl")]
    return shares([(row["answer"], row["expected"]) for row in rows])


def shares(answered: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, float]:
    """Return the shares of right responses and of right facts, from texts and expected answers."""
    wrong = [wrong_facts(text, data.values_of(expected)) for text, expected in answered]
    return {"right": fmean(not each for each in wrong), "facts": 1 - fmean(wrong) / len(FACTS)}


def before_training(steps: Steps, seed: int) -> dict[str, float]:
    """Return the shares of the starting policy, sampled as the answers of a comparison are."""
    recipe = yaml.safe_load((RECIPES / "compare.yaml").read_text(encoding="utf-8"))
    words = [str(RECIPES / "start.yaml"), f"dataset_dir={steps.data}", f"output_dir={steps.work / 'unused'}"]
    words += [f"model_name_or_path={steps.start}", f"eval_dataset={data.held_out_name(seed)}", "infer_dtype=bfloat16"]
    for name in ("temperature", "max_new_tokens"):
        words += [f"--{name.replace('_', '-')}", str(recipe[name])]
    words += ["--judge", "contains", "--judge-option", "whole_words=true", "--expected-column", data.EXPECTED]
    output = steps.work / f"before-{seed}"
    steps.run(f"before-{seed}", "sample", *words, "--samples", "1", "-o", str(output))
    rows = map(json.loads, lines(output / "samples.jsonl"))
    return shares([(row["responses"][0]["text"], row["expected"]) for row in rows])


def credit(steps: Steps) -> dict[str, Any]:
    """Return the token-level AUROC of the oracle and of surprisal, with intervals, on the pairs of ``CREDIT_PAIRS``."""
    output = steps.work / "credit.json"
    oracle = ["--oracle-base", str(steps.start), "--oracle-adapters", str(steps.oracle)]
    words = [*oracle, "--template", "smollm", "--cutoff-len", "128", "--dtype", "bf16", "-o", str(output)]
    steps.run("credit", "credit", str(steps.data / f"{data.CREDIT_PAIRS}.json"), *words)
    found = json.loads(output.read_text(encoding="utf-8"))["scorers"]
    return {name: found[name]["auroc"] for name in ("oracle", "surprisal")}


def samples_summary(path: Path) -> dict[str, Any]:
    """Return what the sampled responses and their pairs are like.

    Args:
        path: ``samples.jsonl`` of `sepo pairs`.
    """
    sampled = [json.loads(line) for line in lines(path)]
    each = [(row, response) for row in sampled for response in row["responses"]]
    paired = [[-row["responses"][row[side]]["reward"] for side in ("chosen", "rejected")]
              for row in sampled if row["chosen"] is not None]  # fmt: skip
    chosen, rejected = zip(*paired, strict=True)
    return {
        "responses": len(each),
        **shares([(response["text"], row["expected"]) for row, response in each]),
        "finished": fmean(response["finished"] for _, response in each),
        "tokens": fmean(response["tokens"] for _, response in each),
        "pairs": len(paired),
        "chosen_with_errors": fmean(count > 0 for count in chosen),
        "wrong_facts_of_chosen": fmean(chosen),
        "wrong_facts_of_rejected": fmean(rejected),
    }


def rows(
    found: Mapping[str, Sequence[Mapping[str, float]]], validation: Mapping[str, Mapping[float, float]], rates: Any
) -> dict[str, Any]:
    """Return one row for each policy.

    Args:
        found: by variant, the shares of each seed.
        validation: by variant, the shares of right facts on validation questions by rate.
        rates: by variant, the chosen rate.
    """
    by_seed = {name: {what: [each[what] for each in own] for what in ("right", "facts")} for name, own in found.items()}
    return {
        name: {
            "rate": rates[name],
            "comparisons": len(validation[name]),
            "validation": {f"{rate:g}": share for rate, share in validation[name].items()},
            **{what: over_seeds(shares) for what, shares in own.items()},
            "by_seed": own["right"],
            "facts_by_seed": own["facts"],
            "minus": {
                other: {what: difference(own[what], by_seed[other][what]) for what in own}
                for other in BASELINES
                if other in by_seed and other != name
            },
        }
        for name, own in by_seed.items()
    }


def measured(setting: Setting, work: Path, *, model: Path, jobs: int, threads: int) -> dict[str, Any]:
    """Run everything that is not kept yet; return the result without its frame."""
    steps = Steps(work, model=model, threads=threads)
    prepare(steps, setting)
    with ThreadPoolExecutor(jobs) as pool:
        validation = tune(steps, setting, pool.map)
        rates = {name: max(own, key=lambda rate: (own[rate], -rate)) for name, own in validation.items()}
        chosen = {name: {**keys, "learning_rate": rates[name]} for name, keys in variants().items()}
        again = {name: chosen[name] for name in setting.replicated}
        parts = [(seed, chosen) for seed in setting.seeds] + [(seed, again) for seed in setting.more_seeds]

        def one(part: tuple[int, Mapping[str, Any]]) -> dict[str, Any]:
            seed, own = part
            name, questions = f"seed-{seed}", data.held_out_name(seed)
            recipe = comparison(steps, setting, name, own, seed=seed, questions=questions, count=setting.sizes.held_out)
            compare(steps, name, recipe)
            return {variant: answers(steps.work / name, f"{variant}-{seed}") for variant in own}

        found = list(pool.map(one, parts))
        before = list(pool.map(partial(before_training, steps), setting.seeds))
    first, more = found[: len(setting.seeds)], found[len(setting.seeds) :]
    return {
        "variants": variants(),
        "samples": samples_summary(work / "pairs" / "samples.jsonl"),
        "pairs": data.pair_counts(steps.data),
        "before": {what: over_seeds([each[what] for each in before]) for what in ("right", "facts")},
        "oracle": credit(steps),
        "policies": rows({name: [each[name] for each in first] for name in chosen}, validation, rates),
        "replication": rows({name: [each[name] for each in more] for name in again}, validation, rates),
        "seconds": steps.seconds,
    }


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--model", type=Path, default=MODEL, help="SmolLM2-135M-Instruct (default: the demo's)")
    options.add_argument("--jobs", type=int, default=os.cpu_count(), help="commands at once")
    options.add_argument("--threads", type=int, default=1, help="threads of each command")
    given = options.parse_args(argv)
    setting = QUICK if given.quick else Setting()
    write_result(
        given, "smollm2_methods.json", setting,
        lambda work: measured(
            setting, (work / "smollm2").resolve(), model=given.model, jobs=given.jobs, threads=given.threads
        ),
    )  # fmt: skip


if __name__ == "__main__":
    main()
