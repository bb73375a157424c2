"""Pairs and distributions of a score store, read one shard at a time; damaged or missing parts are reported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sepo.errors import SepoError
from sepo.objectives import Method
from sepo.objectives.token_weights import WeightError
from sepo.report.selecting import ScorePieces, dataset_counts, select_pair, weigh_pair
from sepo.report.spreads import spreads
from sepo.report.subject import NO_TEXT, Pair, Side, Spread
from sepo.score_store import AnswerText, RowText, ScoreStore
from sepo.score_store.summary import pieces
from sepo.selection import SIDES
from sepo.text.steps import step_ids
from sepo.text.template_tokens import NO_TEMPLATE, TemplateTokens, before_text

HOW_TO_GET_TEXTS = "`sepo score RECIPE.yaml` with the recipe that scored it adds them without rescoring"

Lists = tuple[np.ndarray, np.ndarray]
"""Flat scores of concatenated responses, and the number of tokens of each."""


class StoreReader:
    """A reader of a complete or incomplete store.

    Args:
        path: directory of the store.
        missing: list to which a sentence is appended for each unavailable part.

    Raises:
        SepoError: its manifest is missing or damaged, or it does not have one column for each side.
    """

    def __init__(self, path: Path, missing: list[str]) -> None:
        self.store, self.missing = ScoreStore.at(path), missing
        self.rows = self.store.manifest.rows
        self.columns = {side: self._column(side) for side in SIDES}
        self._shards = self.store.sound_shards()
        if not self.whole:
            lost = len(self.store.shards) - len(self._shards)
            missing.append(
                f"{lost} of the {len(self.store.shards)} shards of the score store {path} are damaged or not written: "
                f"{len(self.available):,} of {self.rows:,} rows can be shown. `sepo scores verify` lists these shards; "
                "the next run with this store computes them."
            )

    @property
    def whole(self) -> bool:
        """Whether every shard is available."""
        return len(self._shards) == len(self.store.shards)

    @property
    def reads_own_tokens(self) -> bool:
        """Whether the scores are of an oracle's tokens instead of the policy's."""
        return "reads" in self.store.manifest.identity

    @property
    def available(self) -> np.ndarray:
        """Rows with readable scores, [N] int64."""
        ranges = [np.arange(shard.start, shard.stop) for shard, _ in self._shards]
        return np.concatenate(ranges) if ranges else np.empty(0, dtype=np.int64)

    def pieces(self, side: str) -> Iterator[Lists]:
        """Yield the scores of one side, one shard at a time."""
        for _, table in self._shards:
            yield from ((flat.numpy(), lengths.numpy()) for flat, lengths in pieces(table, self.columns[side]))

    def _sides(self) -> dict[str, ScorePieces]:
        return {side: partial(self.pieces, side) for side in SIDES}

    def _candidate_pieces(self, side: str, template: TemplateTokens) -> Iterator[Lists]:
        """Yield the scores of one side that belong to candidates, one shard at a time."""
        for shard, table in self._shards:
            texts = self.store.texts.read(range(shard.start, shard.stop))
            rows = zip(_split(table, self.columns[side]), texts, strict=True)
            kept = [scores[_candidates(getattr(text, side), scores, template)] for scores, (_, text) in rows]
            yield np.concatenate(kept), np.array([len(row) for row in kept])

    def spreads(self, *, rejected_largest: bool = False) -> dict[str, Spread]:
        """Return the distributions of the scores of all rows, by side."""
        return spreads(self._sides(), highest={"chosen": True, "rejected": rejected_largest})

    def pairs(
        self, rows: Sequence[int], method: Method | None, *, template: TemplateTokens = NO_TEMPLATE
    ) -> list[Pair]:
        """Return rows with the tokens that a method selects, and their weights.

        Args:
            rows: available rows.
            method: a method that selects by stored scores, or all tokens, and may weigh them; None for all tokens.
            template: the tokens that are not selected, by their texts.
        """
        texts = self._texts(rows)
        selects = method is not None and method.selector is not None
        template = template if selects and not self.reads_own_tokens else NO_TEMPLATE
        if template and not texts:
            self.missing.append(
                "Without texts the tokens of the chat template cannot be recognized: the marked tokens may differ from "
                "those that were selected."
            )
            template = NO_TEMPLATE
        method, counts = self._usable(method, template, has_texts=bool(texts))
        odd: dict[str, list[int]] = {}
        made = []
        for row, scores in self._scores(rows):
            budget = None if counts is None else [int(counts[side][row]) for side in SIDES]
            made.append(self._pair(row, scores, texts.get(row), method, budget, odd, template))
        for what, found in odd.items():
            named = ", ".join(map(str, found[:5])) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
            self.missing.append(f"Rows {named}: {what}")
        return made

    def _usable(
        self, method: Method | None, template: TemplateTokens, *, has_texts: bool
    ) -> tuple[Method | None, dict[str, np.ndarray] | None]:
        """Return the method, or the closest one that the available data supports, and the budgets over the data set."""
        if method is None or method.selector is None:
            return method, None
        if method.needs_steps and not has_texts:
            same = "of the same share" if method.selector.reads_ratios else "of the same number"
            self.missing.append(
                "The run selects steps (lines and sentences), which cannot be determined without texts: single tokens "
                f"{same} are marked. {HOW_TO_GET_TEXTS}."
            )
            method = replace(method, selector=replace(method.selector, unit="token"))
        if not method.needs_counts:
            return method, None
        if self.whole:
            try:
                sides: dict[str, ScorePieces] = {
                    side: partial(self._candidate_pieces, side, template) for side in SIDES
                }
                return method, dataset_counts(method, sides if template else self._sides())
            except SepoError as error:
                self.missing.append(f"The threshold over the data set cannot be computed: {error}")
        self.missing.append(
            "The run selects a share of the whole data set, which is incomplete: that share of each response is marked."
        )
        assert method.selector is not None
        return replace(method, selector=replace(method.selector, scope="response")), None

    def _pair(
        self,
        row: int,
        scores: Sequence[np.ndarray],
        text: RowText | None,
        method: Method | None,
        counts: Sequence[int] | None,
        odd: dict[str, list[int]],
        template: TemplateTokens,
    ) -> Pair:
        answers = [AnswerText((NO_TEXT,) * len(found)) for found in scores]
        if text is not None:
            found = [text.chosen, text.rejected]
            # There may be one text more than scores: the first token of a row without a prompt has no score.
            if all(len(answer.tokens) - len(own) in (0, 1) for answer, own in zip(found, scores, strict=True)):
                answers = found
            else:
                odd.setdefault("texts and scores are of different tokens, so the texts are not shown.", []).append(row)
                text = None
        both = list(zip(answers, scores, strict=True))
        candidates = [_candidates(*side, template) for side in both] if template and text is not None else None
        selected = [np.zeros(len(own), dtype=bool) for own in scores]
        if method is None:
            selected = [~none for none in selected]
        elif method.needs_steps and text is None:
            odd.setdefault("the selection is unknown, as steps cannot be determined without texts.", []).append(row)
        else:
            steps = [_steps(*side, template) for side in both] if method.needs_steps else None
            try:
                selected = select_pair(method, scores, steps=steps, counts=counts, candidates=candidates)
            except (TypeError, ValueError, RuntimeError) as error:  # settings may have any content
                odd.setdefault(f"the selection is unknown: {error}", []).append(row)
        weights: Sequence[np.ndarray] | None = None
        if method is not None and any(kept.any() for kept in selected):
            try:
                weights = weigh_pair(method, scores, selected)
            except WeightError as error:
                odd.setdefault(f"the weights are unknown, expected {error.expected}.", []).append(row)
            except (TypeError, ValueError, RuntimeError) as error:
                odd.setdefault(f"the weights are unknown: {error}", []).append(row)
        if weights is not None:
            selected = [own != 0 for own in weights]  # a weight of 0 excludes its token, as in training
        flags: Sequence[np.ndarray | None] = candidates or (None, None)
        given: Sequence[np.ndarray | None] = weights or (None, None)
        sides = [_side(*parts) for parts in zip(answers, scores, selected, flags, given, strict=True)]
        return Pair(row, "" if text is None else text.prompt, sides[0], sides[1])

    def _scores(self, rows: Sequence[int]) -> Iterator[tuple[int, list[np.ndarray]]]:
        requested = np.unique(np.asarray(rows, dtype=np.int64))
        for shard, table in self._shards:
            here = requested[(requested >= shard.start) & (requested < shard.stop)]
            if len(here):
                taken = table.take(pa.array(here - shard.start))
                split = [_split(taken, self.columns[side]) for side in SIDES]
                yield from ((int(row), list(pair)) for row, pair in zip(here, zip(*split, strict=True), strict=True))

    def _texts(self, rows: Iterable[int]) -> dict[int, RowText]:
        texts = self.store.texts
        if not texts.present:
            self.missing.append(
                f"The score store {self.store.path} has no texts (an older version wrote it): only the scores of "
                f"tokens are shown. {HOW_TO_GET_TEXTS}."
            )
            return {}
        problem = texts.problem()
        if problem is None:
            try:
                return dict(texts.read(rows))
            except SepoError as error:
                problem = str(error)
        self.missing.append(f"The texts of the score store {self.store.path} cannot be used: {problem}.")
        return {}

    def _column(self, side: str) -> str:
        found = [name for name in self.store.manifest.columns if name.startswith(side)]
        if len(found) != 1:
            columns = ", ".join(self.store.manifest.columns)
            raise SepoError(f"{self.store.path} has the columns {columns}, expected one for each side of the pairs.")
        return found[0]


def evenly(rows: np.ndarray, count: int) -> list[int]:
    """Return at most ``count`` of the rows, evenly spaced, including the first and the last."""
    if len(rows) <= count:
        return [int(row) for row in rows]
    return [int(row) for row in rows[np.unique(np.linspace(0, len(rows) - 1, max(count, 0)).round().astype(np.int64))]]


def store_settings(store: ScoreStore) -> dict[str, Any]:
    """Return a store's manifest as plain JSON values."""
    manifest = store.manifest
    return {"identity": dict(manifest.identity), "rows": manifest.rows, "columns": list(manifest.columns)}


