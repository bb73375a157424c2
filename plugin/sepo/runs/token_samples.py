"""Sample of the pairs that a run trained on, with the scores of their tokens, the selected tokens and their weights.

It is the only record of live scorers, whose scores belong to one step, and it shows the selection from stored scores as
the step used it. The first process writes a few pairs at the first steps and then at steps spread over the run, one
line of JSON per pair. No run depends on the file: errors are logged as warnings.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import TrainerCallback

from sepo.files import write_whole
from sepo.objectives import Method
from sepo.objectives.selecting import live_scores
from sepo.runs.token_samples_reader import RECORD_FILE, record_lines
from sepo.selection import SIDES
from sepo.text.token_texts import TokenTexts
from sepo.training.selection_columns import CANDIDATES, IGNORE_INDEX
from sepo.training.step import StepTokens

logger = logging.getLogger(__name__)

PAIRS = 64
"""Maximum number of recorded pairs per run."""

_STEPS = 16


class RecordedRows(Protocol):
    """Training rows, for values that batches do not hold."""

    def find(self, chosen: Sequence[int], rejected: Sequence[int]) -> int | None:
        """Return the number of the row with these token ids (prompts included), or None."""

    def scores(self, row: int) -> tuple[Sequence[float], Sequence[float]] | None:
        """Return the stored scores of a row by side, or None if the rows have none."""


class TokenRecord(TrainerCallback):
    """Trainer callback that writes the sample. Constructed in the first process only.

    Args:
        method: the run's method.
        tokenizer: the policy's tokenizer.
        rows: the training rows, or None.
    """

    def __init__(self, *, method: Method, tokenizer: Any, rows: RecordedRows | None = None) -> None:
        self.method, self.tokenizer, self.rows = method, tokenizer, rows
        self._texts: TokenTexts | None = None
        self._file: Path | None = None
        self._left: dict[int, int] = {}  # pairs that remain to be recorded, by step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Choose the steps to record; if the run resumes, keep the pairs of the steps that it does not repeat."""
        steps = recorded_steps(state.max_steps)
        self._left = {step: PAIRS // len(steps) for step in steps if step > state.global_step}
        self._file = Path(args.output_dir) / RECORD_FILE
        try:
            _keep(Path(args.output_dir), state.global_step)
        except OSError as error:
            self._give_up(error)

    def watch(self, step: int) -> Callable[[StepTokens], None] | None:
        """Return the observer of a device batch (see ``preference_step``), or None if none of its pairs is recorded.

        Args:
            step: number of the optimizer step that the batch belongs to, from 1.
        """
        if not self._left.get(step):
            return None
        seen = False

        def look(tokens: StepTokens) -> None:
            nonlocal seen
            if seen:  # the first part of a split batch is enough
                return
            seen = True
            try:
                self._record(tokens, step)
            except Exception as error:  # of any tokenizer or file system: a run must not fail for its record
                self._give_up(error)

        return look

    def _record(self, tokens: StepTokens, step: int) -> None:
        pairs = len(tokens.selection) // 2
        count = min(pairs, self._left[step])
        live = self._live_scores(tokens)
        lines = [json.dumps({"step": step, **self._pair(tokens, index, pairs, live)}) for index in range(count)]
        assert self._file is not None
        with self._file.open("a", encoding="ascii") as file:
            file.writelines(f"{line}\n" for line in lines)
        self._left[step] -= count

    def _pair(self, tokens: StepTokens, index: int, pairs: int, live: Tensor | None) -> dict[str, Any]:
        """Return one pair as the object of a line."""
        if self._texts is None:
            self._texts = TokenTexts(self.tokenizer)
        batch, places = tokens.batch, (index, pairs + index)
        whole = [batch["input_ids"][place][batch["attention_mask"][place] == 1].tolist() for place in places]
        row = None if self.rows is None else self.rows.find(*whole)
        stored = None if self.rows is None or row is None or live is not None else self.rows.scores(row)
        first = int((batch["labels"][index] != IGNORE_INDEX).nonzero()[0, 0])
        before = batch["attention_mask"][index][:first] == 1
        prompt = self._texts.plain(batch["input_ids"][index][:first][before].tolist())
        line: dict[str, Any] = {"row": row, "prompt": prompt}
        for number, (side, place) in enumerate(zip(SIDES, places, strict=True)):
            at = (batch["labels"][place] != IGNORE_INDEX).nonzero().flatten()
            scored = at[at > 0] - 1  # entry t is the token at t + 1; the first of a row has no predecessor
            numbers = [] if stored is None else list(stored[number])
            if live is not None:
                numbers = live[place][scored].tolist()
            excluded = [] if CANDIDATES not in batch else (~batch[CANDIDATES][place][at]).nonzero().flatten().tolist()
            unscored = [None] * (len(at) - len(numbers))
            on = tokens.selection[place][scored]
            kept = on.nonzero().flatten() + (len(at) - len(scored))
            weights = None if tokens.weights is None else tokens.weights[place][scored][on].tolist()
            line[side] = {
                "tokens": self._texts.spelling(batch["labels"][place][at].tolist()),
                "scores": [*unscored, *map(_plain, numbers)],
                "selected": kept.tolist(),
                **({} if weights is None else {"weights": list(map(_plain, weights))}),
                **({"template": excluded} if excluded else {}),
            }
        return line

    def _live_scores(self, tokens: StepTokens) -> Tensor | None:
        """Return the scores [2B, T - 1] of a live scorer, or None for other scorers."""
        if not self.method.token_scorer.live:
            return None
        mask = tokens.batch.get(CANDIDATES, tokens.batch["labels"] != IGNORE_INDEX)[:, 1:]
        pairs = len(mask) // 2
        with torch.no_grad():
            sides = [
                live_scores(
                    self.method, side, mask=mask[rows], policy=tokens.policy_logps[rows],
                    reference=None if tokens.ref_logps is None else tokens.ref_logps[rows],
                )
                for side, rows in zip(SIDES, (slice(None, pairs), slice(pairs, None)), strict=True)
            ]  # fmt: skip
        return torch.cat(sides).where(mask, math.nan)

    def _give_up(self, error: Exception) -> None:
        self._left = {}
        logger.warning("no sample of selected tokens is recorded in %s (%s); the run continues.", self._file, error)


def recorded_steps(last: int) -> list[int]:
    """Return the steps at which pairs are recorded in a run of ``last`` steps.

    >>> recorded_steps(3), recorded_steps(1000)[:4], recorded_steps(1000)[-1]
    ([1, 2, 3], [1, 2, 72, 144], 1000)
    """
    spread = (1 + round((last - 1) * index / (_STEPS - 2)) for index in range(_STEPS - 1))
    return sorted({*spread, 2} & {*range(1, last + 1)}) or [1]


def _keep(folder: Path, step: int) -> None:
    """Keep only the readable lines of steps up to ``step`` in a run's record."""
    file = folder / RECORD_FILE
    if not file.is_file():
        return
    kept = "".join(f"{line}\n" for line, pair in record_lines(folder) if pair is not None and pair.step <= step)
    write_whole(file, kept)


def _plain(score: float) -> float | None:
    """Round to nine significant digits, which identify a float32; None if not finite."""
    return float(f"{score:.9g}") if math.isfinite(score) else None
