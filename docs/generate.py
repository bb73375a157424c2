"""Generate pages of docs/ from the code: `make docs`. A test fails if a page is out of date."""

from __future__ import annotations

import io
import json
import re
import runpy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from sepo.console import size
from sepo.credit import leaderboard
from sepo.credit.sets.registry import BUILT_IN as BUILT_IN_SETS
from sepo.credit.sets.registry import SETS
from sepo.demo.results import print_results
from sepo.evaluation.fields import FIELDS, SCHEMA_VERSION
from sepo.objectives.presets import BUILT_IN, find_objective
from sepo.recipe.keys import (
    COMPARE_KEYS,
    HOST_KEYS,
    KEYS,
    ORACLE_KEYS,
    PAIRS_KEYS,
    PIPELINE_KEYS,
    REWARD_KEYS,
    RTO_KEYS,
    Key,
    hyperparameter_keys,
)
from sepo.recipe.stage_names import RTO, STAGES

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"
CLAIMS = HERE.parent / "benchmarks" / "claims"

# Rows of the figures in memory_and_speed.md, in this order: result files of benchmarks/train_step.py, and contenders.
MEASURED_MODELS = {"smollm2": "SmolLM2-135M", "qwen3_moe": "Qwen3-MoE, 4 layers", "qwen3_5": "Qwen3.5, 4 layers"}
MEASURED_METHODS = {
    "host_dpo": "DPO, LLaMA-Factory", "trl_dpo": "DPO, TRL", "host_simpo": "SimPO, LLaMA-Factory", "dpo": "DPO, sepo",
    "sepo": "SePO",
}  # fmt: skip

# Rows without an entry in recipe/keys.py: keys that only the host reads, and sections.
LEFTOVERS = [["`pref_loss`", "", "Only `sigmoid` is accepted: `objective` sets the loss."]]
SECTIONS = [
    [
        "`pairs`, `base`, `oracle`, `policy`",
        "",
        "Sections with keys for one step only. `pairs` samples the pairs that the others train on; `pref_ftx` of "
        "`oracle` is 1.0 if it is not set ([why](train_an_oracle.md)); `base: false` "
        "trains no base, and with `pairs`, `oracle: false` neither base nor oracle.",
    ]
]
VARIANTS = [
    ["`variants`", "", "Section with the variants, `NAME: keys`; a variant may have a `grid` of its own."],
    ["`grid`", "", "Section with lists of values, `key: [...]`; every variant is run with each combination."],
    [
        "`base`, `oracle`",
        "",
        "Sections of `sepo pipeline`: its oracle is trained once, for all variants that use one; with the keys above.",
    ],
]

_HEAD = """# Keys

Keys in addition to those of LLaMA-Factory. An unknown key is an error that gives the nearest known key. A key that is
set to null (`key: null`) counts as absent. This page is generated from the code (`make docs`).

"""

_OBJECTIVE_COLUMNS = (
    "objective", "default of stage", "default token scorer", "default token weight", "keys and their defaults",
)  # fmt: skip

