"""Scores from an oracle with another tokenizer: it reads conversations, and its scores are projected by characters."""

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
from sepo.recipe.model_specs import ModelSpec
from sepo.recipe.settings import RunSettings
from sepo.score_store import RowText
from sepo.scoring.hub import HubAccess, hub_access
from sepo.scoring.live_columns import Rows, mapped
from sepo.scoring.model_files import check_tokenizers, differing_token, max_positions, own_tokenizer, spec_files
from sepo.scoring.models import precision
from sepo.scoring.oracle import OracleScores, oracle_identity
from sepo.scoring.row_texts import prompt_of, response_text
from sepo.scoring.stored_columns import reader_identity
from sepo.selection import SIDES
from sepo.text.chat_encoding import ChatReader, ReadResponse
from sepo.text.conversations import CONVERSATION, add_conversations, check_conversations
from sepo.text.projection import TokenSpans, project_scores, shared_boundaries
from sepo.training.selection_columns import IGNORE_INDEX, SCORE_COLUMNS

logger = logging.getLogger(__name__)

_SAMPLE = 100
"""Number of rows over which shared token boundaries are counted."""

PlaceResponse = Callable[[Mapping[str, Any], list[int], str], TokenSpans | None]
"""Function of a conversation, the policy's tokens of one of its responses after truncation, and the side (``chosen`` or
``rejected``). Returns the character spans of the whole response's tokens in its text, or None if the tokens do not
spell the text. Hosts encode responses differently."""


def oracle_reader(settings: RunSettings, *, tokenizer: Any, model_args: Any, data_args: Any) -> ChatReader | None:
    """Return the conversation reader of an oracle with another tokenizer than the policy's; None if they share one.

    Args:
        settings: the run's settings.
        tokenizer: the policy's tokenizer, with the changes of the host's template.
        model_args: the host's model arguments.
        data_args: the host's data arguments; its ``cutoff_len`` counts the oracle's tokens here.

    Raises:
        SepoError: If a model is missing, oracle and base have different tokenizers, or there is no chat template.
    """
    if settings.oracle is None:
        return None
    oracle, base = settings.oracle.oracle, settings.oracle.base
    access = hub_access(model_args)
    theirs = own_tokenizer(oracle, key="oracle_model", access=access)
    if differing_token(tokenizer, theirs) is None:
        return None
    check_tokenizers(theirs, base, key="oracle_base_model", access=access, owner="the oracle")
    limits = [
        max_positions(spec, key=key, access=access)
        for key, spec in (("oracle_model", oracle), ("oracle_base_model", base))
    ]
    return ChatReader(
        theirs,
        name=f"oracle_model '{oracle.model}'",
        chat_template=adapter_template(oracle, access=access),
        max_tokens=min(data_args.cutoff_len, *(limit for limit in limits if limit)),
    )


