"""Writes pages of docs/ from the code: `make docs`. A test fails where a page is not what this writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path

from sepo.evaluation.fields import FIELDS, SCHEMA_VERSION
from sepo.objectives.presets import BUILT_IN, find_objective
from sepo.recipe.keys import SepoArguments
from sepo.recipe.resolve import HYPERPARAMETER_KEYS
from sepo.recipe.stages import STAGES

HERE = Path(__file__).parent

# Keys of the host that mean the same in our stages, and what our stages read in them.
HOST_KEYS = {
    "pref_beta": ("the objective's own", "β of every objective that has one (table below)."),
    "simpo_gamma": ("1.0", "SimPO's margin, for `simpo` and `simpo_reg`."),
    "dpo_label_smoothing": ("0; `robust_dpo` 0.1", "Label smoothing of `dpo` and `robust_dpo`."),
    "pref_ftx": ("0", "Weight of the mean negative log-likelihood over all chosen tokens, beside any objective."),
    "pref_loss": ("", "Only a leftover `sigmoid` is accepted: here `objective` decides."),
    "ref_model, ref_model_adapters, ref_model_quantization_bit": (
        "the policy at its start",
        "A reference model of its own, where the objective has one.",
    ),
}
PIPELINE_KEYS = {
    "base, oracle, policy": ("", "Sections with keys of that step alone; `base: false` trains no base."),
    "oracle_sample_ratio": ("1.0", "Share of the pairs for base and oracle, drawn with `seed`, in (0, 1]."),
    "base_dataset, base_dataset_dir": ("the chosen answers", "An SFT data set for the base."),
}

_HEAD = """# Keys

Beside everything that LLaMA-Factory knows. An unknown key is an error that names the nearest known one. Set a key to
nothing (`key: null`) and it counts as absent. This page is written from the code (`make docs`).

"""


_EVAL_HEAD = f"""# eval.json

What `sepo eval` writes, field by field; `*` is any name. Schema {SCHEMA_VERSION}: it changes when a key goes or means
something else; new keys do not change it. An *estimate* is `{{"value": ..., "low": ..., "high": ...}}`: a number and
its 95 % interval, whose ends are null where one row alone was there. No number is NaN. This page is written from the
code (`make docs`).

"""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        cells = [cell.replace("|", "\\|") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def named(keys: str) -> str:
    """``a, b`` as code."""
    return ", ".join(f"`{key.strip()}`" for key in keys.split(","))


def our_rows() -> list[list[str]]:
    """`stage` and every key of ours."""
    rows = [["`stage`", "", f"{named(', '.join(STAGES))}, or your own ([extend](extend.md)).".replace(", or", " or")]]
    for key in fields(SepoArguments):
        default = key.metadata["default"]
        if not default and key.default not in (None, MISSING):
            default = str(key.default).lower()
        rows.append([f"`{key.name}`", default, key.metadata["help"]])
    return rows


def key_of(objective: str, setting: str) -> str:
    """The recipe key that sets an objective's hyperparameter."""
    for key, name, owners in HYPERPARAMETER_KEYS:
        if name == setting and (owners is None or objective in owners):
            return key
    return {"weighting": "treg_weighting", "alpha": "treg_alpha"}.get(setting, f"select_{setting}")


def objective_rows() -> list[list[str]]:
    """Every objective with the stage that has it by default, its token scorer and its hyperparameters."""
    stages = {objective: stage for stage, objective in STAGES.items()}
    rows = []
    for name in BUILT_IN:
        objective = find_objective(name)
        settings = {key_of(name, what): setting.default for what, setting in objective.settings.items()}
        for side in ("chosen", "rejected"):
            if f"select_{side}_ratio" in settings:
                settings[f"{side}_select_ratio"] = settings.pop(f"select_{side}_ratio")
        values = ", ".join(f"`{key}` {str(value).lower()}" for key, value in settings.items())
        rows.append([f"`{name}`", f"`{stages[name]}`" if name in stages else "", f"`{objective.scorer}`", values])
    return rows


def keys_page() -> str:
    """keys.md."""
    host = [[named(keys), *what] for keys, what in HOST_KEYS.items()]
    pipeline = [[named(keys), *what] for keys, what in PIPELINE_KEYS.items()]
    columns = ("key", "default", "meaning")
    return (
        _HEAD
        + table(columns, our_rows())
        + "\n## Keys of the host that our stages read\n\nTheir meaning is the host's.\n\n"
        + table(columns, host)
        + "\n## Keys of `sepo pipeline`\n\n"
        + table(columns, pipeline)
        + "\n## Objectives\n\nAny of them in any of our stages. What they are: [objectives](methods/objectives.md).\n\n"
        + table(("objective", "default of stage", "own token scorer", "keys and their defaults"), objective_rows())
    )


def eval_page() -> str:
    """eval_json.md."""
    rows = [[f"`{path}`", meaning] for path, meaning in FIELDS.items()]
    return _EVAL_HEAD + table(("field", "meaning"), rows)


PAGES = {"keys.md": keys_page, "eval_json.md": eval_page}

if __name__ == "__main__":
    for name, written in PAGES.items():
        (HERE / name).write_text(written(), encoding="utf-8")
        print(f"written: {HERE / name}")
