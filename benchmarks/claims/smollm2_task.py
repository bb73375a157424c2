"""Do selected tokens train SmolLM2 better? Long responses in which few tokens are wrong, in both responses of a pair.

    python benchmarks/claims/smollm2_task.py --work DIR           # writes benchmarks/claims/results/smollm2_task.json
    python benchmarks/claims/smollm2_task.py --work DIR --more    # and further variants, in the same result
    python benchmarks/claims/smollm2_task.py --work DIR --quick   # one seed, one rate, few questions: does it run

The task is benchmarks/claims/smollm2/invitations.py. Everything runs through the commands of `sepo` and the recipes in
benchmarks/claims/smollm2/recipes:

1. `sepo train`, stage sft: SmolLM2-135M-Instruct learns the answers and their misconception. It is the policy.
2. `sepo pairs`: two samples to each prompt; the one with fewer wrong facts is chosen.
3. `sepo compare` with the first --tuning-seeds: the oracle, by DPO on the pairs, and every variant with every learning
   rate. The rate of each variant is the one with the highest share of right sampled answers to validation questions.
4. `sepo compare` in the same directory with all seeds: every variant with its rate; sampled answers to held-out
   questions.
5. `sepo credit`: whether the oracle finds the wrong values, on sampled pairs of other questions.
6. `sepo sample`: the share of right answers of the policy before training.

The policy and its pairs are the same for all seeds; a seed draws the pairs that a run reads, their order, the first
weights of the adapter and random selections. Intervals are bootstraps over seeds and questions. Validation and held-out
questions have pairs of values that are in no other question.

The same command continues an interrupted run; what is finished is kept in --work.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from smollm2 import data, invitations
from smollm2.estimates import crossed
from smollm2.judge import write_registration

from sepo.files import write_whole
from sepo.hosts.llamafactory.bench.machine import machine, versions
from sepo.intervals import share

CLAIMS = Path(__file__).resolve().parent
RECIPES = CLAIMS / "smollm2" / "recipes"
RESULT = CLAIMS / "results" / "smollm2_task.json"
DEFAULT_MODEL = Path("~/.cache/sepo/demo/smollm2-135m-instruct")
GRID = "learning_rate"
QUICK = {
    "seeds": [1], "learning_rates": [1e-3], "prompts": 96, "credit": 16, "validation": 8, "held_out": 32,
    "max_steps": 16, "oracle_steps": 24,
}  # fmt: skip
DIFFERENCES = (
    ("sepo", "sepo_random"), ("sepo", "dpo"), ("sepo", "sft"), ("sepo", "sepo_known"), ("sepo_known", "dpo"),
    ("dpo", "sepo_random"), ("dpo_oracle", "dpo_random"), ("dpo_oracle", "dpo"), ("sepo_ftx", "sepo"),
    ("minor_dpo", "dpo"), ("selective_dpo", "dpo"), ("treg", "dpo"),
)  # fmt: skip
"""Pairs of variants that are compared, paired by seed and question."""


@dataclass(frozen=True)
class Setting:
    """Settings of this study; what is not here is in the recipes.

    Args:
        seeds: training seeds.
        tuning_seeds: number of the seeds, from the first, with which learning rates are chosen.
        learning_rates: the grid of every variant.
        revised: number of revised facts of a question.
        start: number of rows that the starting policy learns.
        prompts: number of prompts for pairs.
        credit: number of prompts for the pairs on which the oracle is measured.
        validation: number of validation questions.
        held_out: number of held-out questions.
        max_steps: steps of every variant.
        oracle_steps: steps of the oracle.
    """

    seeds: tuple[int, ...]
    tuning_seeds: int
    learning_rates: tuple[float, ...]
    revised: int
    start: int
    prompts: int
    credit: int
    validation: int
    held_out: int
    max_steps: int
    oracle_steps: int


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
        paths = [write_registration(work / "judge"), CLAIMS, CLAIMS.parents[1] / "plugin"]
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "OMP_NUM_THREADS": str(threads),
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }

    @property
    def start(self) -> Path:
        """Directory of the starting policy."""
        return self.work / "start"

    def run(self, name: str, *words: str, depends: Any = None) -> float:
        """Run a command, or find it finished; its output is in ``steps/NAME.log``.

        A command that ended with an error or was killed is run again: it resumes by itself, as those of `sepo` do.

        Args:
            name: name of the step.
            *words: the command and its arguments.
            depends: plain JSON that the command depends on besides.

        Returns:
            Its seconds, those of earlier attempts included.

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
        if found.get("finished"):
            return found["seconds"]
        print(f"{time.strftime('%H:%M:%S')} {name}: sepo {words[0]}; output in {log}", flush=True)
        begin = time.monotonic()
        with log.open("ab") as stream:
            command = [sys.executable, "-m", "sepo", *words]
            status = subprocess.run(command, env=self._environment, stdout=stream, stderr=subprocess.STDOUT).returncode
        found["seconds"] = round(found["seconds"] + time.monotonic() - begin, 1)
        write_whole(record, json.dumps({**found, "finished": status == 0}, indent=1) + "\n")
        if status:
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]
            raise SystemExit("\n".join([f"error: sepo {words[0]} ended with status {status} ({log}):", *last]))
        return found["seconds"]


