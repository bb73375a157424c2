"""`sepo scores export recipe.yaml`: a recipe's rows with their scores, as a data set in the host's sharegpt format."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset

from sepo.errors import SepoError
from sepo.hosts.llamafactory.pipeline import read_pipeline
from sepo.hosts.llamafactory.recipe import get_train_args, refuse_without_scoring, settings_of
from sepo.hosts.llamafactory.workflow import prepared_data
from sepo.score_store.export import write_rows
from sepo.selection import SIDES
from sepo.text.conversations import CONVERSATION
from sepo.text.token_texts import TokenTexts
from sepo.training.float_columns import REF_COLUMNS
from sepo.training.reward_columns import REWARD_COLUMNS
from sepo.training.selection_columns import IGNORE_INDEX, SCORE_COLUMNS
from sepo.training.trainable_rows import each_dataset

logger = logging.getLogger(__name__)

_ROWS = 256
_SPEAKERS = {"user": "human", "assistant": "gpt", "observation": "observation", "function": "function_call"}
_STORED = (SCORE_COLUMNS, REWARD_COLUMNS, REF_COLUMNS)


def export_recipe(recipe_file: Path, overrides: Sequence[str], *, output: Path, part: str) -> int:
    """Write one of a recipe's data sets with its stored scores; nothing is scored here.

    Each row has ``conversations``, ``system``, ``tools``, ``chosen`` and ``rejected`` as in the host's sharegpt
    format, and per side ``*_tokens`` (texts), ``*_token_ids``, ``*_offsets`` ([start, end) in characters of the
    response, empty outside it) and ``*_scores``, one number per token of the response and its end of turn.

    Args:
        recipe_file: a recipe whose rows were scored.
        overrides: ``key=value`` words.
        output: the file to write, from ``checked_output``.
        part: ``train``, ``eval`` or ``eval NAME``.

    Returns:
        Number of rows written.

    Raises:
        SepoError: the recipe is invalid or has no scores, some rows are not scored yet, there is no such part, or the
            file cannot be written.
    """
    recipe = read_pipeline(recipe_file, overrides)
    # Engines need several processes, and a tokenized row has no text.
    unscored = ("deepspeed", "fsdp", "tokenized_path")
    model_args, data_args, training_args, finetuning_args, _ = get_train_args(
        {name: value for name, value in recipe.items() if name not in unscored}, score_only=True
    )
    settings = settings_of(finetuning_args)
    refuse_without_scoring(settings)
    assert settings is not None
    data = prepared_data(
        settings,
        model_args=model_args,
        data_args=data_args,
        training_args=training_args,
        find_only=True,
        keep_text=True,
    )
    parts: dict[str, Dataset] = {}
    each_dataset(data.datasets, lambda rows, name: parts.setdefault(name, rows))
    if part not in parts:
        raise SepoError(f"--part is {part}, but this recipe has {', '.join(parts)}; use one of these.")
    texts = TokenTexts(data.tokenizer)
    columns = [pair for pair in _STORED if set(pair) <= set(parts[part].column_names)]
    return write_rows(_batches(parts[part], texts, columns), output, schema=_schema(columns))


def _schema(columns: Sequence[tuple[str, str]]) -> pa.Schema:
    turn = pa.struct([("from", pa.string()), ("value", pa.string())])
    fields: list[tuple[str, pa.DataType]] = [("conversations", pa.list_(turn)), ("system", pa.string())]
    fields += [("tools", pa.string()), *((side, turn) for side in SIDES)]
    for side in SIDES:
        fields += [(f"{side}_tokens", pa.list_(pa.string())), (f"{side}_token_ids", pa.list_(pa.int64()))]
        fields += [(f"{side}_offsets", pa.list_(pa.list_(pa.int64())))]
    names = dict.fromkeys([*SCORE_COLUMNS, *(name for pair in columns for name in pair)])
    if columns == [REF_COLUMNS]:
        names = dict.fromkeys(REF_COLUMNS)
    return pa.schema([*fields, *((name, pa.list_(pa.float64())) for name in names)])


def _batches(dataset: Dataset, texts: TokenTexts, columns: Sequence[tuple[str, str]]) -> Iterator[list[dict[str, Any]]]:
    unplaced = 0
    for start in range(0, len(dataset), _ROWS):
        rows = dataset[start : start + _ROWS]
        batch = []
        for index in range(len(rows[CONVERSATION])):
            row = {name: values[index] for name, values in rows.items()}
            batch.append(_exported(row, texts, columns))
            unplaced += sum(batch[-1][f"{side}_offsets"] is None for side in SIDES)
        yield batch
    if unplaced:
        logger.warning("the tokens of %d responses do not decode to their text: no character offsets.", unplaced)


def _exported(row: dict[str, Any], texts: TokenTexts, columns: Sequence[tuple[str, str]]) -> dict[str, Any]:
    conversation = json.loads(row[CONVERSATION])
    made: dict[str, Any] = {
        "conversations": [{"from": _SPEAKERS[m["role"]], "value": m["content"]} for m in conversation["messages"]],
        "system": conversation["system"],
        "tools": conversation["tools"],
    }
    for side, response in zip(SIDES, conversation["answers"], strict=True):
        made[side] = {"from": "gpt", "value": response}
    for place, (side, response) in enumerate(zip(SIDES, conversation["answers"], strict=True)):
        ids = [label for label in row[f"{side}_labels"] if label != IGNORE_INDEX]
        made |= {
            f"{side}_tokens": texts.pieces(ids),
            f"{side}_token_ids": ids,
            f"{side}_offsets": offsets_in_answer(texts, ids, response),
        }
        for pair in columns:
            # The first token of a row has no predecessor, hence no score, and is never selected.
            numbers = [0.0] * (len(ids) - len(row[pair[place]])) + list(row[pair[place]])
            made[pair[place]] = numbers
            if pair == REWARD_COLUMNS and SCORE_COLUMNS not in columns:
                made[SCORE_COLUMNS[place]] = numbers
    return made


def offsets_in_answer(texts: TokenTexts, ids: Sequence[int], answer: str) -> list[list[int]] | None:
    """Locate each token of a response in its text; the response may be truncated.

    Args:
        texts: token texts of the tokenizer.
        ids: the response tokens that truncation kept, the end of turn included.
        answer: the whole text of the response.

    Returns:
        Characters [start, end) per token; None if the tokens do not decode to the beginning of the text.
    """
    found = texts.offsets(ids, answer)
    if found is None:
        left = texts.spelled(ids).rstrip("\ufffd")  # the last token may be an incomplete character
        found = texts.offsets(ids, left) if left and answer.startswith(left) else None
    return None if found is None else [list(place) for place in found]
