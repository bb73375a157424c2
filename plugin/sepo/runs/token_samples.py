"""A sample of what a run trained on: some pairs with what each of their tokens scored and which of them were selected.

Live scorers leave nothing else behind, for their scores are of one step; and what a stored score selected is seen here
as the step used it. A few pairs at the first steps and then at steps spread over the run, a line of JSON each, written
by the first process. Nothing depends on the file: what hinders it is a warning.
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
from sepo.training.selection_columns import IGNORE_INDEX
from sepo.training.step import StepTokens

logger = logging.getLogger(__name__)

PAIRS = 64
"""Most pairs of a run."""

_STEPS = 16


class RecordedRows(Protocol):
    """The training rows, for what a batch does not carry."""

    def find(self, chosen: Sequence[int], rejected: Sequence[int]) -> int | None:
        """The number of the row with these token ids (prompts included), or None."""

    def scores(self, row: int) -> tuple[Sequence[float], Sequence[float]] | None:
        """Its stored scores by side, or None where its rows carry none."""


class TokenRecord(TrainerCallback):
    """Writes the sample. Made in the first process only.

    Args:
        method: the run's.
        tokenizer: the policy's.
        rows: the training rows, or None.
    """

    def __init__(self, *, method: Method, tokenizer: Any, rows: RecordedRows | None = None) -> None:
        self.method, self.tokenizer, self.rows = method, tokenizer, rows
        self._texts: TokenTexts | None = None
        self._file: Path | None = None
        self._left: dict[int, int] = {}  # pairs to take, by step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Choose the steps; of a run that goes on, keep what the steps recorded that it does not do again."""
        steps = recorded_steps(state.max_steps)
        self._left = {step: PAIRS // len(steps) for step in steps if step > state.global_step}
        self._file = Path(args.output_dir) / RECORD_FILE
        try:
            _keep(Path(args.output_dir), state.global_step)
        except OSError as error:
            self._give_up(error)

    def watch(self, step: int) -> Callable[[StepTokens], None] | None:
        """What is to look at a device batch (see ``preference_step``), or None where nothing is recorded of it.

        Args:
            step: the number of the optimizer step that the batch is a part of, from 1.
        """
        if not self._left.get(step):
            return None
        seen = False

        def look(tokens: StepTokens) -> None:
            nonlocal seen
            if seen:  # of a batch in parts, the first one is enough
                return
            seen = True
            try:
                self._record(tokens, step)
            except Exception as error:  # any tokenizer's, any disk's: a run does not end because it cannot be watched
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
        """One pair as a line has it."""
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
            unscored = [None] * (len(at) - len(numbers))
            kept = tokens.selection[place][scored].nonzero().flatten() + (len(at) - len(scored))
            line[side] = {
                "tokens": self._texts.spelling(batch["labels"][place][at].tolist()),
                "scores": [*unscored, *map(_plain, numbers)],
                "selected": kept.tolist(),
            }
        return line

    def _live_scores(self, tokens: StepTokens) -> Tensor | None:
        """[2B, T - 1], where the method's scorer is live."""
        if not self.method.token_scorer.live:
            return None
        mask = tokens.batch["labels"][:, 1:] != IGNORE_INDEX
        pairs = len(mask) // 2
        with torch.no_grad():
            sides = [
                live_scores(
                    self.method, side, mask=mask[rows], policy=tokens.policy_logps[rows],
                    reference=None if tokens.ref_logps is None else tokens.ref_logps[rows],
                )
                for side, rows in zip(SIDES, (slice(None, pairs), slice(pairs, None)), strict=True)
            ]  # fmt: skip
        return torch.cat(sides)

    def _give_up(self, error: Exception) -> None:
        self._left = {}
        logger.warning("no sample of selected tokens is recorded in %s (%s); the run goes on.", self._file, error)


def recorded_steps(last: int) -> list[int]:
    """The steps of a run of ``last`` steps at which pairs are recorded.

    >>> recorded_steps(3), recorded_steps(1000)[:4], recorded_steps(1000)[-1]
    ([1, 2, 3], [1, 2, 72, 144], 1000)
    """
    spread = (1 + round((last - 1) * index / (_STEPS - 2)) for index in range(_STEPS - 1))
    return sorted({*spread, 2} & {*range(1, last + 1)}) or [1]


def _keep(folder: Path, step: int) -> None:
    """Leave only the sound lines of steps up to ``step`` in a run's record."""
    file = folder / RECORD_FILE
    if not file.is_file():
        return
    kept = "".join(f"{line}\n" for line, pair in record_lines(folder) if pair is not None and pair.step <= step)
    write_whole(file, kept)


def _plain(score: float) -> float | None:
    """A float32 in nine digits, which are all that it has."""
    return float(f"{score:.9g}") if math.isfinite(score) else None