def prepare(steps: Steps, setting: Setting) -> dict[str, float]:
    """Make the questions, the starting policy and the pairs; return the seconds by step."""
    folder, seconds = steps.work / "data", {}
    sizes = {name: getattr(setting, name) for name in ("revised", *data.SIZES)}
    if not (folder / "dataset_info.json").exists():
        data.write_questions(folder, seed=0, **sizes)
    where = [f"dataset_dir={folder}"]
    start = [f"model_name_or_path={steps.model}", f"output_dir={steps.start}", "overwrite_output_dir=true"]
    seconds["start"] = steps.run("start", "train", str(RECIPES / "start.yaml"), *where, *start, depends=sizes)
    pairs = [f"model_name_or_path={steps.start}", f"pairs_dir={steps.work / 'pairs'}"]
    seconds["pairs"] = steps.run("pairs", "pairs", str(RECIPES / "pairs.yaml"), *where, *pairs)
    if not (folder / f"{data.PAIRS}.json").exists():
        data.write_pairs(folder, samples(steps.work / "pairs"))
    return seconds


def samples(folder: Path) -> list[str]:
    return (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()


def comparison(steps: Steps, setting: Setting, variants: Mapping[str, Any]) -> dict[str, Any]:
    """Return the file of `sepo compare`, without its seeds, for these variants."""
    recipe = yaml.safe_load((RECIPES / "compare.yaml").read_text(encoding="utf-8"))
    recipe |= {
        "model_name_or_path": str(steps.start),
        "dataset_dir": str(steps.work / "data"),
        "output_dir": str(steps.work / "compare"),
        "generate": max(setting.validation, setting.held_out),
        "max_steps": setting.max_steps,
        "oracle": {**recipe["oracle"], "max_steps": setting.oracle_steps},
        "grid": {GRID: list(setting.learning_rates)},
        "variants": dict(variants),
    }
    return recipe


def narrowed(recipe: Mapping[str, Any], rates: Mapping[str, float]) -> dict[str, Any]:
    """Return the file of a comparison in which every variant has its chosen rate and nothing is chosen.

    The names of the runs stay the same, so that those of the tuning seeds are found finished.
    """
    variants = {name: {**keys, "grid": {GRID: [rates[name]]}} for name, keys in recipe["variants"].items()}
    kept = {name: value for name, value in recipe.items() if name not in ("choose", "choose_by", "grid", "variants")}
    return {**kept, "baseline": run_name(recipe["baseline"], rates), "variants": variants}


def run_name(variant: str, rates: Mapping[str, float]) -> str:
    """Return the name of a variant with its rate, as `sepo compare` writes it."""
    return f"{variant}-{GRID}={rates[variant]}"


def compare(steps: Steps, name: str, recipe: Mapping[str, Any], seeds: Sequence[int]) -> tuple[dict[str, Any], float]:
    """Run `sepo compare`; return the contents of its `compare.json`, and its seconds."""
    file, kept = steps.work / f"{name}.yaml", steps.work / f"{name}.json"
    content = yaml.safe_dump({**recipe, "seeds": list(seeds)}, sort_keys=False)
    write_whole(file, content)
    seconds = steps.run(name, "compare", str(file), depends=content)
    if not kept.exists():
        write_whole(kept, (Path(recipe["output_dir"]) / "compare.json").read_text(encoding="utf-8"))
    return json.loads(kept.read_text(encoding="utf-8")), seconds


def chosen_rates(tuned: Mapping[str, Any]) -> dict[str, float]:
    """Return the chosen learning rate by variant, from a `compare.json`.

    Raises:
        SystemExit: a variant has none, as all of its runs failed.
    """
    for name, found in tuned["variants"].items():
        if found["keys"] is None:
            raise SystemExit(f"error: no run of {name} succeeded: {found['failed']}")
    return {name: found["keys"][GRID] for name, found in tuned["variants"].items()}


def right_answers(compared: Path, name: str, seeds: Sequence[int]) -> np.ndarray:
    """Return whether the answer to each held-out question was right, [S, Q], from the rows of `sepo compare`."""
    files = [compared / "evaluations" / "heldout" / f"{name}-{seed}" / "rows.json" for seed in seeds]
    return np.array([json.loads(file.read_text(encoding="utf-8"))["rows"]["right"] for file in files], dtype=float)


def summarized(right: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return shares and paired differences with intervals.

    Args:
        right: by variant, whether each answer is right, [S, Q].
    """
    shares = {
        name: {**_rounded(asdict(crossed(found))), "by_seed": [round(float(each), 4) for each in found.mean(1)]}
        for name, found in right.items()
    }
    differences = {
        f"{first} - {second}": {
            **_rounded(asdict(crossed(right[first] - right[second]))),
            "by_seed": [round(float(each), 4) for each in (right[first] - right[second]).mean(1)],
        }
        for first, second in DIFFERENCES
        if first in right and second in right
    }
    return {"right": shares, "differences": differences}


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def credit(steps: Steps) -> tuple[dict[str, Any], float]:
    """Measure the oracle on the pairs of ``CREDIT``; return the token-level measures by scorer, and the seconds."""
    output = steps.work / "credit.json"
    pairs = steps.work / "data" / f"{data.CREDIT_PAIRS}.json"
    oracle = ["--oracle-base", str(steps.start), "--oracle-adapters", str(steps.work / "compare" / "oracle")]
    words = [*oracle, "--template", "smollm", "--cutoff-len", "160", "--dtype", "bf16", "-o", str(output)]
    seconds = steps.run("credit", "credit", str(pairs), *words)
    return json.loads(output.read_text(encoding="utf-8")), seconds


def before_training(steps: Steps, recipe: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """Return the share of right answers of the starting policy to held-out questions, with Wilson's interval.

    It is sampled as the answers of the comparison ``recipe`` are.
    """
    output = steps.work / "before"
    sampled = [f"model_name_or_path={steps.start}", f"eval_dataset={data.HELD_OUT}", "infer_dtype=bfloat16"]
    options = [word for name in ("temperature", "max_new_tokens")
               for word in (f"--{name.replace('_', '-')}", str(recipe[name]))]  # fmt: skip
    judge = ["--judge", "contains", "--judge-option", "whole_words=true", "--expected-column", data.EXPECTED]
    start = [str(RECIPES / "start.yaml"), f"dataset_dir={steps.work / 'data'}", f"output_dir={steps.work / 'unused'}"]
    seconds = steps.run("before", "sample", *start, *sampled, *options, *judge, "--samples", "1", "-o", str(output))
    right = [json.loads(line)["responses"][0]["right"] for line in samples(output)]
    return _rounded(asdict(share(sum(right), len(right)))), seconds


def pairs_summary(folder: Path) -> dict[str, Any]:
    """Return what the sampled responses and their pairs are like."""
    lines = [json.loads(line) for line in samples(folder)]
    wrong = [invitations.wrong_facts(each["text"], data.values_of(line["expected"]))
             for line in lines for each in line["responses"]]  # fmt: skip
    paired = [[-line["responses"][line[side]]["reward"] for side in ("chosen", "rejected")]
              for line in lines if line["chosen"] is not None]  # fmt: skip
    chosen, rejected = zip(*paired, strict=True)
    return {
        "responses": len(wrong),
        "right": round(float(np.mean(np.array(wrong) == 0)), 4),
        "finished": round(float(np.mean([each["finished"] for line in lines for each in line["responses"]])), 4),
        "tokens": round(float(np.mean([each["tokens"] for line in lines for each in line["responses"]])), 1),
        "pairs": len(paired),
        "chosen_with_errors": round(float(np.mean(np.array(chosen) > 0)), 4),
        "wrong_facts_of_chosen": round(float(np.mean(chosen)), 4),
        "wrong_facts_of_rejected": round(float(np.mean(rejected)), 4),
    }


def study(steps: Steps, setting: Setting, variants: Mapping[str, Any], *, part: str) -> dict[str, Any]:
    """Run everything and return the contents of the result file."""
    seconds = prepare(steps, setting)
    recipe = comparison(steps, setting, variants)
    tuned, seconds["tuning"] = compare(steps, f"tuning{part}", recipe, setting.seeds[: setting.tuning_seeds])
    rates = chosen_rates(tuned)
    final, seconds["final"] = compare(steps, f"final{part}", narrowed(recipe, rates), setting.seeds)
    compared = steps.work / "compare"
    right = {name: right_answers(compared, run_name(name, rates), setting.seeds) for name in variants}
    found, seconds["credit"] = credit(steps)
    before, seconds["before"] = before_training(steps, recipe)
    return {
        "machine": machine(cuda=False),
        "versions": versions(),
        "setting": asdict(setting),
        "variants": dict(variants),
        "unit": "share of right sampled answers to held-out questions",
        "before": before,
        "samples": pairs_summary(steps.work / "pairs"),
        "pairs": data.pair_counts(steps.work / "data"),
        "learning_rates": {
            name: {"chosen": rates[name], "validation": tuned["variants"][name]["validation"]} for name in variants
        },
        **summarized(right),
        "comparisons": sum(first in right and second in right for first, second in DIFFERENCES),
        "failed": {name: each["failed"] for name, each in final["variants"].items() if each["failed"]},
        "credit": found,
        "seconds": seconds,
        "training_seconds": json.loads((compared / "compare_times.json").read_text(encoding="utf-8")),
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the result as lines of text; shares in percent."""
    lines = [f"before: {_percent(result['before'])}"]
    for name, each in result["right"].items():
        rate = result["learning_rates"][name]["chosen"]
        lines.append(f"{name} ({rate:g}): {_percent(each)}, by seed {[round(100 * s, 1) for s in each['by_seed']]}")
    return "\n".join([*lines, *(f"{name}: {_percent(each)}" for name, each in result["differences"].items())])


def _percent(each: Mapping[str, float]) -> str:
    return f"{100 * each['value']:.1f} [{100 * each['low']:.1f}, {100 * each['high']:.1f}]"


def all_variants(*, more: bool) -> dict[str, Any]:
    files = ["compare", "more"] if more else ["compare"]
    parts = [yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))["variants"] for name in files]
    return {name: keys for part in parts for name, keys in part.items()}


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    recipe = yaml.safe_load((RECIPES / "compare.yaml").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="directory of models, pairs and runs, kept")
    parser.add_argument("--output", type=Path, help=f"JSON file for the results (default: {RESULT.name} in results/)")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="SmolLM2-135M-Instruct (default: the demo's)")
    parser.add_argument("--more", action="store_true", help="also the variants of more.yaml")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each command")
    parser.add_argument("--seeds", type=int, nargs="+", default=recipe["seeds"])
    parser.add_argument("--tuning-seeds", type=int, default=1, help="seeds with which learning rates are chosen")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=recipe["grid"][GRID])
    parser.add_argument("--revised", type=int, default=4, help="revised facts of a question")
    parser.add_argument("--start", type=int, default=480, help="rows that the starting policy learns")
    parser.add_argument("--prompts", type=int, default=384, help="prompts for pairs")
    parser.add_argument("--credit", type=int, default=48, help="prompts for the pairs on which the oracle is measured")
    parser.add_argument("--validation", type=int, default=40, help="questions by which learning rates are chosen")
    parser.add_argument("--held-out", type=int, default=96, help="questions of the results")
    parser.add_argument("--max-steps", type=int, default=recipe["max_steps"], help="steps of every variant")
    parser.add_argument("--oracle-steps", type=int, default=recipe["oracle"]["max_steps"], help="steps of the oracle")
    parser.add_argument("--quick", action="store_true", help="small values for all of these: does everything run")
    options = parser.parse_args(argv)
    if options.quick:
        vars(options).update(QUICK)
    options.output = options.output or (options.work / RESULT.name if options.quick else RESULT)
    return options


def main(argv: Sequence[str] | None = None) -> None:
    options = parsed(argv)
    names = Setting.__dataclass_fields__
    setting = Setting(**{
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(options).items() if name in names
    })  # fmt: skip
    steps = Steps(options.work.resolve(), model=options.model.expanduser(), threads=options.threads)
    part = "-more" if options.more else ""
    result = study(steps, setting, all_variants(more=options.more), part=part)
    write_whole(options.output, json.dumps(result, indent=1) + "\n")
    print(table(result))
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
