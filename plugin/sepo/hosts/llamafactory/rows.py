"""Rows of data sets in the host's columns, with the reason of every row that is left out.

See ../PATCHES.md for the names that are rebound.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from datasets import Dataset
from llamafactory.data import converter, loader
from llamafactory.data.converter import AlpacaDatasetConverter, DatasetConverter
from llamafactory.data.parser import DatasetAttr

from sepo import __version__
from sepo.errors import SepoError
from sepo.hosts.llamafactory.data_files import mixed_types
from sepo.hosts.llamafactory.messages import MESSAGES, MessageColumns, MessagesConverter, message_columns, register
from sepo.text.messages import UnreadableRow, kind_of, tools_text
from sepo.training.row_losses import Event, RowLosses

logger = logging.getLogger(__name__)

LEFT_OUT = "_sepo_left_out"
"""Column of aligned rows: the reason why a row is left out, or the empty string."""
_UNUSED = "_sepo_unused"
"""Column of aligned rows: what of a row is not used, ``_EMPTY``, or the empty string."""
_EMPTY = "the prompt is empty"
THOUGHT_REMOVED = "enable_thinking: false removes the thought of a response"

_READ_AS_MESSAGES = (MESSAGES, "openai", "sharegpt")
_NOTHING = {"role": "assistant", "content": ""}
_UNNAMED = (DatasetAttr.messages, DatasetAttr.prompt)
"""Columns of an entry that names none."""
_LOOKED_AT = 20
"""Rows that are looked at for the format of the responses."""
_EVALUATION = re.compile(r"^validation_?")


@contextlib.contextmanager
def counted_rows(losses: RowLosses, *, template: Any = None) -> Iterator[None]:
    """Make the host's loader leave out rows that cannot be trained on inside the context, and count them by reason.

    Rows of the formats `openai` and `sharegpt` are read as `messages` (`MessagesConverter`): a row that the host
    converts correctly is converted to the same columns, without the system prompt that its converter for `openai` adds.
    Rows are left out after the validation split, where the host leaves out the rows that it cannot read, so that the
    split does not depend on them.

    Args:
        losses: gets the numbers of rows.
        template: the run's template, with which rows with tools are tried; None for the one that the recipe names.

    Raises:
        SepoError: inside the context: a file cannot be read, a column is missing, or no row of a data set is left.
    """
    with aligned_rows(template=template):
        split = loader.split_dataset

        def kept(*args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            train, evaluation = split(*args, **kwargs)
            return (
                {name: kept_rows(rows, losses, name=name) for name, rows in train.items()},
                {name: kept_rows(rows, losses, name=_EVALUATION.sub("eval ", name).strip())
                 for name, rows in evaluation.items()},
            )  # fmt: skip

        loader.split_dataset = kept
        try:
            yield
        finally:
            loader.split_dataset = split


@contextlib.contextmanager
def aligned_rows(*, template: Any = None, responses: int = 2) -> Iterator[None]:
    """Make the host's loader mark rows that cannot be trained on inside the context; see ``counted_rows``.

    The marked rows are to be removed with ``kept_rows``.

    Args:
        template: as ``counted_rows``.
        responses: number of responses that a row must have: 2, or 0 if only the prompts are read.
    """
    register()
    align, load, converter_of = loader.align_dataset, loader.load_dataset, converter.get_dataset_converter

    def aligned(dataset: Dataset, dataset_attr: Any, data_args: Any, training_args: Any) -> Dataset:
        check_entry(
            dataset_attr, list(dataset.select(range(min(len(dataset), _LOOKED_AT)))), present=dataset.column_names
        )
        known = align(dataset, dataset_attr, data_args, training_args)
        if not any(reason == "" for reason in known[LEFT_OUT]):
            raise SepoError(f"dataset '{dataset_attr}': no row can be used: {_counts(known[LEFT_OUT])}.")
        return known

    def checked(name: str, dataset_attr: Any, data_args: Any) -> CheckedConverter:
        if name in _READ_AS_MESSAGES:
            host: DatasetConverter = MessagesConverter(dataset_attr, data_args, template)
        else:
            host = converter_of(name, dataset_attr, data_args)
        return CheckedConverter(dataset_attr, data_args, host, template, responses)

    loader.align_dataset, loader.load_dataset = aligned, _loading(load)
    converter.get_dataset_converter = checked
    try:
        yield
    finally:
        loader.align_dataset, loader.load_dataset = align, load
        converter.get_dataset_converter = converter_of


@dataclass
class CheckedConverter(DatasetConverter):
    """A converter that marks rows that cannot be trained on in the column ``LEFT_OUT``, whatever their content.

    Args:
        dataset_attr: the entry in dataset_info.json.
        data_args: the host's data arguments.
        host: the converter of the data set's format.
        template: the run's template, or None.
        responses: number of responses that a row must have.
    """

    host: DatasetConverter
    template: Any = None
    responses: int = 2
    sepo_version: str = __version__  # part of the fingerprint by which the host's cache is found

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        """Convert a row."""
        try:
            row, unused = self._converted(example)
            self._check(row)
        except UnreadableRow as error:
            # Not empty lists: a column's type is taken from its first rows.
            row = {
                "_prompt": [{"role": "user", "content": next(_texts(dict(example)), "")}],
                "_response": [_NOTHING, _NOTHING],
            }
            row |= {"_system": "", "_tools": "", "_images": None, "_videos": None, "_audios": None}
            return {**row, LEFT_OUT: str(error), _UNUSED: ""}
        empty = not row["_prompt"][-1]["content"].strip()
        removed = THOUGHT_REMOVED if self._removes_thought(row) else ""
        return {**row, LEFT_OUT: "", _UNUSED: unused or removed or (_EMPTY if empty else "")}

    def _converted(self, example: dict[str, Any]) -> tuple[dict[str, Any], str]:
        if isinstance(self.host, MessagesConverter):
            return self.host.converted(example)
        if isinstance(self.host, AlpacaDatasetConverter):
            _check_texts(example, self.dataset_attr)
            row = self.host(example)
        else:
            try:
                row = self.host(example)
            except Exception as error:  # of any converter that is registered with the host
                kind = self.dataset_attr.formatting
                raise UnreadableRow(f"the converter '{kind}' raises {type(error).__name__}") from error
        if not isinstance(row["_system"], str | None):
            raise UnreadableRow(f"the system prompt is {kind_of(row['_system'])}; text is expected")
        return {**row, "_system": row["_system"] or "", "_tools": tools_text(row["_tools"])}, ""

    def _removes_thought(self, row: Mapping[str, Any]) -> bool:
        """Return whether the template removes a thought from a response, as those of reasoning models may."""
        if self.template is None or self.template.enable_thinking is not False:
            return False
        texts = [turn["content"] for turn in row["_response"][:2]]
        return any(self.template.remove_thought(text) != text.lstrip("\n") for text in texts)

    def _check(self, row: Mapping[str, Any]) -> None:
        turns = [*row["_prompt"], *row["_response"]]
        if not row["_prompt"] or len(row["_response"]) < self.responses:
            raise UnreadableRow("it has no prompt with two responses" if self.responses else "it has no prompt")
        if any(not isinstance(turn["content"], str) for turn in turns):
            raise UnreadableRow("a turn has no text")
        if self.template is not None and (row["_tools"] or any(turn["role"] == "function" for turn in turns)):
            _try_template(self.template, row)


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts in a row, without the names of roles."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if name not in ("role", "from", "type", "id"):
                yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _check_texts(example: Mapping[str, Any], attributes: DatasetAttr) -> None:
    """Raise if a field of a row in the format `alpaca` is not text."""
    for column in (attributes.prompt, attributes.query):
        if column and not isinstance(example[column], str | None):
            raise UnreadableRow(f"{column} is {kind_of(example[column])}; text is expected")
    for column in (attributes.chosen, attributes.rejected) if attributes.ranking else ():
        if not isinstance(example[column], str):
            raise UnreadableRow(f"{column} is {kind_of(example[column])}; text is expected")
    turns = example[attributes.history] or [] if attributes.history else []
    if not isinstance(turns, list) or any(
        not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair)
        for pair in turns
    ):
        raise UnreadableRow(f"{attributes.history} is not a list of pairs of texts")


_NO_TOKENS = SimpleNamespace(
    bos_token_id=None, eos_token_id=None, encode=lambda *_, **__: [], convert_tokens_to_ids=lambda _: 0
)
"""Stands in for a tokenizer when only the text of a template is tried."""


def _try_template(template: Any, row: Mapping[str, Any]) -> None:
    """Raise if the template cannot write the tools or the tool calls of a row."""
    try:
        what = "tools"
        if row["_tools"]:
            template.format_tools.apply(content=row["_tools"])
        what = "tool calls"
        for response in row["_response"][:2]:
            template.encode_oneturn(_NO_TOKENS, [*row["_prompt"], response], row["_system"], row["_tools"])
    except Exception as error:  # the host's formatters raise what the content makes them raise
        raise UnreadableRow(f"the template cannot write its {what} ({type(error).__name__})") from error


def columns_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return all columns of some rows."""
    return list(dict.fromkeys(column for row in rows for column in row))


