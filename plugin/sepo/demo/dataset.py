"""The demonstration's preference pairs, as a data set directory of LLaMA-Factory.

The pairs are made by ``demo_pairs`` (beside this package in the repository) and ship as JSON.

``answers_pairs`` are the model's own responses to generated questions, a wrong one against a right one;
``answers_heldout`` and ``answers_unseen`` are other questions, of the same kinds and of other kinds. Each row has its
``expected`` answer and its ``domain``. ``answers_chosen`` are the chosen responses of the pairs, for SFT.

In the other pairs, rejected responses are the chosen ones with one to three spans exchanged for wrong values; the spans
are recorded. ``demo_pairs`` and ``demo_heldout`` have obvious errors, ``fluent_pairs`` and ``fluent_heldout`` fluent
ones.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from sepo.errors import SepoError
from sepo.files import write_whole

NAMES = ("demo_pairs", "demo_heldout", "fluent_pairs", "fluent_heldout")
"""The data sets whose errors are known."""

ANSWERS = ("answers_pairs", "answers_heldout", "answers_unseen")
"""The data sets of questions with an expected answer."""

_CHOSEN = "answers_chosen"

SHIPPED = resources.files("sepo.demo").joinpath("data")
"""Where their files ship."""


def write_dataset(directory: Path) -> Path:
    """Write the data sets and ``dataset_info.json`` into a directory.

    In a recipe: ``dataset_dir:`` this directory, ``dataset: answers_pairs``, ``eval_dataset: answers_heldout``. Each
    file appears whole or not at all.

    Args:
        directory: created if absent; files of these names in it are replaced.

    Returns:
        ``directory``.

    Raises:
        SepoError: ``directory`` holds a ``dataset_info.json`` that lists other data sets.
    """
    directory = Path(directory)
    _refuse_other_datasets(directory / "dataset_info.json")
    directory.mkdir(parents=True, exist_ok=True)
    for name in (*(f"{name}.json" for name in (*NAMES, *ANSWERS)), "dataset_info.json"):
        write_whole(directory / name, SHIPPED.joinpath(name).read_bytes())
    return directory


def dataset_info() -> dict[str, dict[str, object]]:
    """Return the contents of ``dataset_info.json``: the entry of each data set."""
    known = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    answers = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    return {
        **{name: {"file_name": f"{name}.json", "ranking": True, "formatting": "sharegpt", "columns": known}
           for name in NAMES},
        **{name: {"file_name": f"{name}.json", "ranking": True, "columns": answers} for name in ANSWERS},
        _CHOSEN: {"file_name": "answers_pairs.json", "columns": {"prompt": "instruction", "response": "chosen"}},
    }  # fmt: skip


def _refuse_other_datasets(path: Path) -> None:
    if not path.exists():
        return
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        others = sorted(set(listed) - set(dataset_info()))
    except (ValueError, TypeError):
        others = ["unreadable content"]
    if others:
        raise SepoError(
            f"{path} already lists other data sets ({', '.join(others[:3])}), which the demo would overwrite. "
            "Name another directory."
        )