def _split(table: pa.Table, column: str) -> list[np.ndarray]:
    """Return the rows of a column."""
    return [row.numpy() for flat, lengths in pieces(table, column) for row in flat.split(lengths.tolist())]


def _candidates(answer: AnswerText, scores: np.ndarray, template: TemplateTokens) -> np.ndarray:
    """Return whether each scored token may be selected."""
    return np.array(template.candidates(answer.tokens)[len(answer.tokens) - len(scores) :], dtype=bool)


def _steps(answer: AnswerText, scores: np.ndarray, template: TemplateTokens) -> list[int]:
    """Return the step index of each scored token, as in training."""
    texts = list(answer.tokens)
    for token, text in answer.step_texts:
        if 0 <= token < len(texts):
            texts[token] = text
    before = before_text(_candidates(answer, scores, template).tolist())
    return [0] * before + step_ids(texts[len(texts) - len(scores) + before :])


def _side(
    answer: AnswerText,
    scores: np.ndarray,
    selected: np.ndarray,
    candidates: np.ndarray | None,
    weights: np.ndarray | None,
) -> Side:
    unscored = len(answer.tokens) - len(scores)
    return Side(
        tuple(answer.tokens),
        np.concatenate([np.full(unscored, np.nan), scores]).astype(np.float32),
        np.concatenate([np.zeros(unscored, dtype=bool), selected]),
        None if candidates is None else np.concatenate([np.ones(unscored, dtype=bool), candidates]),
        None if weights is None else np.concatenate([np.zeros(unscored), weights]),
    )
