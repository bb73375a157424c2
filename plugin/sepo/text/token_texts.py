"""Texts of a response's tokens: the text of each, the characters that it covers, and its step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from sepo.errors import SepoError
from sepo.text.projection import TokenSpans
from sepo.text.steps import step_ids
from sepo.text.template_tokens import TemplateTokens

_BROKEN = "\ufffd"
"""The replacement character, to which a tokenizer decodes a part of a character."""

_NONE: frozenset[int] = frozenset()

_LONGEST_CHARACTER = 8
"""Maximum number of tokens that are tried as one character."""


class TokenTexts:
    """Texts of tokens, by id, each decoded once.

    A token is decoded after a word that is then removed, since some tokenizers drop the space of a first token.

    Args:
        tokenizer: any transformers tokenizer that can decode.

    Raises:
        SepoError: if the tokenizer encodes a letter to no token.
    """

    def __init__(self, tokenizer: Any) -> None:
        anchor = tokenizer.encode("a", add_special_tokens=False)
        if not anchor:
            raise SepoError(
                "the tokenizer encodes 'a' to no token, expected at least one: steps and spans need a text tokenizer."
            )
        self._tokenizer, self._anchor = tokenizer, list(anchor)
        self._before = len(self._decode([]))
        self._special = frozenset(tokenizer.all_special_ids)
        self._texts: dict[int, str] = {}
        self._parts: set[int] = set()  # ids of tokens that are, or end in, a part of a character

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token; a part of a character is U+FFFD."""
        missing = set(ids).difference(self._texts)  # not a key view, which would be copied as a whole
        self._texts |= {token: self._after([token]) for token in missing}
        self._parts |= {token for token in missing if _BROKEN in self._texts[token]}
        return list(map(self._texts.__getitem__, ids))

    def spelling(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token such that they join to the text.

        Of the tokens that make up one character the first has the character and the others are empty.
        """
        return self._spelling(ids, self.pieces(ids))

    def spelling_and_steps(self, ids: Sequence[int]) -> tuple[list[str], list[tuple[int, str]]]:
        """Return :meth:`spelling`, and (index, text) of each token for which :meth:`steps` uses another text."""
        pieces = self.pieces(ids)
        spelled = self._spelling(ids, pieces)
        odd = self._special if self._parts.isdisjoint(ids) else self._special | self._parts
        read = ((i, "" if token in self._special else pieces[i]) for i, token in enumerate(ids) if token in odd)
        return spelled, [(index, text) for index, text in read if text != spelled[index]]

    def _spelling(self, ids: Sequence[int], pieces: list[str]) -> list[str]:
        if self._parts.isdisjoint(ids):
            return pieces
        spelled: list[str] = []
        while len(spelled) < len(ids):
            index = len(spelled)
            stop, piece = index + 1, pieces[index]
            if ids[index] in self._parts:
                stop, piece = self._whole_character(ids, index)
            spelled += [piece, *[""] * (stop - index - 1)]
        return spelled

    def plain(self, ids: Sequence[int]) -> str:
        """Return a prompt as readable text: special tokens are removed, with a line break in their place."""
        plain = ""
        for special, run in groupby(ids, self._special.__contains__):
            if not special:
                text = "".join(self.spelling(list(run)))
                plain += text if not plain or plain.endswith("\n") or text.startswith("\n") else f"\n{text}"
        return plain.strip()

    def steps(self, ids: Sequence[int]) -> list[int]:
        """Return the number of each token's line or sentence; special tokens belong to the step before them."""
        return step_ids(self._step_pieces(ids))

    def offsets(self, ids: Sequence[int], text: str) -> list[tuple[int, int]] | None:
        """Return the characters of a response's text that each of its tokens covers.

        Each token of those that make up one character covers the whole character. Tokens outside the text (of a
        template, an end of turn) cover nothing: their end is their start. A literal U+FFFD in the text is covered by
        the last of its tokens only.

        The text is first searched in the decoded tokens. If these differ from it (lower case, lost spaces), the
        tokenizer's offsets are used, provided that its encoding of the text is contained in these tokens.

        Args:
            ids: all tokens of the response.
            text: the response text in the data set.

        Returns:
            (start, end) per token, or None if the tokens contain the text in neither way.
        """
        # Special tokens have no text, unless the text itself contains their names.
        for silent in (self._special, _NONE):
            covered, decoded = self._laid_out(ids, silent)
            begin = 0 if decoded.startswith(text) else decoded.rfind(text)
            if begin >= 0:
                return clipped(covered, begin=begin, length=len(text))
        return self._encoded_offsets(ids, text)

    def spans(self, ids: Sequence[int], text: str) -> TokenSpans | None:
        """Return the spans of a response's tokens in its text and the token that ends the turn; None as ``offsets``."""
        offsets = self.offsets(ids, text)
        return None if offsets is None else self.with_end_of_turn(ids, offsets)

    def with_end_of_turn(self, ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> TokenSpans:
        """Find the token that ends the turn: the first special token after the text, or else the first token there."""
        last = max((index for index, (start, end) in enumerate(offsets) if end > start), default=-1)
        tail = range(last + 1, len(ids))
        special = [index for index in tail if ids[index] in self._special]
        return TokenSpans(tuple(offsets), next(iter(special or tail), None))

    def _step_pieces(self, ids: Sequence[int]) -> list[str]:
        return ["" if token in self._special else piece for token, piece in zip(ids, self.pieces(ids), strict=True)]

    def _encoded_offsets(self, ids: Sequence[int], text: str) -> list[tuple[int, int]] | None:
        """Return the tokenizer's offsets, if it has them and its encoding of the text is a run in ``ids``; or None."""
        if not text or not getattr(self._tokenizer, "is_fast", False):
            return None
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        wanted, found = list(encoded["input_ids"]), list(ids)
        for begin in range(len(found) - len(wanted) + 1 if wanted else 0):
            if found[begin : begin + len(wanted)] == wanted:
                after = len(found) - begin - len(wanted)
                own = [(start, end) for start, end in encoded["offset_mapping"]]
                return [(0, 0)] * begin + own + [(len(text), len(text))] * after
        return None

    def spelled(self, ids: Sequence[int]) -> str:
        """Return the text of tokens that follow others; a part of a character is U+FFFD."""
        return self._laid_out(ids)[1]

    def _laid_out(self, ids: Sequence[int], silent: frozenset[int] = _NONE) -> tuple[list[tuple[int, int]], str]:
        """Return the characters of each token in the joined text, and that text; ``silent`` tokens have none."""
        pieces, covered, parts, length = self.pieces(ids), [], [], 0
        index = 0
        while index < len(ids):
            stop = index + 1
            piece = "" if ids[index] in silent else pieces[index]
            if _BROKEN in piece:
                stop, piece = self._whole_character(ids, index)
            covered += [(length, length + len(piece))] * (stop - index)
            parts.append(piece)
            length += len(piece)
            index = stop
        return covered, "".join(parts)

    def _whole_character(self, ids: Sequence[int], start: int) -> tuple[int, str]:
        """Return the end of the shortest run from ``start`` that decodes to whole characters, and these."""
        for stop in range(start + 2, min(len(ids), start + _LONGEST_CHARACTER) + 1):
            piece = self._after(ids[start:stop])
            if _BROKEN not in piece:
                return stop, piece
        return start + 1, self._texts[ids[start]]

    def _after(self, ids: Sequence[int]) -> str:
        return self._decode(ids)[self._before :]

    def _decode(self, ids: Sequence[int]) -> str:
        words = [*self._anchor, *ids]
        return str(self._tokenizer.decode(words, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def clipped(offsets: Iterable[tuple[int, int]], *, begin: int, length: int) -> list[tuple[int, int]]:
    """Map offsets in a text to offsets in its part of ``length`` characters from ``begin``."""
    moved = ((start - begin, end - begin) for start, end in offsets)
    return [(min(max(start, 0), length), min(max(end, 0), length)) for start, end in moved]


def template_texts(template: TemplateTokens, tokenizer: Any) -> dict[str, Any] | None:
    """Return the tokens of a chat template by their texts, for files of a run; None if it writes none."""
    return template.as_texts(TokenTexts(tokenizer).spelling) if template else None