def check_entry(
    attributes: DatasetAttr, rows: Sequence[Mapping[str, Any]], *, present: Sequence[str], complete: bool = True
) -> None:
    """Raise if a data set is empty, lacks a column that its entry names, or has responses of another format.

    Args:
        attributes: the entry in dataset_info.json.
        rows: the first rows.
        present: the columns of the rows.
        complete: whether no other rows have further columns; if False, only the responses are looked for.

    Raises:
        SepoError: with what to change in the entry.
    """
    name, kind = str(attributes), attributes.formatting
    if not rows:
        raise SepoError(f"dataset '{name}' has no rows.")
    has = f"its columns are {', '.join(present)}"
    entry = "its entry in dataset_info.json"
    read = message_columns(attributes, present)
    responses = [read.chosen, read.rejected] if attributes.ranking else []
    lists = [column for column in responses if any(isinstance(row.get(column), list) for row in rows)]
    if kind != MESSAGES and lists and (kind == "alpaca" or read.prompt not in present):
        raise SepoError(
            f"dataset '{name}': {lists[0]} is a list of messages, which formatting '{kind}' does not read; set "
            f'"formatting": "{MESSAGES}" in {entry}.'
        )
    if kind != MESSAGES and attributes.ranking and (attributes.chosen is None or attributes.rejected is None):
        raise SepoError(
            f"dataset '{name}': {entry} does not name the columns of the responses, and {has}; add "
            '"columns": {"chosen": ..., "rejected": ...}.'
        )
    missing = [column for column in (_named(attributes, read) if complete else responses) if column not in present]
    if missing:
        raise SepoError(
            f"dataset '{name}' has no column {missing[0]}, which formatting '{kind}' reads, and {has}; name them under "
            f'"columns" in {entry}.'
        )


