"""Pairs and spreads of a score store, read a shard at a time; what of it is damaged or absent is a sentence."""

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
from sepo.report.selecting import ScorePieces, dataset_counts, select_pair
from sepo.report.spreads import spreads
from sepo.report.subject import NO_TEXT, Pair, Side, Spread
from sepo.score_store import AnswerText, RowText, ScoreStore
from sepo.score_store.summary import pieces
from sepo.selection import SIDES
from sepo.text.steps import step_ids

HOW_TO_GET_TEXTS = "`sepo score RECIPE.yaml` with the recipe that scored it adds them and computes nothing again"

Lists = tuple[np.ndarray, np.ndarray]
"""Responses one after another, and how many tokens each has."""


class StoreReader:
    """A store, whole or in pieces.

    Args:
        path: its folder.
        missing: takes a sentence for everything that is not there.

    Raises:
        SepoError: its manifest is missing or damaged, or it has no columns of the two sides.
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
                f"{len(self.available):,} of {self.rows:,} rows can be shown. The next run with this store computes "
                "them; `sepo scores verify` names them."
            )

    @property
    def whole(self) -> bool:
        """Whether every shard is there."""
        return len(self._shards) == len(self.store.shards)

    @property
    def reads_own_tokens(self) -> bool:
        """Whether the scores are of an oracle's tokens that are not the policy's."""
        return "reads" in self.store.manifest.identity

    @property
    def available(self) -> np.ndarray:
        """The rows whose scores can be read, [N] int64."""
        ranges = [np.arange(shard.start, shard.stop) for shard, _ in self._shards]
        return np.concatenate(ranges) if ranges else np.empty(0, dtype=np.int64)

    def pieces(self, side: str) -> Iterator[Lists]:
        """One side's scores, a shard at a time."""
        for _, table in self._shards:
            yield from ((flat.numpy(), lengths.numpy()) for flat, lengths in pieces(table, self.columns[side]))

    def _sides(self) -> dict[str, ScorePieces]:
        return {side: partial(self.pieces, side) for side in SIDES}

    def spreads(self, *, rejected_largest: bool = False) -> dict[str, Spread]:
        """How the scores of all rows are distributed, by side."""
        return spreads(self._sides(), highest={"chosen": True, "rejected": rejected_largest})

    def pairs(self, rows: Sequence[int], method: Method | None) -> list[Pair]:
        """Some rows with what a method selects of them.

        Args:
            rows: which, of those that are available.
            method: selects by stored scores; None takes all tokens.
        """
        texts = self._texts(rows)
        method, counts = self._usable(method, has_texts=bool(texts))
        odd: dict[str, list[int]] = {}
        made = []
        for row, scores in self._scores(rows):
            budget = None if counts is None else [int(counts[side][row]) for side in SIDES]
            made.append(self._pair(row, scores, texts.get(row), method, budget, odd))
        for what, found in odd.items():
            named = ", ".join(map(str, found[:5])) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
            self.missing.append(f"Rows {named}: {what}")
        return made

    def _usable(self, method: Method | None, *, has_texts: bool) -> tuple[Method | None, dict[str, np.ndarray] | None]:
        """The method, or the nearest that can be told from what is there; and a data set's budgets."""
        if method is None or method.selector is None:
            return None, None
        if method.needs_steps and not has_texts:
            self.missing.append(
                "The run selects steps (lines and sentences), which cannot be told without texts: single tokens of the "
                f"same share are marked. {HOW_TO_GET_TEXTS}."
            )
            method = replace(method, selector=replace(method.selector, unit="token"))
        if not method.needs_counts:
            return method, None
        if self.whole:
            try:
                return method, dataset_counts(method, self._sides())
            except SepoError as error:
                self.missing.append(f"The threshold over the data set cannot be found: {error}")
        self.missing.append(
            "The run selects a share of the whole data set, which is not all there: that share of each answer is shown."
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
    ) -> Pair:
        answers = [AnswerText((NO_TEXT,) * len(found)) for found in scores]
        if text is not None:
            found = [text.chosen, text.rejected]
            # One text more than scores: the first token of a row cannot be scored.
            if all(len(answer.tokens) - len(own) in (0, 1) for answer, own in zip(found, scores, strict=True)):
                answers = found
            else:
                odd.setdefault("texts and scores are of different tokens, so the texts are not shown.", []).append(row)
                text = None
        selected = [np.zeros(len(own), dtype=bool) for own in scores]
        if method is None:
            selected = [~none for none in selected]
        elif method.needs_steps and text is None:
            odd.setdefault("what was selected is not known, for steps cannot be told without texts.", []).append(row)
        else:
            steps = [_steps(*both) for both in zip(answers, scores, strict=True)] if method.needs_steps else None
            try:
                selected = select_pair(method, scores, steps=steps, counts=counts)
            except (TypeError, ValueError, RuntimeError) as error:  # settings of any content
                odd.setdefault(f"what was selected is not known: {error}", []).append(row)
        sides = [_side(*parts) for parts in zip(answers, scores, selected, strict=True)]
        return Pair(row, "" if text is None else text.prompt, sides[0], sides[1])

    def _scores(self, rows: Sequence[int]) -> Iterator[tuple[int, list[np.ndarray]]]:
        wanted = np.unique(np.asarray(rows, dtype=np.int64))
        for shard, table in self._shards:
            here = wanted[(wanted >= shard.start) & (wanted < shard.stop)]
            if len(here):
                taken = table.take(pa.array(here - shard.start))
                split = [_split(taken, self.columns[side]) for side in SIDES]
                yield from ((int(row), list(pair)) for row, pair in zip(here, zip(*split, strict=True), strict=True))

    def _texts(self, rows: Iterable[int]) -> dict[int, RowText]:
        texts = self.store.texts
        if not texts.present:
            self.missing.append(
                f"The score store {self.store.path} holds no texts (an older version wrote it): tokens have their "
                f"scores only. {HOW_TO_GET_TEXTS}."
            )
            return {}
        problem = texts.problem()
        if problem is None:
            try:
                return dict(texts.read(rows))
            except SepoError as error:
                problem = str(error)
        self.missing.append(f"The texts of the score store {self.store.path} are unusable: {problem}.")
        return {}

    def _column(self, side: str) -> str:
        found = [name for name in self.store.manifest.columns if name.startswith(side)]
        if len(found) != 1:
            columns = ", ".join(self.store.manifest.columns)
            raise SepoError(f"{self.store.path} has the columns {columns}, expected one for each side of the pairs.")
        return found[0]


