"""Rows of conversations as Axolotl loads them, with nothing lost (``messages.py``); rebound names: ../PATCHES.md."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset

from sepo import __version__
from sepo.errors import SepoError
from sepo.hosts.axolotl.conversations import check_types, conversation, is_conversation, template_text
from sepo.hosts.axolotl.messages import Columns, Row, Writer, read_row
from sepo.text.conversations import CONVERSATION
from sepo.text.messages import MessageReader, UnreadableRow, tools_text
from sepo.text.template_tokens import NO_TEMPLATE, TemplateTokens, template_tokens
from sepo.training.row_losses import RowLosses

LEFT_OUT = "sepo_left_out"
"""Column of loaded rows: the reason why a row is left out, or the empty string."""
UNWRITTEN = "sepo_unwritten"
"""Column of loaded rows: what of a row is not written, or the empty string."""

_THOUGHT = ("<think>", "</think>")
_DUMMY = "[[dummy_message]]"
"""Text of the user's turn before which Axolotl renders a response."""


@contextlib.contextmanager
def rows_read(cfg: Any, reader: tuple[str, str] | None, *, keep_spans: bool = False) -> Iterator[None]:
    """Make Axolotl read the rows of conversations as messages while it loads its pairs, and mark unreadable rows.

    A row of plain text is rendered by Axolotl's strategy. A row with tools, calls of tools, thoughts or responses of
    several messages, of which the strategy would lose a part, and in Axolotl 0.19 one whose response it loses, is
    rendered by the chat template as a whole conversation. The marks are to be removed with ``kept_rows``.

    Args:
        cfg: Axolotl's config.
        reader: the feature that needs the column ``CONVERSATION``; None if there is none.
        keep_spans: without a reader, still keep the conversations of rows that have one, to which the user's spans may
            have to be mapped.

    Raises:
        SepoError: If there is a reader and a data set has no conversations.
    """
    if reader is not None:
        check_types([*(cfg.datasets or []), *(cfg.test_datasets or [])], reader)
    keep = None if reader is None and not keep_spans else "spans" if reader is None else "whole"
    with loader_wrapped(partial(_reading, keep=keep), name="" if keep is None else f"-{keep}"):
        yield


@contextlib.contextmanager
def loader_wrapped(wrap: Callable[[Any, str, Any, int], Any], *, name: str) -> Iterator[None]:
    """Exchange the functions by which Axolotl reads rows while it loads its data sets.

    Args:
        wrap: takes the function of a prompt strategy of Axolotl, or a tuple of it and the options of ``Dataset.map``;
            its name (``type``); the config; and the index of the data set. Returns what is used in its place.
        name: added to the name of prepared rows, which Axolotl caches: rows that are read in another way need another.
    """
    from axolotl.utils.data import rl

    load, digest = rl.load_dpo, rl.generate_dataset_hash_from_config
    rl.load_dpo = lambda kind, cfg, dataset_idx=0: wrap(
        load(kind, cfg, dataset_idx=dataset_idx), kind, cfg, dataset_idx
    )
    rl.generate_dataset_hash_from_config = lambda *args, **kwargs: f"{digest(*args, **kwargs)}-sepo-{__version__}{name}"
    try:
        yield
    finally:
        rl.load_dpo, rl.generate_dataset_hash_from_config = load, digest


def _reading(loaded: Any, kind: str, cfg: Any, index: int, *, keep: str | None) -> Any:
    """Wrap the function of a prompt strategy of Axolotl, if its rows are conversations."""
    if loaded is None or not is_conversation(kind):
        return loaded
    function, more = loaded if isinstance(loaded, tuple) else (loaded, {})
    entry, whole = cfg["datasets"][index], kind.endswith("argilla_chat")
    columns = Columns.of(entry, whole=whole)

    def transform(sample: Mapping[str, Any], tokenizer: Any = None) -> dict[str, Any]:
        try:
            row = read_row(sample, columns)
            plain = _plain(function, sample, row, tokenizer)
            if plain is not None:
                kept = {} if keep is None else _kept(conversation(sample, rows=entry, whole=whole))
                return {**plain, LEFT_OUT: "", UNWRITTEN: "", **kept}
            writer = Writer(tokenizer, template_text(cfg, tokenizer))
            text, unwritten = writer.write(row)
            kept = {} if keep is None else _kept(_conversation(row, text, writer, as_written=keep == "whole"))
        except UnreadableRow as error:
            name = hashlib.sha256(repr(sorted(sample.items())).encode()).hexdigest()  # not a duplicate of another row
            text = {"prompt": name, "chosen": "a", "rejected": "b"}
            kept = {} if keep is None else {CONVERSATION: "{}"}
            return {**text, LEFT_OUT: str(error), UNWRITTEN: "", **kept}
        return {**text, LEFT_OUT: "", UNWRITTEN: "; ".join(unwritten), **kept}

    def batch(samples: Mapping[str, list[Any]], tokenizer: Any = None) -> dict[str, list[Any]]:
        made = [
            transform(dict(zip(samples, row, strict=True)), tokenizer) for row in zip(*samples.values(), strict=True)
        ]
        return {name: [row.get(name) for row in made] for name in made[0]}

    read = [column for column in columns if column is not None and column not in ("chosen_scores", "rejected_scores")]
    # Messages with different fields are a column of lists of JSON, a type that `datasets` would keep for the new texts;
    # it infers them anew in batches only.
    return batch, {**more, "remove_columns": read, "batched": True, "try_original_type": False}