def _named(attributes: DatasetAttr, read: MessageColumns) -> list[str]:
    """Return the columns that are read, the responses first."""
    columns: list[str | None] = [read.chosen, read.rejected] if attributes.ranking else []
    if attributes.formatting == MESSAGES:
        columns += [name for name in (attributes.messages, attributes.prompt) if name not in _UNNAMED]
    elif attributes.formatting in _READ_AS_MESSAGES:
        columns += [read.prompt]
    elif attributes.formatting == "alpaca":
        columns += [attributes.prompt, attributes.query, attributes.history]
    if attributes.formatting != "openai":  # the host's converter does not need these two
        columns += [read.system, read.tools]
    columns += [attributes.images, attributes.videos, attributes.audios]
    return [column for column in columns if column]


def kept_rows(known: Dataset, losses: RowLosses, *, name: str) -> Dataset:
    """Return the rows that are not marked, without the marks, and add the numbers of the others to the losses.

    Args:
        known: aligned rows with their marks.
        losses: gets the numbers of rows.
        name: name of the data set in the log.

    Raises:
        SepoError: if no row is left.
    """
    losses.given(name, len(known))
    marks = known.select_columns([LEFT_OUT, _UNUSED])
    found: dict[tuple[Event, str], list[int]] = {}
    for start in range(0, len(marks), 1000):
        rows = marks[start : start + 1000]
        for offset, (reason, unused) in enumerate(zip(rows[LEFT_OUT], rows[_UNUSED], strict=True)):
            if reason or unused:
                mark: tuple[Event, str] = ("skipped", reason) if reason else ("changed", unused)
                found.setdefault(mark, []).append(start + offset)
    for (event, reason), indices in found.items():
        if reason == _EMPTY:
            logger.warning("%s: in %d rows the prompt is empty; they are used as given.", name, len(indices))
            continue
        losses.add(name, event, reason, len(indices), example=known[indices[0]]["_prompt"][0]["content"])
    left_out = sorted(index for (event, _), indices in found.items() if event == "skipped" for index in indices)
    if len(left_out) == len(known):
        raise SepoError(f"{name}: no row is left to train on: {_counts(known[LEFT_OUT])}.")
    kept = known.remove_columns([LEFT_OUT, _UNUSED])
    return kept.select(np.delete(np.arange(len(known)), left_out)) if left_out else kept


def _counts(reasons: Iterable[str]) -> str:
    return "; ".join(f"in {rows} rows {reason}" for reason, rows in Counter(reasons).most_common())


def _loading(load: Callable[..., Dataset]) -> Callable[..., Dataset]:
    """Wrap ``load_dataset`` to raise one line that names the files or the data set and the cause."""

    def loaded(*args: Any, **kwargs: Any) -> Dataset:
        try:
            return load(*args, **kwargs)
        except SepoError:
            raise
        except Exception as error:  # of any file format, hub or file system
            files = [str(file) for file in kwargs.get("data_files") or ()]
            what = ", ".join(files) or f"data set '{kwargs.get('path')}'"
            mixed = next(filter(None, (mixed_types(Path(file)) for file in files)), None)
            reason = (
                _cause(error)
                if mixed is None
                else f"{mixed}; a column has one type, so write objects that differ as JSON text"
            )
            raise SepoError(f"{what} cannot be loaded: {reason}.") from error

    return loaded


def _cause(error: BaseException) -> str:
    """Return the first line of the error at the beginning of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
