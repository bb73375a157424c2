"""Random sample of the pairs for training base and oracle, written as data sets in the host's format."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from llamafactory.data.data_utils import split_dataset
from llamafactory.data.loader import _get_merged_dataset
from llamafactory.data.template import TEMPLATES
from llamafactory.hparams import DataArguments, ModelArguments
from transformers import HfArgumentParser

from sepo.errors import SepoError
from sepo.files import write_whole
from sepo.hosts.llamafactory.rows import aligned_rows, kept_rows
from sepo.training.row_losses import RowLosses

PAIRS, ANSWERS = "oracle_pairs", "oracle_answers"
REVERSED_PAIRS = "oracle_pairs_reversed"
"""Data set of the pairs with chosen and rejected response exchanged; it reads the file of ``PAIRS``."""
REJECTED_ANSWERS = "oracle_answers_rejected"
"""Data set of the rejected responses of the pairs, for SFT, in the format of ``ANSWERS``."""
_ALL = {PAIRS, ANSWERS, REVERSED_PAIRS, REJECTED_ANSWERS}
_INFO = "dataset_info.json"
_TAGS = {"user": "human", "assistant": "gpt", "observation": "observation", "function": "function_call"}
_MEDIA = ("images", "videos", "audios")


def _parsed(kind: type, recipe: Mapping[str, Any]) -> Any:
    known = {item.name for item in fields(kind) if item.init}
    (parsed,) = HfArgumentParser([kind]).parse_dict({name: value for name, value in recipe.items() if name in known})
    return parsed


def training_rows(
    recipe: Mapping[str, Any],
    losses: RowLosses | None = None,
    *,
    ranking: bool = True,
    part: Literal["train", "eval"] = "train",
) -> Any:
    """Return the rows that the recipe trains on, in the host's columns, without the validation split; or that split.

    Args:
        recipe: keys and values of the policy's recipe.
        losses: gets the numbers of rows that are left out.
        ranking: whether its data sets have pairs; if not, only the prompts of the rows have to be complete.
        part: ``train``, or ``eval`` for the rows that ``val_size`` splits off.

    Returns:
        A data set with the host's columns ``_prompt``, ``_response``, ``_system``, ``_tools`` and the media.

    Raises:
        SepoError: a data set cannot be read, or has no usable row.
    """
    # No model is loaded here, but the host's arguments require a name.
    data_args, model_args = (
        _parsed(DataArguments, recipe),
        _parsed(ModelArguments, {**recipe, "model_name_or_path": "-"}),
    )
    seed = int(recipe.get("seed", 42))
    quiet = SimpleNamespace(seed=seed, local_process_index=0, dataloader_num_workers=0, should_log=False)
    with aligned_rows(template=TEMPLATES.get(data_args.template), responses=2 if ranking else 0):
        rows = _get_merged_dataset(data_args.dataset, model_args, data_args, quiet, stage="rm" if ranking else "sft")
    if data_args.eval_dataset is None:
        train, evaluation = split_dataset(rows, None, data_args, seed=seed)
        rows = train["train"] if part == "train" else evaluation["validation"]
    return kept_rows(rows, RowLosses() if losses is None else losses, name=part)


def _message(message: Mapping[str, str]) -> dict[str, str]:
    return {"from": _TAGS[message["role"]], "value": message["content"]}


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    media = {name: row[f"_{name}"] for name in _MEDIA if row.get(f"_{name}")}
    if any(not isinstance(item, str) for items in media.values() for item in items):
        raise SepoError(
            "the data set has media as objects; to write a sample, store them as files and give file names."
        )
    return {"conversations": [_message(turn) for turn in row["_prompt"]], "system": row["_system"] or "",
            "tools": row["_tools"] or "", **media}  # fmt: skip


def _write(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def declare_derived(name: str, folder: Path) -> None:
    """Declare a data set that is derived from the pairs of a sample, in its directory. Idempotent.

    Args:
        name: ``REVERSED_PAIRS`` or ``REJECTED_ANSWERS``; others are left as they are.
        folder: the directory, as ``write_sample`` writes it, also of an earlier version.

    Raises:
        SepoError: there is no sample in the directory.
    """
    derive = {REVERSED_PAIRS: _reversed_entry, REJECTED_ANSWERS: _rejected_entry}.get(name)
    if derive is None:
        return
    try:
        known = json.loads((folder / _INFO).read_text(encoding="utf-8"))
        entry = derive(known, folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SepoError(
            f"{folder / _INFO} does not declare the data set '{PAIRS}' of the step 'sample' ({type(error).__name__}); "
            "remove the record of this step, pipeline/sample.done.json, to draw it again."
        ) from error
    if known.get(name) != entry:
        _write(folder / _INFO, {**known, name: entry})


def _reversed_entry(known: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the entry of the pairs with exchanged responses, over the file of the pairs."""
    columns = known[PAIRS]["columns"]
    return {**known[PAIRS], "columns": {**columns, "chosen": columns["rejected"], "rejected": columns["chosen"]}}