def evenly(rows: np.ndarray, count: int) -> list[int]:
    """At most ``count`` of the rows, spread over them, the first and the last included."""
    if len(rows) <= count:
        return [int(row) for row in rows]
    return [int(row) for row in rows[np.unique(np.linspace(0, len(rows) - 1, max(count, 0)).round().astype(np.int64))]]


def store_settings(store: ScoreStore) -> dict[str, Any]:
    """A store's manifest as plain JSON values."""
    manifest = store.manifest
    return {"identity": dict(manifest.identity), "rows": manifest.rows, "columns": list(manifest.columns)}


def _split(table: pa.Table, column: str) -> list[np.ndarray]:
    """The rows of a column."""
    return [row.numpy() for flat, lengths in pieces(table, column) for row in flat.split(lengths.tolist())]


def _steps(answer: AnswerText, scores: np.ndarray) -> list[int]:
    """The step of each scored token, as training numbers them."""
    texts = list(answer.tokens)
    for token, text in answer.step_texts:
        if 0 <= token < len(texts):
            texts[token] = text
    return step_ids(texts[len(texts) - len(scores) :])


def _side(answer: AnswerText, scores: np.ndarray, selected: np.ndarray) -> Side:
    unscored = len(answer.tokens) - len(scores)
    return Side(
        tuple(answer.tokens),
        np.concatenate([np.full(unscored, np.nan), scores]).astype(np.float32),
        np.concatenate([np.zeros(unscored, dtype=bool), selected]),
    )
