"""Conversations as another model reads them: in its own tokenizer and chat template, each response token placed."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from sepo.errors import SepoError
from sepo.text.projection import TokenSpans
from sepo.text.token_texts import TokenTexts, clipped

_ANSWER = "@@ the answer @@"
"""Stands for the answer while the template is rendered."""

_EDGE = "\t"
"""Around it: a template that trims its turns takes these away, and none writes them."""

_DATE = datetime.datetime(2024, 7, 26)
"""What templates that write today's date are told (it is Llama 3's own default): scores do not depend on the day."""

_ROLES = {"observation": "tool", "function": "assistant"}


@dataclass(frozen=True)
class ReadResponse:
    """One conversation with its answer, as token ids.

    Args:
        input_ids: what came before the answer, the answer, and what ends the turn.
        response_start: index of the first token of the answer.
        spans: the places of the tokens from there on in the answer's text.
        prompt_cut: whether the conversation lost its beginning.
        response_cut: whether the answer lost its end.
    """

    input_ids: list[int]
    response_start: int
    spans: TokenSpans
    prompt_cut: bool = False
    response_cut: bool = False


class ChatReader:
    """Encodes conversations in a tokenizer's chat template.

    The answer begins where the template writes its text: words that a template puts before every answer (an empty
    thought) belong to the prompt. What does not fit loses tokens after the first one of the conversation; the answer
    loses its end only where it alone is too long.

    Args:
        tokenizer: one of transformers'.
        name: what errors call the model.
        chat_template: in place of the tokenizer's own, or None.
        max_tokens: most tokens of a conversation with its answer, at least 2, or None for no limit.

    Attributes:
        texts: of the tokenizer's tokens.

    Raises:
        SepoError: there is no chat template.
    """

    def __init__(
        self, tokenizer: Any, *, name: str, chat_template: str | None = None, max_tokens: int | None = None
    ) -> None:
        self.tokenizer, self.name, self.max_tokens = tokenizer, name, max_tokens
        self.chat_template = chat_template
        if not chat_template and not getattr(tokenizer, "chat_template", None):
            raise SepoError(
                f"{name} has a tokenizer of its own and no chat template, in which it would read the conversations: "
                "set tokenizer.chat_template to the one that it was trained with and save the tokenizer beside its "
                "weights (save_pretrained), or take a model with the policy's tokenizer."
            )
        self.texts = TokenTexts(tokenizer)

    @property
    def template(self) -> Any:
        """The chat template in use (a text, or texts by name)."""
        return self.chat_template or self.tokenizer.chat_template

    def read(self, conversation: Mapping[str, Any]) -> list[ReadResponse]:
        """Encode a conversation with each of its answers.

        Args:
            conversation: ``messages`` (the turns up to the answer: ``role``, ``content``), ``answers`` (texts), and
                ``system`` and ``tools``, empty where there are none.

        Raises:
            SepoError: the template refuses the conversation, or the tokenizer's tokens do not spell an answer.
        """
        before, after = self._around(conversation)
        trims = [not edge for edge in (before.endswith(_EDGE), after.startswith(_EDGE))]
        before, after = before.removesuffix(_EDGE), after.removeprefix(_EDGE)
        return [self._read(before, answer, after, trims) for answer in conversation["answers"]]

    def _read(self, before: str, answer: str, after: str, trims: Sequence[bool]) -> ReadResponse:
        text = answer.lstrip() if trims[0] else answer
        skipped = len(answer) - len(text)
        text = text.rstrip() if trims[1] else text
        ids, start, offsets = self._encoded(before, text, after)
        response = ids[start:]
        spans = self.texts.spans(response, text)
        if spans is None and offsets is not None:
            moved = clipped(offsets[start:], begin=len(before), length=len(text))
            spans = self.texts.with_end_of_turn(response, moved)
        if spans is None:
            raise SepoError(
                f"the tokens of {self.name} do not spell the answer {answer[:60]!r} and its tokenizer "
                f"({type(self.tokenizer).__name__}) gives no offsets, so its scores cannot be placed in the text: take "
                "a model with a fast tokenizer."
            )
        return self._fitted(ids, start, moved_spans(spans, skipped, len(text), len(answer)))

    def _encoded(self, before: str, text: str, after: str) -> tuple[list[int], int, list[tuple[int, int]] | None]:
        """Token ids, the first of the answer's, and the characters of each where the tokenizer tells them."""
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
            # The first token stays: models that expect a beginning of text are lost without it.
            return ReadResponse([ids[0], *ids[len(ids) - limit + 1 :]], limit - response, spans, prompt_cut=True)
        kept = limit - 1
        ends = spans.end_of_turn if spans.end_of_turn is not None and spans.end_of_turn < kept else None
        cut = TokenSpans(spans.offsets[:kept], ends)
        return ReadResponse([ids[0], *ids[start : start + kept]], 1, cut, prompt_cut=start > 1, response_cut=True)

    def _around(self, conversation: Mapping[str, Any]) -> tuple[str, str]:
        """What the template writes before and after the answer."""
        turns = [{**turn, "role": _ROLES.get(turn["role"], turn["role"])} for turn in conversation["messages"]]
        turns.append({"role": "assistant", "content": f"{_EDGE}{_ANSWER}{_EDGE}"})
        try:
            tools = json.loads(conversation["tools"]) if conversation["tools"] else None
            whole = self._rendered(turns, conversation["system"], tools)
        except Exception as error:  # templates raise what they like
            reason = str(error).strip().splitlines()[:1]
            raise SepoError(
                f"the chat template of {self.name} refuses the conversation that begins "
                f"{turns[0]['content'][:60]!r}: {' '.join(reason) or type(error).__name__}. Leave the row out, or give "
                "its tokenizer a template that takes such turns."
            ) from error
        before, found, after = whole.rpartition(_ANSWER)
        if not found:
            raise SepoError(
                f"the chat template of {self.name} does not write the assistant's answer as it is, so what the model "
                "would read is not known: give its tokenizer another chat_template."
            )
        return before, after

    def _rendered(self, turns: list[dict[str, str]], system: str, tools: Any) -> str:
        if not system:
            return self._applied(turns, tools)
        try:
            return self._applied([{"role": "system", "content": system}, *turns], tools)
        except TemplateError:  # what `raise_exception` raises, as Gemma's template does for a system turn
            # The first turn then begins with it; what is wrong beside it is refused there.
            first = {**turns[0], "content": f"{system}\n\n{turns[0]['content']}"}
            return self._applied([first, *turns[1:]], tools)

    def _applied(self, turns: list[dict[str, str]], tools: Any) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                turns,
                tools=tools,
                chat_template=self.chat_template,
                tokenize=False,
                strftime_now=_DATE.strftime,
                date_string=_DATE.strftime("%d %b %Y"),
            )
        )


def moved_spans(spans: TokenSpans, skipped: int, length: int, whole: int) -> TokenSpans:
    """The spans in a trimmed text as spans in the text itself; what follows the trimmed one stands at the end.

    Args:
        spans: in the trimmed text.
        skipped: characters that it lost at its beginning.
        length: its own.
        whole: those of the text itself.
    """
    if not skipped and length == whole:
        return spans
    last = max((index for index, (start, end) in enumerate(spans.offsets) if end > start), default=-1)
    offsets = [(start + skipped, end + skipped) for start, end in spans.offsets[: last + 1]]
    return TokenSpans((*offsets, *[(whole, whole)] * (len(spans.offsets) - last - 1)), spans.end_of_turn)