def adapter_template(oracle: ModelSpec, *, access: HubAccess) -> str | None:
    """Return the chat template saved with the oracle's last adapter that has one: the oracle was trained with it.

    Raises:
        SepoError: If the directory of the oracle or of an adapter is missing.
    """
    _, adapters = spec_files(oracle, key="oracle_model", access=access, need="tokenizer")
    for folder in (adapter.folder for adapter in reversed(adapters)):
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
    """Scores from an oracle with another tokenizer than the policy's.

    The oracle reads each row's conversation in its own chat template. The store holds one score per token of the oracle
    and does not depend on the policy: a run with another policy, template or truncation finds it again. When the store
    is read, the scores are projected onto the policy's tokens, then truncated like the policy's response.

    Args:
        settings: the run's settings, with an oracle.
        reader: the oracle's reader, from ``oracle_reader``.
        tokenizer: the policy's tokenizer.
        place: locates the policy's tokens in a response's text.
        model_args: the host's model arguments.
        training_args: the host's training arguments (device, ranks).
        centered: whether the scores are centered by what the base expects.
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
        centered: bool = False,
    ) -> None:
        assert settings.oracle is not None
        identity = {
            "scorer": "oracle",
            **oracle_identity(settings.oracle, access=hub_access(model_args), centered=centered),
            "reads": _reader_identity(reader),
            **precision(model_args),
        }
        super().__init__(
            settings,
            identity=identity,
            row_texts=self._oracle_texts,
            model_args=model_args,
            training_args=training_args,
            centered=centered,
        )
        self.reader, self.tokenizer = reader, tokenizer
        self._place = place
        self._overlap_logged = False

    def attach(self, dataset: Dataset, *, name: str) -> Dataset:
        """Compute the scores of a data set, or find their store, and join the projected scores to its rows.

        Raises:
            SepoError: If the rows have no conversation, a response cannot be located in its text, or the store cannot
                be written.
        """
        check_conversations(dataset, name=name, reader="for the oracle, whose tokenizer is another, to read")
        if not self._overlap_logged:
            self._log_overlap(dataset)
            self._overlap_logged = True
        scored = super().attach(dataset, name=name)
        cut = {"prompt": 0, "response": 0}
        projected = mapped(scored, lambda rows: self._projected(rows, cut), f"projected {self.stores[name]}")
        if any(cut.values()):
            logger.warning(
                "%s: of %d conversations with a response, %d were truncated at the beginning and %d at the end of the "
                "response, whose tokens get the score 0: the oracle reads %d tokens (cutoff_len, its positions).",
                name, 2 * len(dataset), cut["prompt"], cut["response"], self.reader.max_tokens,
            )  # fmt: skip
        return projected

    def _digest(self, dataset: Dataset) -> str:
        digest = hashlib.sha256(b"conversations")
        add_conversations(digest, dataset)
        return digest.hexdigest()

    def _oracle_texts(self, rows: Rows) -> list[RowText]:
        """Return the texts of the rows in the oracle's tokens, truncated as the oracle read them."""
        texts = []
        for text in rows[CONVERSATION]:
            conversation = json.loads(text)
            ids = [read.input_ids[read.response_start :] for read in self.reader.read(conversation)]
            texts.append(
                RowText(prompt_of(conversation), *(response_text(self.reader.texts, response) for response in ids))
            )
        return texts

    def _sequences(self, rows: Mapping[str, list[Any]]) -> list[ScoredSequence]:
        read = [self.reader.read(json.loads(text)) for text in rows[CONVERSATION]]
        return [
            ScoredSequence(responses[side].input_ids, responses[side].response_start)
            for side in range(len(SIDES))
            for responses in read
        ]

    def _projected(self, rows: Rows, cut: dict[str, int]) -> dict[str, list[np.ndarray]]:
        """Project the scores of some rows onto the policy's tokens."""
        columns: dict[str, list[np.ndarray]] = {column: [] for column in SCORE_COLUMNS}
        for index, text in enumerate(rows[CONVERSATION]):
            conversation = json.loads(text)
            for side, column, read in zip(SIDES, SCORE_COLUMNS, self.reader.read(conversation), strict=True):
                labels = rows[f"{side}_labels"][index]
                kept, target = self._placed(conversation, labels, side)
                scores = project_scores(rows[column][index], read.spans, target)[: len(kept)]
                # If the response starts the row, the policy has no log-probability for its first token.
                first = 0 if labels[0] == IGNORE_INDEX else 1
                columns[column].append(np.asarray(scores[first:], dtype=np.float32))
                cut["prompt"] += read.prompt_cut
                cut["response"] += read.response_cut
        return columns

    def _placed(self, conversation: Mapping[str, Any], labels: list[int], side: str) -> tuple[list[int], TokenSpans]:
        """Return the policy's tokens of a response, and the character spans of the whole response's tokens."""
        kept = [label for label in labels if label != IGNORE_INDEX]
        spans = self._place(conversation, kept, side)
        if spans is None:
            raise SepoError(
                f"the policy's tokens of the {side} response {conversation['answers'][SIDES.index(side)][:60]!r} do "
                "not spell its text (the template or tokenizer rewrites it), so an oracle's scores cannot be "
                "projected onto them: use an oracle with the policy's tokenizer, or remove the row."
            )
        return kept, spans

    def _log_overlap(self, dataset: Dataset) -> None:
        """Log that scores are projected, and the share of token boundaries that the tokenizers share on a sample."""
        rows = dataset[range(0, len(dataset), max(1, len(dataset) // _SAMPLE))[:_SAMPLE]]
        same = boundaries = 0
        for index, text in enumerate(rows[CONVERSATION]):
            conversation = json.loads(text)
            reads: list[ReadResponse] = self.reader.read(conversation)
            for side, read in zip(SIDES, reads, strict=True):
                _, target = self._placed(conversation, rows[f"{side}_labels"][index], side)
                shared, inside = shared_boundaries(read.spans, target)
                same, boundaries = same + shared, boundaries + inside
        policy, oracle = len(self.tokenizer.get_vocab()), len(self.reader.tokenizer.get_vocab())
        logger.info(
            "the oracle's tokenizer is not the policy's (%s tokens, not %s): it reads the conversations in its own "
            "chat template, and its scores are projected onto the policy's tokens by characters. %.0f %% of the "
            "policy's token boundaries are also boundaries of the oracle's tokens (%d pairs).",
            f"{oracle:,}", f"{policy:,}", 100 * same / max(1, boundaries), len(rows[CONVERSATION]),
        )  # fmt: skip


def _reader_identity(reader: ChatReader) -> dict[str, Any]:
    """Return all that the oracle's tokenization of a conversation depends on."""
    return {**reader_identity(reader.tokenizer, template=reader.template), "max_tokens": reader.max_tokens}