_EVAL_HEAD = f"""# eval.json

What `sepo eval` writes, field by field; `*` is any name. Schema {SCHEMA_VERSION}: it changes if a key is removed or
changes its meaning, not if keys are added. An *estimate* is `{{"value": ..., "low": ..., "high": ...}}`: a number and
its 95 % interval, whose ends are null with a single row. No number is NaN. This page is generated from the code
(`make docs`).

"""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        cells = [cell.replace("|", "\\|") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def key_rows(keys: Iterable[Key]) -> list[list[str]]:
    """Return the table rows of keys."""
    return [[f"`{key.name}`", key.default_text, key.help] for key in keys]


def stage_row() -> list[str]:
    """Return the table row of `stage`, which is no entry of recipe/keys.py."""
    stages = ", ".join(f"`{name}`" for name in (*STAGES, RTO))
    return ["`stage`", "", f"The stage: {stages}, or a registered one ([extend](extend.md))."]


def key_of(name: str, setting: str) -> str:
    """Return the recipe key that sets a hyperparameter of an objective."""
    objective = find_objective(name)
    if setting in objective.weight_settings:
        rows = {**HOST_KEYS, **KEYS}
        return next(key for key, row in rows.items() if row.weighs == (objective.weight, setting))
    keys = {hyperparameter: key for key, hyperparameter in hyperparameter_keys(name).items()}
    return {"weighting": "treg_weighting", "alpha": "treg_alpha", **keys}.get(setting, f"select_{setting}")


def objective_rows() -> list[list[str]]:
    """Return every objective: the stage that uses it by default, token scorer, token weight, hyperparameters."""
    stages = {objective: stage for stage, objective in STAGES.items()}
    rows = []
    for name in BUILT_IN:
        objective = find_objective(name)
        settings = {key_of(name, what): setting.default for what, setting in objective.settings.items()}
        for side in ("chosen", "rejected"):
            if f"select_{side}_ratio" in settings:
                settings[f"{side}_select_ratio"] = settings.pop(f"select_{side}_ratio")
        values = ", ".join(f"`{key}` {str(value).lower()}" for key, value in settings.items())
        stage = f"`{stages[name]}`" if name in stages else ""
        rows.append([f"`{name}`", stage, f"`{objective.scorer}`", f"`{objective.weight}`", values])
    return rows


def keys_page() -> str:
    """Return the text of keys.md."""
    columns = ("key", "default", "meaning")
    return (
        _HEAD
        + table(columns, [stage_row(), *key_rows(KEYS.values())])
        + "\n## Keys of the host that sepo's stages read\n\nThey have the host's meaning.\n\n"
        + table(columns, [*key_rows(HOST_KEYS.values()), *LEFTOVERS])
        + "\n## Stage `rto`\n\n"
        + "The stage has these keys, those of [judges](#keys-of-judges), of the oracle (without `oracles`, "
        + "`oracle_checkpoints`, `oracle_base_checkpoints` and `oracle_scores`) and of the reference, "
        + "`token_scorer`, `select_ratio`, `select_rule`, `score_batch_tokens` and `head_chunk_tokens` "
        + "([RTO](methods/rto.md)).\n\n"
        + table(columns, key_rows(RTO_KEYS.values()))
        + "\n## Keys of `sepo pairs`\n\nThey are explained in [pairs](pairs.md), beside the [keys of "
        "judges](#keys-of-judges); training does not read them.\n\n"
        + table(columns, key_rows(PAIRS_KEYS.values()))
        + "\n## Keys of `sepo pipeline`\n\n"
        + table(columns, [*SECTIONS, *key_rows([*PIPELINE_KEYS.values(), *ORACLE_KEYS.values()])])
        + "\n## Keys of `sepo compare`\n\nThey are explained in [compare](compare.md).\n\n"
        + table(columns, [*VARIANTS, *key_rows(COMPARE_KEYS.values())])
        + "\n## Keys of judges\n\nThey say how sampled responses are judged ([rewards](judges.md#rewards)).\n\n"
        + table(columns, key_rows(REWARD_KEYS.values()))
        + "\n## Objectives\n\nEach can be used in any sepo stage. Definitions: [objectives](methods/objectives.md).\n\n"
        + table(_OBJECTIVE_COLUMNS, objective_rows())
    )


def eval_page() -> str:
    """Return the text of eval_json.md."""
    rows = [[f"`{path}`", meaning] for path, meaning in FIELDS.items()]
    return _EVAL_HEAD + table(("field", "meaning"), rows)


def demo_screen(*, colors: bool) -> Console:
    """Return a console with the results of the recorded run of `sepo demo`."""
    recorded = json.loads((RESULTS / "demo-smollm2.json").read_text(encoding="utf-8"))
    console = Console(
        file=io.StringIO(), width=116, record=True, highlight=False, force_terminal=colors, no_color=not colors
    )
    print_results(console, recorded)
    return console


def demo_picture() -> str:
    """Return demo.svg: the last screen of `sepo demo` with its colors."""
    return demo_screen(colors=True).export_svg(title="make demo", unique_id="demo")


def measured(pattern: str) -> list[dict[str, Any]]:
    """Return the results of a benchmark, sorted by model and data set."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in RESULTS.glob(pattern)]
    order = list(MEASURED_MODELS)
    return sorted(found, key=lambda one: (order.index(shape_of(one)), one["recipe"]["dataset"]))


def shape_of(result: dict[str, Any]) -> str:
    """Return the model of a result; those without a shape are older ones of SmolLM2."""
    return result["setting"].get("shape", "smollm2")


def where(result: dict[str, Any]) -> str:
    """Return the model and data set of a result."""
    return f"{MEASURED_MODELS[shape_of(result)]}, `{result['recipe']['dataset']}`"


def machine_of(result: dict[str, Any]) -> str:
    """Return the processor, threads and library versions of a result."""
    machine, versions = result["machine"], result["versions"]
    family, model = machine.get("processor_family_model", (None, None))
    exact = f" (family {family}, model {model})" if family else ""
    build = machine.get("torch", {"version": versions["torch"]})
    capability = f" ({build['cpu_capability']})" if "cpu_capability" in build else ""
    beside = next((entry["versions"] for entry in result["contenders"] if "versions" in entry), None)
    trl = f"; TRL {beside['trl']} with transformers {beside['transformers']}" if beside else ""
    return (
        f"{machine['processor']}{exact}, {machine['threads']} threads, torch {build['version']}{capability}, "
        f"LLaMA-Factory {versions['llamafactory']} with transformers {versions['transformers']}{trl}"
    )


def speed_rows(results: Iterable[dict[str, Any]]) -> list[list[str]]:
    """Return the cells of the contenders of results of train_step.py."""
    rows = []
    for result in results:
        entries = {entry["name"]: entry for entry in result["contenders"]}
        for name, label in MEASURED_METHODS.items():
            if name in entries:
                one = entries[name]
                rows.append(
                    [
                        where(result),
                        label,
                        f"{one['pairs_per_second']:.3f}",
                        f"{one['ratio_to_host_dpo']:.2f}",
                        size(one["peak_memory_bytes"]),
                        size(one.get("peak_memory_with_weights_bytes")),
                    ]
                )
    return rows


def cost_rows(results: Iterable[dict[str, Any]]) -> list[list[str]]:
    """Return the cells of results of whole_cost.py."""
    return [
        [
            where(result),
            MEASURED_METHODS[baseline],
            *(f"{cost[part]:,.0f} s" for part in ("oracle", "scoring", "sepo", "dpo")),
            str(cost["paid_after_runs"] or "never"),
        ]
        for result in results
        for baseline, cost in result["costs"].items()
    ]


def start_up_rows(result: dict[str, Any]) -> list[list[str]]:
    """Return the cells of a result of start_up.py."""
    rows = []
    for name, title in result["titles"].items():
        seconds = result["cases"][name]["median"]
        parts = (f"{seconds[part]:.1f} s" for part in ("process", "imports", "own"))
        rows.append([title, *parts, f"{seconds['own_cpu']:.1f} s"])
    return rows


def start_up_block() -> str:
    """Return the figures of start_up.py, or that none are recorded."""
    files = sorted(RESULTS.glob("start_up-*.json"))
    if not files:
        return "No figures are recorded.\n"
    result = json.loads(files[0].read_text(encoding="utf-8"))
    columns = ("", "process", "imports", "own work", "own work, CPU")
    return f"Measured on {machine_of({**result, 'contenders': []})}.\n\n{table(columns, start_up_rows(result))}"


def figures_page() -> str:
    """Return memory_and_speed.md with the figures of benchmarks/results."""
    steps, costs = measured("train_step-*.json"), measured("whole_cost-*.json")
    machines = sorted({machine_of(result) for result in [*steps, *costs]})
    setting = costs[0]["setting"]
    columns = ("model, data", "step", "pairs/s", "speed, 1: host's DPO", "memory of a step", "with the weights")
    parts = (
        "model, data",
        "against",
        "oracle, once",
        "scores, once",
        "a policy, SePO",
        "a policy, DPO",
        "pays from run",
    )
    block = "\n".join(
        [
            "<!-- from benchmarks/results: make docs -->",
            *(f"Measured on {machine}." for machine in machines),
            "",
            table(columns, speed_rows(steps)),
            f"For {setting['pairs']:,} pairs, an oracle trained on {setting['share']:.0%} of them for "
            f"{setting['oracle_epochs']:g} epoch, and one epoch of each policy:",
            "",
            table(parts, cost_rows(costs)) + "<!-- end -->",
        ]
    )
    text = (HERE / "memory_and_speed.md").read_text(encoding="utf-8")
    text = re.sub(r"<!-- from benchmarks/results: make docs -->.*?<!-- end -->", lambda _: block, text, flags=re.DOTALL)
    started = f"<!-- from benchmarks/results/start_up: make docs -->\n{start_up_block()}<!-- end -->"
    pattern = r"<!-- from benchmarks/results/start_up: make docs -->.*?<!-- end -->"
    return re.sub(pattern, lambda _: started, text, flags=re.DOTALL)


def readme() -> str:
    """Return README.md with the transcript of the recorded run of `sepo demo`."""
    lines = [line.rstrip() for line in demo_screen(colors=False).export_text().splitlines()]
    return _filled(HERE.parent / "README.md", ["```text", *lines, "```"])


def pairs_and_rto_page() -> str:
    """Return pairs_and_rto.md with the results of the recorded run of benchmarks/pairs_and_rto.py."""
    benchmarks = HERE.parent / "benchmarks"
    recorded = json.loads((benchmarks / "results" / "pairs_and_rto-x86_64.json").read_text(encoding="utf-8"))
    report = runpy.run_path(str(benchmarks / "weekdays" / "report.py"))
    return _filled(HERE / "pairs_and_rto.md", report["table"](recorded).splitlines())


def claims_page(page: str, results: Mapping[str, Callable[[Mapping], Mapping[str, Iterable[str]]]]) -> str:
    """Return a page with the tables of recorded results of benchmarks/claims.

    Args:
        page: the page's file name.
        results: by result file, the function that returns its tables by name.
    """
    text = (HERE / page).read_text(encoding="utf-8")
    for result, blocks in results.items():
        recorded = json.loads((CLAIMS / "results" / result).read_text(encoding="utf-8"))
        for name, lines in blocks(recorded).items():
            start = f"<!-- {name}, from the recorded run: make docs -->"
            block = "\n".join([start, *lines, "<!-- end -->"])
            text = re.sub(f"{start}.*?<!-- end -->", lambda _, block=block: block, text, flags=re.DOTALL)
    return text


def claims_report() -> dict[str, Any]:
    """Return what benchmarks/claims/report.py defines."""
    return runpy.run_path(str(CLAIMS / "report.py"))


def credit_estimators_page() -> str:
    """Return credit_estimators.md with the tables of the recorded run of benchmarks/claims/credit_world.py."""
    return claims_page("credit_estimators.md", {"credit_world.json": claims_report()["credit_blocks"]})


def evidence_page() -> str:
    """Return evidence.md with the tables of the recorded runs of benchmarks/claims."""
    return claims_page("evidence.md", claims_report()["EVIDENCE"])


def oracle_page() -> str:
    """Return train_an_oracle.md with the recorded measurements of benchmarks/claims/oracle_smollm2.py."""
    recorded = json.loads((CLAIMS / "results" / "oracle_smollm2.json").read_text(encoding="utf-8"))
    tables = runpy.run_path(str(CLAIMS / "oracle_tables.py"))
    lines = [tables["table"](recorded), tables["correlation_table"](recorded)]
    return _filled(HERE / "train_an_oracle.md", "\n".join(lines).splitlines())


def _filled(page: Path, lines: Iterable[str]) -> str:
    """Return the text of a page with other lines in its block."""
    block = "\n".join(["<!-- from the recorded run: make docs -->", *lines, "<!-- end -->"])
    text = page.read_text(encoding="utf-8")
    return re.sub(r"<!-- from the recorded run: make docs -->.*?<!-- end -->", lambda _: block, text, flags=re.DOTALL)


def credit_page() -> str:
    """Return credit.md with the table of the leaderboard."""
    columns, rows = leaderboard.table(leaderboard.read(HERE.parent / "benchmarks" / "credit"), [*SETS, *BUILT_IN_SETS])
    block = f"<!-- from benchmarks/credit: make docs -->\n{table(columns, rows)}<!-- end -->"
    text = (HERE / "credit.md").read_text(encoding="utf-8")
    return re.sub(r"<!-- from benchmarks/credit: make docs -->.*?<!-- end -->", lambda _: block, text, flags=re.DOTALL)


PAGES = {
    "keys.md": keys_page,
    "eval_json.md": eval_page,
    "pairs_and_rto.md": pairs_and_rto_page,
    "credit_estimators.md": credit_estimators_page,
    "evidence.md": evidence_page,
    "demo.svg": demo_picture,
    "memory_and_speed.md": figures_page,
    "../README.md": readme,
    "credit.md": credit_page,
    "train_an_oracle.md": oracle_page,
}

if __name__ == "__main__":
    for name, written in PAGES.items():
        (HERE / name).write_text(written(), encoding="utf-8")
        print(f"written: {HERE / name}")
