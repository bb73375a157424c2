"""`token_scorer: file`: scores or spans given by the user in the data set's rows, aligned to response tokens."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from datasets import List, Value

from sepo.hosts.llamafactory.carried_columns import carried_columns
from sepo.hosts.llamafactory.response_tokens import PolicyResponses, response_text
from sepo.hosts.llamafactory.row_processor import RowProcessor, processed_by
from sepo.hosts.llamafactory.rows import LEFT_OUT
from sepo.scoring.user_scores import (
    SPAN_COLUMNS,
    checked_scores,
    checked_spans,
    not_counted,
    not_spelled,
    score_columns,
    scores_of_spans,
)
from sepo.selection import SIDES
from sepo.text.spans import Span
from sepo.training.selection_columns import IGNORE_INDEX, SCORE_COLUMNS

_WHERE = "_sepo_row"
_CARRIED: dict[str, Any] = {
    _WHERE: Value("string"),
    **{f"_sepo_{name}": List(Value("float64")) for name in SCORE_COLUMNS},
    **{
        f"_sepo_{name}": List({"start": Value("int64"), "end": Value("int64"), "weight": Value("float64")})
        for name in SPAN_COLUMNS
    },
}


@contextlib.contextmanager
def carried_scores(*, template: Any = None) -> Iterator[None]:
    """Carry the score columns through the host's converter and processor inside the context.

    The host's converter drops unknown columns, and its processor creates new ones (see ../PATCHES.md). The tokenized
    rows then have ``chosen_scores`` and ``rejected_scores``, one number per response token. As with an oracle, these
    are rewards: high in a chosen response and low in a rejected one for tokens that should be selected. Scores given
    by the user are used unchanged. The weight of a span is the importance of its characters on both sides: it is the
    score in a chosen response and the negated score in a rejected one.

    Args:
        template: the run's template, as which spans count the characters of a response; None for templates that write
            a response as it is in the row.
    """
    carried = carried_columns(
        lambda dataset, name: score_columns(dataset, name=name),
        functools.partial(carried_row, template=template),
        _CARRIED,
        title="sepo: token scores of the rows",
    )
    with processed_by(ScoredPairwiseProcessor), carried:
        yield


def carried_row(row: Mapping[str, Any], *, where: str, template: Any = None) -> dict[str, Any]:
    """Check the scores or spans of one row, and rename them for their way through the host.

    Args:
        row: the host's aligned columns and the user's score columns.
        where: name of the row in error messages.
        template: the run's template, or None.

    Raises:
        SepoError: a value of another type, not finite, or a span outside its response.
    """
    result: dict[str, Any] = {_WHERE: where, **{f"_sepo_{name}": None for name in (*SCORE_COLUMNS, *SPAN_COLUMNS)}}
    if row.get(LEFT_OUT):
        return result
    for index, side in enumerate(SIDES):
        if f"{side}_scores" in row:
            result[f"_sepo_{side}_scores"] = checked_scores(row, side, where=where)
        else:
            turn = row["_response"][index] if len(row["_response"]) > index else {"role": "assistant", "content": ""}
            text = turn["content"] if template is None else response_text(turn, template)
            spans = checked_spans(row, side, where=where, characters=len(text))
            result[f"_sepo_{side}_spans"] = [span._asdict() for span in spans]
    return result


class ScoredPairwiseProcessor(RowProcessor):
    """Processor that aligns the scores of each row to its tokens.

    Raises:
        SepoError: from ``preprocess_dataset``: the number of scores is not the number of response tokens, or the
            tokens of a response do not decode to its text.
    """

    def more_columns(self, row: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns ``chosen_scores`` and ``rejected_scores``."""
        scores = {f"{side}_scores": self._scores(row, made[f"{side}_labels"], side) for side in SIDES}
        return {**super().more_columns(row, made), **scores}

    def _scores(self, example: Mapping[str, Any], labels: list[int], side: str) -> list[float]:
        """Return one score per response token that truncation kept and that has a predecessor."""
        kept = [label for label in labels if label != IGNORE_INDEX]
        given = example[f"_sepo_{side}_scores"]
        scores = self._projected(example, kept, side) if given is None else self._counted(example, given, kept, side)
        # The first token of a response at the start of a row has no predecessor, hence no log-probability.
        return scores[1:] if labels and labels[0] != IGNORE_INDEX else scores

    def _counted(self, example: Mapping[str, Any], scores: list[float], kept: list[int], side: str) -> list[float]:
        if len(scores) != len(kept):
            whole = self._responses.whole(example, side)
            if len(scores) != len(whole):
                raise not_counted(example[_WHERE], side, found=len(scores), expected=len(whole))
        return list(scores[: len(kept)])

    def _projected(self, example: Mapping[str, Any], kept: list[int], side: str) -> list[float]:
        placed = self._responses.spans(example, kept, side)
        if placed is None:
            raise not_spelled(example[_WHERE], side)
        spans = [Span(**span) for span in example[f"_sepo_{side}_spans"]]
        return scores_of_spans(placed, spans, side)[: len(kept)]

    @cached_property
    def _responses(self) -> PolicyResponses:
        return PolicyResponses(self.template, self.tokenizer, processor=self.processor, data_args=self.data_args)
