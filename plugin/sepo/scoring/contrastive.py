"""T-REG's token rewards: contrastive prompts rendered with the host's chat template, rewards kept in score stores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from sepo.errors import SepoError
from sepo.forward.revision_rewards import ContrastivePair, ContrastiveScorer
from sepo.forward.sequences import ScoredSequence
from sepo.recipe.model_specs import MAIN
from sepo.recipe.reference import OWN_START
from sepo.recipe.settings import RunSettings
from sepo.score_store import ScoreStore
from sepo.scoring.hub import hub_access
from sepo.scoring.model_files import check_tokenizers, max_positions
from sepo.scoring.models import load_scoring_model
from sepo.scoring.row_texts import PolicyTokens
from sepo.scoring.stored_columns import StoredScores, host_identity, rows_digest, spec_identity
from sepo.selection import SIDES
from sepo.text.conversations import CONVERSATION, add_conversations, check_conversations
from sepo.text.revision_prompts import DIRECTIONS, Direction, answer_marker, quoted_conversation, revision_prompt
from sepo.training.reward_columns import REWARD_COLUMNS
from sepo.training.selection_columns import IGNORE_INDEX


class PromptEncoder:
    """Encoder of contrastive prompts: the user's turn holds the instruction, the assistant's starts with the marker.

    The response that follows consists of the row's own token ids, end of turn included, so that rewards and the
    policy's tokens correspond one to one. If the chat template opens every response with fixed text (e.g. an empty
    thought), that text is part of the row's response and therefore follows the marker.

    The quoted question is truncated from the left to ``cutoff_len`` tokens, and the quoted response is what the row
    kept of it, so that a prompt with its response stays below three cutoffs. If this still exceeds the model's
    positions, the question is truncated further, then the quoted response from the right; the scored response never is.

    Args:
        template: the host's chat template.
        tokenizer: the policy's tokenizer.
        cutoff_len: the host's ``cutoff_len``.
        max_positions: the positions of the scoring model, or None if it has no limit.
    """

    def __init__(self, template: Any, tokenizer: Any, *, cutoff_len: int, max_positions: int | None) -> None:
        self.template, self.tokenizer = template, tokenizer
        self.cutoff_len, self.max_positions = cutoff_len, max_positions

    def prefix(self, question: str, answer: str, direction: Direction) -> list[int]:
        """Return the token ids before the first response token."""
        marker = answer_marker(direction)
        messages = [
            {"role": "user", "content": revision_prompt(question, answer, direction)},
            {"role": "assistant", "content": marker},
        ]
        prompt_ids, _ = self.template.encode_oneturn(self.tokenizer, messages)
        return [*prompt_ids, *self._ids(marker)]

    @property
    def overhead(self) -> int:
        """Number of tokens of the longer of the two prompts with an empty question and an empty response."""
        return max(len(self.prefix("", "", direction)) for direction in DIRECTIONS)

    def pair(self, question: str, answer: str, ids: Sequence[int], labels: Sequence[int]) -> ContrastivePair:
        """Prepend both prompts to one response.

        Args:
            question: the quoted conversation.
            answer: the untruncated text of the response.
            ids: token ids of the row's prompt and response.
            labels: the row's labels, -100 on the prompt.

        Raises:
            SepoError: If the response does not fit the model's positions even after an empty prompt.
        """
        first = _first_label(labels)
        response = list(ids[first:])
        answer_ids = self._ids(answer)
        if len(answer_ids) > len(response):  # truncated, or rewritten by the template: quote what the row kept
            answer = self.tokenizer.decode(response, skip_special_tokens=True).strip()
            answer_ids = self._ids(answer)
        question_ids = self._ids(question)
        if len(question_ids) > self.cutoff_len:
            question_ids = question_ids[-self.cutoff_len :]
            question = self._text(question_ids)
        while True:
            better, worse = (self.prefix(question, answer, direction) for direction in DIRECTIONS)
            over = max(len(better), len(worse)) + len(response) - (self.max_positions or float("inf"))
            if over <= 0:
                break
            if question_ids:
                question_ids = question_ids[int(over) :]
                question = self._text(question_ids)
            elif answer_ids:
                answer_ids = answer_ids[: -int(over)]
                answer = self._text(answer_ids)
            else:
                raise SepoError(_too_long(len(response), self.overhead, self.max_positions))
        skipped = 1 if first == 0 else 0  # the policy has no log-probability for the first token of a row
        return ContrastivePair(
            *(ScoredSequence([*prefix, *response], len(prefix) + skipped) for prefix in (better, worse))
        )

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))


def _first_label(labels: Sequence[int]) -> int:
    return next(index for index, label in enumerate(labels) if label != IGNORE_INDEX)


def _too_long(response: int, overhead: int, positions: int | None) -> str:
    return (
        f"a response of {response} tokens does not fit after T-REG's prompt ({overhead} tokens with an empty "
        f"question): the scoring model has {positions} positions. Lower cutoff_len, or set a treg_eval_model with more "
        "positions."
    )


class ContrastiveDatasetScorer(StoredScores):
    """Token rewards of a run's data sets, as columns ``chosen_token_rewards`` and ``rejected_token_rewards``.

    Args:
        settings: the run's settings, with token rewards from prompts.
        tokenizer: the policy's tokenizer.
        template: the chat template that the recipe selects.
        model_args: the host's model arguments.
        data_args: the host's data arguments.
        training_args: the host's training arguments (device, ranks).
    """

    columns = REWARD_COLUMNS
    what = "token rewards"

    def __init__(
        self,
        settings: RunSettings,
        *,
        tokenizer: Any,
        template: Any,
        model_args: Any,
        data_args: Any,
        training_args: Any,
    ) -> None:
        source = settings.token_rewards
        assert source is not None
        assert source.model is not None
        self.spec, self.key, self.model_args = source.model, source.key, model_args
        access = hub_access(model_args)
        check_tokenizers(tokenizer, self.spec, key=self.key, access=access)
        positions = max_positions(self.spec, key=self.key, access=access)
        self.encoder = PromptEncoder(template, tokenizer, cutoff_len=data_args.cutoff_len, max_positions=positions)
        probe = [self.encoder.prefix("question", "answer", direction) for direction in DIRECTIONS]
        identity = {
            "scorer": "contrastive",
            "model": spec_identity(self.spec, key=self.key, access=access),
            "revision": MAIN if self.key == OWN_START else None,  # a constant: files are identified by their content
            "prompts": hashlib.sha256(json.dumps(probe).encode()).hexdigest(),  # wording and template
            **host_identity(tokenizer=tokenizer, model_args=model_args, data_args=data_args),
        }
        super().__init__(
            settings, identity=identity, row_texts=PolicyTokens(tokenizer, quoted=True), training_args=training_args
        )

    def attach(self, dataset: Dataset, *, name: str) -> Dataset:
        """Compute the rewards of a data set, or find their store, and drop the conversations.

        Raises:
            SepoError: If the rows have no conversation, a response does not fit after its prompt, or the store cannot
                be written.
        """
        check_conversations(dataset, name=name, reader="for T-REG's prompts to quote")
        return super().attach(dataset, name=name).remove_columns([CONVERSATION])

    def _digest(self, dataset: Dataset) -> str:
        digest = hashlib.sha256(rows_digest(dataset).encode())
        add_conversations(digest, dataset)
        return digest.hexdigest()

    def _fill(self, store: ScoreStore, dataset: Dataset, *, name: str) -> None:
        self._refuse_too_long(dataset)
        super()._fill(store, dataset, name=name)

    def _refuse_too_long(self, dataset: Dataset) -> None:
        """Check the length of every response before the model is loaded, so that no row interrupts the scoring pass."""
        positions = self.encoder.max_positions
        if positions is None:
            return
        overhead = self.encoder.overhead
        for start in range(0, len(dataset), 1000):
            rows = dataset[start : start + 1000]
            for side in SIDES:
                longest = max(len(labels) - _first_label(labels) for labels in rows[f"{side}_labels"])
                if overhead + longest > positions:
                    raise SepoError(_too_long(longest, overhead, positions))

    def _score(
        self, dataset: Dataset, start: int, stop: int, on_batch: Callable[[int], None]
    ) -> dict[str, list[np.ndarray]]:
        rows = dataset[start:stop]
        conversations = [json.loads(text) for text in rows[CONVERSATION]]
        questions = [quoted_conversation(c["messages"], system=c["system"], tools=c["tools"]) for c in conversations]
        pairs = [
            self.encoder.pair(question, conversation["answers"][answer], ids, labels)
            for answer, side in enumerate(SIDES)
            for question, conversation, ids, labels in zip(
                questions, conversations, rows[f"{side}_input_ids"], rows[f"{side}_labels"], strict=True
            )
        ]
        rewards = [row.numpy() for row in self._loaded().score(pairs, on_batch=on_batch)]
        count = stop - start
        return dict(zip(REWARD_COLUMNS, (rewards[:count], rewards[count:]), strict=True))

    def _loaded(self) -> ContrastiveScorer:
        if self._scorer is None:
            device = self.training_args.device
            model = load_scoring_model(self.spec, model_args=self.model_args, device=device, key=self.key)
            self._scorer = ContrastiveScorer(
                model,
                batch_tokens=self.settings.score_batch_tokens,
                chunk_tokens=self.settings.head_chunk_tokens,
            )
        scorer: ContrastiveScorer = self._scorer
        return scorer

    def _refuse_zeros(self, name: str) -> None:
        raise SepoError(
            f"{self.key}: '{self.spec.model}' gives every token the same probability after the prompt for a better and "
            "for a worse response (all token rewards are zero). Check that its weights are those of a language model."
        )