def _plain(function: Callable[..., Any], sample: Mapping[str, Any], row: Row, tokenizer: Any) -> dict[str, Any] | None:
    """Return a row as Axolotl's strategy renders it, or None if that loses something."""
    if not row.plain:
        return None
    made: dict[str, Any] = function(sample, tokenizer=tokenizer)
    # 0.19 searches the rendered turn for the text of the response, and takes the last character of the turn if the
    # template has trimmed the text, or a dummy turn if the response is empty.
    lost = any(_DUMMY in made[side] or (len(made[side]) <= 1 and not made[side].isalnum()) for side in _SIDES)
    # It also loses the end of an empty thought that the template opens in the prompt.
    opened = made["prompt"].rstrip().endswith(_THOUGHT[0])
    lost = lost or (opened and any(_THOUGHT[1] not in made[side] for side in _SIDES))
    return None if lost else {name: made[name] for name in ("prompt", *_SIDES)}


_SIDES = ("chosen", "rejected")


def _kept(found: Mapping[str, Any]) -> dict[str, str]:
    return {CONVERSATION: json.dumps(found, ensure_ascii=False)}


def _conversation(row: Row, text: Mapping[str, str], writer: Writer, *, as_written: bool) -> dict[str, Any]:
    """Return the conversation of a row that is not of plain text.

    Args:
        row: the row.
        text: the row as written.
        writer: what has written it.
        as_written: whether the responses are those that the policy is trained on, with calls and thoughts; otherwise
            their content, to whose characters the user's spans refer.
    """
    system, turns = MessageReader().conversation(row.prompt, role="user", what="the prompt")
    sides = zip(_SIDES, (row.chosen, row.rejected), strict=True)
    answers = [writer.without_end(text[side]) if as_written else message["content"] for side, message in sides]
    return {"messages": turns, "answers": answers, "system": system or "", "tools": tools_text(row.tools)}


def kept_rows(dataset: Dataset, losses: RowLosses, *, name: str) -> Dataset:
    """Return the rows that are not marked, without the marks, and add the numbers of the others to the losses.

    Args:
        dataset: loaded rows.
        losses: gets the numbers of rows.
        name: name of the data set in the log.

    Raises:
        SepoError: If no row is left.
    """
    losses.given(name, len(dataset))
    if LEFT_OUT not in dataset.column_names:
        return dataset
    # Rows of data sets of another type have no marks.
    reasons = [reason or "" for reason in dataset[LEFT_OUT]]
    unwritten = [what or "" for what in dataset[UNWRITTEN]]
    for what, rows in Counter(filter(None, unwritten)).items():
        for part in what.split("; "):
            losses.add(name, "changed", part, rows, example=dataset[unwritten.index(what)]["prompt"])
    for reason, rows in Counter(filter(None, reasons)).items():
        losses.add(name, "skipped", reason, rows)
    kept = dataset.remove_columns([LEFT_OUT, UNWRITTEN])
    left_out = [index for index, reason in enumerate(reasons) if reason]
    if len(left_out) == len(dataset):
        counts = "; ".join(f"in {rows} rows {reason}" for reason, rows in Counter(reasons).most_common())
        raise SepoError(f"{name}: no row is left to train on: {counts}.")
    return kept.select(np.delete(np.arange(len(dataset)), left_out)) if left_out else kept


def written_by_template(cfg: Any, tokenizer: Any) -> TemplateTokens:
    """Return the tokens that the run's chat template writes into every response, for example an empty thought.

    Args:
        cfg: Axolotl's config.
        tokenizer: the policy's tokenizer.
    """
    if not any(is_conversation(item.get("type")) for item in cfg.datasets or []):
        return NO_TEMPLATE
    writer = Writer(tokenizer, template_text(cfg, tokenizer))

    def encode(text: str, **other: str) -> list[int]:
        answer = {"role": "assistant", "content": text}
        row = Row([{"role": "user", "content": "a"}], answer, {**answer, **other}, None, plain=True)
        written, _ = writer.write(row)
        prompt = tokenizer(written["prompt"])["input_ids"]
        whole = tokenizer(written["prompt"] + written["chosen"])["input_ids"]
        return list(whole[len(prompt) :])

    try:
        alone = template_tokens(encode, tokenizer)
        # If the other response has a thought, the prompt may end before what the template opens.
        beside = template_tokens(partial(encode, reasoning_content="a"), tokenizer)
    except UnreadableRow:  # a template that needs other turns
        return NO_TEMPLATE
    leading = sorted({*alone.leading, *beside.leading}, key=len, reverse=True)
    return replace(alone, leading=tuple(leading))
