"""Writes pages of docs/ from the code: `make docs`. A test fails where a page is not what this writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from sepo.evaluation.fields import FIELDS, SCHEMA_VERSION
from sepo.objectives.presets import BUILT_IN, find_objective
from sepo.recipe.keys import HOST_KEYS, KEYS, PIPELINE_KEYS, Key, hyperparameter_keys
from sepo.recipe.stages import STAGES

HERE = Path(__file__).parent

# What a row of a key cannot hold: keys that only a recipe's host reads, and sections.
LEFTOVERS = [["`pref_loss`", "", "Only a leftover `sigmoid` is accepted: here `objective` decides."]]
SECTIONS = [["`base`, `oracle`, `policy`", "", "Sections with keys of that step alone; `base: false` trains no base."]]

_HEAD = """# Keys

Beside everything that LLaMA-Factory knows. An unknown key is an error that names the nearest known one. Set a key to
nothing (`key: null`) and it counts as absent. This page is written from the code (`make docs`).

"""


_EVAL_HEAD = f"""# eval.json

What `sepo eval` writes, field by field; `*` is any name. Schema {SCHEMA_VERSION}: it changes if a key is removed or
changes its meaning, not if keys are added. An *estimate* is `{{"value": ..., "low": ..., "high": ...}}`: a number and
its 95 % interval, whose ends are null with a single row. No number is NaN. This page is generated from the code
(`make docs`).

"""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        cells = [cell.replace("|", "\\|") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def key_rows(keys: Iterable[Key]) -> list[list[str]]:
    """Rows of keys as a table has them."""
    return [[f"`{key.name}`", key.default_text, key.help] for key in keys]


def stage_row() -> list[str]:
    """`stage`, which names what the other keys belong to."""
    return ["`stage`", "", f"{', '.join(f'`{name}`' for name in STAGES)} or your own ([extend](extend.md))."]


def key_of(objective: str, setting: str) -> str:
    """The recipe key that sets an objective's hyperparameter."""
    keys = {name: key for key, name in hyperparameter_keys(objective).items()}
    return {"weighting": "treg_weighting", "alpha": "treg_alpha", **keys}.get(setting, f"select_{setting}")


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
    columns = ("key", "default", "meaning")
    return (
        _HEAD
        + table(columns, [stage_row(), *key_rows(KEYS.values())])
        + "\n## Keys of the host that our stages read\n\nTheir meaning is the host's.\n\n"
        + table(columns, [*key_rows(HOST_KEYS.values()), *LEFTOVERS])
        + "\n## Keys of `sepo pipeline`\n\n"
        + table(columns, [*SECTIONS, *key_rows(PIPELINE_KEYS.values())])
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
