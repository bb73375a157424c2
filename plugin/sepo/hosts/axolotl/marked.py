"""Rows with marked errors (``credit_data``) in the template and the tokens that a run gives its own rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from sepo.credit.data import LabelledPair
from sepo.errors import SepoError
from sepo.hosts.axolotl.conversations import template_text
from sepo.hosts.axolotl.messages import Columns, Writer, read_row
from sepo.hosts.axolotl.pair_tokens import tokenized_texts
from sepo.hosts.axolotl.response_tokens import PolicyResponses
from sepo.scoring.prepare import CREDIT_DATA
from sepo.text.chat_encoding import ReadResponse
from sepo.text.messages import UnreadableRow
from sepo.text.projection import TokenSpans
from sepo.training.selection_columns import IGNORE_INDEX
from sepo.training.trainable_rows import response_start

_COLUMNS = Columns("messages", "chosen", "rejected")


def read_marked(pairs: Sequence[LabelledPair], cfg: Any, *, tokenizer: Any) -> list[ReadResponse]:
    """Tokenize the rejected responses of pairs.

    Args:
        pairs: the rows.
        cfg: Axolotl's config.
        tokenizer: the policy's tokenizer.

    Raises:
        SepoError: The chat template cannot write a row, truncation leaves no token of a response, or its tokens do not
            decode to its text.
    """
    writer, responses = Writer(tokenizer, template_text(cfg, tokenizer)), PolicyResponses(tokenizer)
    texts = Dataset.from_list([_written(pair, writer) for pair in pairs])
    rows = tokenized_texts(texts, cfg, tokenizer=tokenizer, name=CREDIT_DATA)
    return [_read(pair, row, responses) for pair, row in zip(pairs, rows, strict=True)]


def _written(pair: LabelledPair, writer: Writer) -> dict[str, str]:
    system = [{"role": "system", "content": pair.system}] if pair.system else []
    sample = {
        "messages": [*system, *({**turn} for turn in pair.messages)],
        **dict.fromkeys(("chosen", "rejected"), pair.rejected),
        "tools": pair.tools or None,
    }
    try:
        return writer.write(read_row(sample, _COLUMNS))[0]
    except UnreadableRow as error:
        raise SepoError(f"row {pair.row}: {error}; remove the row.") from error


def _read(pair: LabelledPair, row: Mapping[str, Any], responses: PolicyResponses) -> ReadResponse:
    ids, labels = list(row["rejected_input_ids"]), list(row["rejected_labels"])
    kept = [label for label in labels if label != IGNORE_INDEX]
    start = response_start(labels) if kept else len(ids)
    if start >= len(ids):
        raise SepoError(f"row {pair.row}: the rejected response has no token after truncation; raise sequence_len.")
    spans = responses.place({"answers": ["", pair.rejected]}, kept, "rejected")
    if spans is None:
        raise SepoError(
            f"row {pair.row}: the tokens of the rejected response do not decode to its text (the template or the "
            "tokenizer rewrites it), so its spans cannot be placed; remove the row or use another template."
        )
    first = len(kept) - (len(ids) - start)  # 1 if the first token has no predecessor
    end = None if spans.end_of_turn is None else spans.end_of_turn - first
    return ReadResponse(ids, start, TokenSpans(spans.offsets[first:], end), response_cut=end is None)
