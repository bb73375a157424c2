"""Conversations encoded for another model, in its tokenizer and chat template, with the span of each response token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sepo.errors import SepoError
from sepo.text.chat_rendering import ChatRenderer
from sepo.text.projection import TokenSpans
from sepo.text.token_texts import TokenTexts, clipped

_PLACEHOLDER = "@@ the answer @@"
"""Replaces the response while the template is rendered."""

_EDGE = "\t"
"""Surrounds the placeholder: templates that trim turns remove it, and no template writes it."""


@dataclass(frozen=True)
class ReadResponse:
    """One conversation with its response, as token ids.

    Args:
        input_ids: the prompt, the response, and the end of its turn.
        response_start: index of the first response token.
        spans: character spans of the tokens from ``response_start`` on in the response text.
        prompt_cut: whether the beginning of the conversation was truncated.
        response_cut: whether the end of the response was truncated.
    """

    input_ids: list[int]
    response_start: int
    spans: TokenSpans
    prompt_cut: bool = False
    response_cut: bool = False


class ChatReader:
    """Encoder of conversations in a tokenizer's chat template.

    The response begins where the template writes its text: text that a template adds before every response (an empty
    thinking block) belongs to the prompt. Conversations that are too long lose tokens after the first one; the end of
    the response is only truncated if the response alone is too long.

    Args:
        tokenizer: a transformers tokenizer.
        name: name of the model in error messages.
        chat_template: replaces the tokenizer's chat template; None to use that.
        max_tokens: maximum number of tokens of a conversation with its response, at least 2, or None for no limit.

    Attributes:
        texts: texts of the tokenizer's tokens.

    Raises:
        SepoError: if there is no chat template.
    """

    def __init__(
        self, tokenizer: Any, *, name: str, chat_template: str | None = None, max_tokens: int | None = None
    ) -> None:
        self.tokenizer, self.name, self.max_tokens = tokenizer, name, max_tokens
        self.chat_template = chat_template
        if not chat_template and not getattr(tokenizer, "chat_template", None):
            raise SepoError(
                f"{name} has another tokenizer than the policy and no chat template, which is needed to encode the "
                "conversations: set tokenizer.chat_template to the one that it was trained with and save the tokenizer "
                "with its weights (save_pretrained), or use a model with the policy's tokenizer."
            )
        self._renderer = ChatRenderer(tokenizer, name=name, chat_template=chat_template)
        self.texts = TokenTexts(tokenizer)

    @property
    def template(self) -> Any:
        """The chat template in use (a string, or strings by name)."""
        return self.chat_template or self.tokenizer.chat_template

    def read(self, conversation: Mapping[str, Any]) -> list[ReadResponse]:
        """Encode a conversation with each of its responses.

        Args:
            conversation: ``messages`` (the turns before the response: ``role``, ``content``), ``answers`` (the response
                texts), and ``system`` and ``tools``, empty if there are none.

        Raises:
            SepoError: if the template rejects the conversation, or a response cannot be recovered from its tokens.
        """
        before, after = self._around(conversation)
        trims = [not edge for edge in (before.endswith(_EDGE), after.startswith(_EDGE))]
        before, after = before.removesuffix(_EDGE), after.removeprefix(_EDGE)
        return [self._read(before, response, after, trims) for response in conversation["answers"]]

    def _read(self, before: str, whole: str, after: str, trims: Sequence[bool]) -> ReadResponse:
        text = whole.lstrip() if trims[0] else whole
        skipped = len(whole) - len(text)
        text = text.rstrip() if trims[1] else text
        ids, start, offsets = self._encoded(before, text, after)
        response = ids[start:]
        spans = self.texts.spans(response, text)
        if spans is None and offsets is not None:
            moved = clipped(offsets[start:], begin=len(before), length=len(text))
            spans = self.texts.with_end_of_turn(response, moved)
        if spans is None:
            raise SepoError(
                f"the tokens of {self.name} do not decode to the response {whole[:60]!r} and its tokenizer "
                f"({type(self.tokenizer).__name__}) returns no offsets, so its scores cannot be aligned with the text: "
                "use a model with a fast tokenizer."
            )
        return self._fitted(ids, start, moved_spans(spans, skipped, len(text), len(whole)))

    def _encoded(self, before: str, text: str, after: str) -> tuple[list[int], int, list[tuple[int, int]] | None]:
        """Return token ids, the index of the first response token, and character offsets if the tokenizer has them."""
        if not getattr(self.tokenizer, "is_fast", False):
            prompt, rest = (
                list(self.tokenizer.encode(part, add_special_tokens=False)) for part in (before, text + after)
            )
            return prompt + rest, max(1, len(prompt)), None
        encoded = self.tokenizer(before + text + after, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
        start = next((index for index, (_, end) in enumerate(offsets) if end > len(before)), len(ids))
        return ids, max(1, start), offsets

    def _fitted(self, ids: list[int], start: int, spans: TokenSpans) -> ReadResponse:
        limit, response = self.max_tokens, len(ids) - start
        if limit is None or len(ids) <= limit:
            return ReadResponse(ids, start, spans)
        if response < limit:
            # The first token is kept: models that expect a beginning-of-text token fail without it.
            return ReadResponse([ids[0], *ids[len(ids) - limit + 1 :]], limit - response, spans, prompt_cut=True)
        kept = limit - 1
        ends = spans.end_of_turn if spans.end_of_turn is not None and spans.end_of_turn < kept else None
        cut = TokenSpans(spans.offsets[:kept], ends)
        return ReadResponse([ids[0], *ids[start : start + kept]], 1, cut, prompt_cut=start > 1, response_cut=True)

    def _around(self, conversation: Mapping[str, Any]) -> tuple[str, str]:
        """Return the text that the template writes before and after the response."""
        turns = [*conversation["messages"], {"role": "assistant", "content": f"{_EDGE}{_PLACEHOLDER}{_EDGE}"}]
        whole = self._renderer.text(turns, system=conversation["system"], tools=conversation["tools"])
        before, found, after = whole.rpartition(_PLACEHOLDER)
        if not found:
            raise SepoError(
                f"the chat template of {self.name} does not write the assistant's response unchanged, so its position "
                "in the prompt is unknown: set another chat_template in its tokenizer."
            )
        return before, after


def moved_spans(spans: TokenSpans, skipped: int, length: int, whole: int) -> TokenSpans:
    """Map spans in a trimmed text to spans in the whole text; tokens after the trimmed text are placed at the end.

    Args:
        spans: spans in the trimmed text.
        skipped: number of characters trimmed at the beginning.
        length: number of characters of the trimmed text.
        whole: number of characters of the whole text.
    """
    if not skipped and length == whole:
        return spans
    last = max((index for index, (start, end) in enumerate(spans.offsets) if end > start), default=-1)
    offsets = [(start + skipped, end + skipped) for start, end in spans.offsets[: last + 1]]
    return TokenSpans((*offsets, *[(whole, whole)] * (len(spans.offsets) - last - 1)), spans.end_of_turn)