def _rejected_entry(known: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write the rejected responses in the format of the chosen ones, and return their entry."""
    pairs, file = (
        json.loads((folder / known[PAIRS]["file_name"]).read_text(encoding="utf-8")),
        f"{REJECTED_ANSWERS}.json",
    )
    rows = [
        {
            **{name: value for name, value in row.items() if name not in ("chosen", "rejected")},
            "conversations": [*row["conversations"], row["rejected"]],
        }
        for row in pairs
    ]
    _write(folder / file, rows)
    return {**known[ANSWERS], "file_name": file}


def _refuse_other_datasets(path: Path) -> None:
    if not path.exists():
        return
    try:
        others = sorted(set(json.loads(path.read_text(encoding="utf-8"))) - _ALL)
    except ValueError:
        others = ["unreadable content"]
    if others:
        raise SepoError(f"{path} lists other data sets ({', '.join(others[:3])}); choose another output_dir.")


def write_sample(recipe: Mapping[str, Any], *, ratio: float, folder: Path, losses: RowLosses | None = None) -> int:
    """Write the sample S of SePO's Section 3.2 twice: as pairs for DPO, and as chosen responses for SFT (Eq. 23).

    Args:
        recipe: keys and values of the policy's recipe; its ``seed`` seeds the sample.
        ratio: share of the rows, in (0, 1].
        folder: directory for ``oracle_pairs.json``, ``oracle_answers.json`` and ``dataset_info.json``.
        losses: gets the numbers of rows that are left out.

    Returns:
        Number of rows in the sample.

    Raises:
        SepoError: there is no usable row, media are not file names, or the directory contains other data sets.
    """
    _refuse_other_datasets(folder / _INFO)
    rows = training_rows(recipe, losses)
    count = max(1, round(ratio * len(rows)))
    drawn = sorted(random.Random(int(recipe.get("seed", 42))).sample(range(len(rows)), count))
    pairs, responses = [], []
    for index in drawn:
        row = rows[index]
        plain, (chosen, rejected) = _row(row), (_message(response) for response in row["_response"][:2])
        pairs.append({**plain, "chosen": chosen, "rejected": rejected})
        responses.append({**plain, "conversations": [*plain["conversations"], chosen]})
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"messages": "conversations", "system": "system", "tools": "tools"}
    columns |= {name: name for name in _MEDIA if any(name in row for row in pairs)}
    _write(folder / f"{PAIRS}.json", pairs)
    _write(folder / f"{ANSWERS}.json", responses)
    ranked = {**columns, "chosen": "chosen", "rejected": "rejected"}
    _write(folder / _INFO, {
        PAIRS: {"file_name": f"{PAIRS}.json", "formatting": "sharegpt", "ranking": True, "columns": ranked},
        ANSWERS: {"file_name": f"{ANSWERS}.json", "formatting": "sharegpt", "columns": columns},
    })  # fmt: skip
    return count
