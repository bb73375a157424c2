"""Scores of an oracle with a tokenizer of its own: it reads the conversations, its scores move by characters."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from sepo.errors import SepoError
from sepo.forward.sequences import ScoredSequence
from sepo.recipe.settings import ModelSpec, RunSettings
from sepo.score_store import RowText
from sepo.scoring.live_columns import Rows, mapped
from sepo.scoring.model_files import check_tokenizers, differing_token, max_positions, own_tokenizer, spec_folders
from sepo.scoring.oracle import OracleScores, oracle_identity
from sepo.scoring.row_texts import answer_text, prompt_of
from sepo.selection import SIDES
from sepo.text.chat_encoding import ChatReader, ReadResponse
from sepo.text.conversations import CONVERSATION, add_conversations, check_conversations
from sepo.text.projection import TokenSpans, project_scores, shared_boundaries
from sepo.training.selection_columns import IGNORE_INDEX, SCORE_COLUMNS

logger = logging.getLogger(__name__)

_SAMPLE = 100
"""Rows over which coinciding boundaries are counted."""

PlaceResponse = Callable[[Mapping[str, Any], list[int], str], TokenSpans | None]
"""A conversation, the policy's tokens that truncation left of one of its answers, and that answer's side (``chosen`` or
``rejected``): the places of the whole answer's tokens in its text, or None where they do not spell it. Hosts encode
answers in their own ways."""


def oracle_reader(settings: RunSettings, *, tokenizer: Any, model_args: Any, data_args: Any) -> ChatReader | None:
    """How an oracle with another tokenizer than the policy's reads conversations; None where they share one.

    Args:
        settings: the run's settings.
        tokenizer: the policy's, as the host's template left it.
        model_args: the host's model arguments.
        data_args: the host's data arguments; its ``cutoff_len`` counts in the oracle's tokens here.

    Raises:
        SepoError: a model is missing, oracle and base have different tokenizers, or there is no chat template.
    """
    if settings.oracle is None:
        return None
    oracle, base = settings.oracle.oracle, settings.oracle.base
    theirs = own_tokenizer(oracle, key="oracle_model", model_args=model_args)
    if differing_token(tokenizer, theirs) is None:
        return None
    check_tokenizers(theirs, base, key="oracle_base_model", model_args=model_args, owner="the oracle")
    limits = [
        max_positions(spec, key=key, model_args=model_args)
        for key, spec in (("oracle_model", oracle), ("oracle_base_model", base))
    ]
    return ChatReader(
        theirs,
        name=f"oracle_model '{oracle.model}'",
        chat_template=adapter_template(oracle),
        max_tokens=min(data_args.cutoff_len, *(limit for limit in limits if limit)),
    )


def adapter_template(oracle: ModelSpec) -> str | None:
    """The chat template that was saved with an oracle's last adapter that has one: with it the oracle was trained.

    Raises:
        SepoError: the oracle's folder or an adapter's is missing.
    """
    _, adapters = spec_folders(oracle, key="oracle_model")
    for folder in reversed(adapters):
        if (folder / "chat_template.jinja").is_file():
            return (folder / "chat_template.jinja").read_text(encoding="utf-8")
        saved = _saved_template(folder / "tokenizer_config.json")
        if saved:
            return saved
    return None


def _saved_template(path: Path) -> str | None:
    if not path.is_file():
        return None
    template = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
    return template if isinstance(template, str) else None


class ProjectedScorer(OracleScores):
    """Scores of an oracle with another tokenizer than the policy's.

    The oracle reads each row's conversation in its own chat template. The store keeps a number per token of the
    oracle, and knows nothing of the policy: another policy, template or truncation on its side finds it again. On
    reading, the scores are projected onto the policy's tokens, then cut as the policy's response was.

    Args:
        settings: the run's settings, with an oracle.
        reader: the oracle's, from ``oracle_reader``.
        tokenizer: the policy's.
        place: places the policy's tokens in an answer's text.
        model_args: the host's model arguments.
        training_args: the host's training arguments (device, ranks).
    """

    def __init__(
        self,
        settings: RunSettings,
        *,
        reader: ChatReader,
        tokenizer: Any,
        place: PlaceResponse,
        model_args: Any,
        training_args: Any,
    ) -> None:
        assert settings.oracle is not None
        identity = {
            "scorer": "oracle",
            **oracle_identity(settings.oracle),
            "reads": _reader_identity(reader),
            "compute_dtype": str(model_args.compute_dtype).removeprefix("torch."),
        }
        super().__init__(
            settings, identity=identity, say=self._oracle_texts, model_args=model_args, training_args=training_args
        )
        self.reader, self.tokenizer = reader, tokenizer
        self._place = place
        self._said = False

    def attach(self, dataset: Dataset, *, name: str) -> Dataset:
        """Compute the scores of a data set, or find their store, and join them, projected, to its rows.

        Raises:
            SepoError: the rows carry no conversation, a response cannot be placed in its text, or the store cannot be
                written.
        """
        check_conversations(dataset, name=name, reader="for the oracle, whose tokenizer is another, to read")
        if not self._said:
            self._say(dataset)
            self._said = True
        scored = super().attach(dataset, name=name)
        cut = {"prompt": 0, "response": 0}
        projected = mapped(scored, lambda rows: self._projected(rows, cut), f"projected {self.stores[name]}")
        if any(cut.values()):
            logger.warning(
                "%s: of %d conversations with an answer, %d lost their beginning and %d the end of their answer, whose "
                "tokens have no score (0): the oracle reads %d tokens (cutoff_len, its positions).",
                name, 2 * len(dataset), cut["prompt"], cut["response"], self.reader.max_tokens,
            )  # fmt: skip
        return projected

    def _digest(self, dataset: Dataset) -> str:
        digest = hashlib.sha256(b"conversations")
        add_conversations(digest, dataset)
        return digest.hexdigest()

    def _oracle_texts(self, rows: Rows) -> list[RowText]:
        """What the rows say in the oracle's tokens, cut as the oracle read them."""
        said = []
        for text in rows[CONVERSATION]:
            conversation = json.loads(text)
            ids = [read.input_ids[read.response_start :] for read in self.reader.read(conversation)]
            said.append(RowText(prompt_of(conversation), *(answer_text(self.reader.texts, answer) for answer in ids)))
        return said

    def _sequences(self, rows: Mapping[str, list[Any]]) -> list[ScoredSequence]:
        read = [self.reader.read(json.loads(text)) for text in rows[CONVERSATION]]
        return [
            ScoredSequence(answers[side].input_ids, answers[side].response_start)
            for side in range(len(SIDES))
            for answers in read
        ]

    def _projected(self, rows: Rows, cut: dict[str, int]) -> dict[str, list[np.ndarray]]:
        """The scores of some rows on the policy's tokens."""
        columns: dict[str, list[np.ndarray]] = {column: [] for column in SCORE_COLUMNS}
        for index, text in enumerate(rows[CONVERSATION]):
            conversation = json.loads(text)
            for side, column, read in zip(SIDES, SCORE_COLUMNS, self.reader.read(conversation), strict=True):
                labels = rows[f"{side}_labels"][index]
                kept, target = self._placed(conversation, labels, side)
                scores = project_scores(rows[column][index], read.spans, target)[: len(kept)]
                # A response at the very start of a row: its first token has no log-probability under the policy.
                first = 0 if labels[0] == IGNORE_INDEX else 1
                columns[column].append(np.asarray(scores[first:], dtype=np.float32))
                cut["prompt"] += read.prompt_cut
                cut["response"] += read.response_cut
        return columns

    def _placed(self, conversation: Mapping[str, Any], labels: list[int], side: str) -> tuple[list[int], TokenSpans]:
        """The policy's tokens of a response, and the places of the whole response's."""
        kept = [label for label in labels if label != IGNORE_INDEX]
        spans = self._place(conversation, kept, side)
        if spans is None:
            raise SepoError(
                f"the policy's tokens of the {side} response {conversation['answers'][SIDES.index(side)][:60]!r} do "
                "not spell its text (a template or tokenizer that rewrites it), so an oracle's scores cannot be "
                "projected onto them: take an oracle with the policy's tokenizer, or leave the row out."
            )
        return kept, spans

    def _say(self, dataset: Dataset) -> None:
        """Say once that scores are projected, and how well the two tokenizers agree on a sample."""
        rows = dataset[: min(_SAMPLE, len(dataset))]
        same = boundaries = 0
        for index, text in enumerate(rows[CONVERSATION]):
            conversation = json.loads(text)
            reads: list[ReadResponse] = self.reader.read(conversation)
            for side, read in zip(SIDES, reads, strict=True):
                _, target = self._placed(conversation, rows[f"{side}_labels"][index], side)
                shared, inside = shared_boundaries(read.spans, target)
                same, boundaries = same + shared, boundaries + inside
        ours, theirs = len(self.tokenizer.get_vocab()), len(self.reader.tokenizer.get_vocab())
        logger.info(
            "the oracle's tokenizer is not the policy's (%s tokens, not %s): it reads the conversations in its own "
            "chat template, and its scores are projected onto the policy's tokens by characters. %.0f %% of the "
            "policy's token boundaries are the oracle's too (%d pairs).",
            f"{theirs:,}", f"{ours:,}", 100 * same / max(1, boundaries), len(rows[CONVERSATION]),
        )  # fmt: skip


def _reader_identity(reader: ChatReader) -> dict[str, Any]:
    """What the oracle's tokens of a text depend on."""
    backend = getattr(reader.tokenizer, "backend_tokenizer", None)
    words = sorted(reader.tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    rules = json.dumps(words) if backend is None else backend.to_str()
    return {
        "tokenizer": hashlib.sha256(rules.encode()).hexdigest(),
        "chat_template": hashlib.sha256(json.dumps(reader.template).encode()).hexdigest(),
        "max_tokens": reader.max_tokens,
    }
