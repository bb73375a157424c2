"""What a response's tokens say: the text of each, the characters that it covers, and the step that it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sepo.errors import SepoError
from sepo.tokens.steps import step_ids

_BROKEN = "\ufffd"
"""What a tokenizer decodes a part of a character to."""

_LONGEST_CHARACTER = 8
"""Tokens that one character is looked for in."""


class TokenTexts:
    """Texts of tokens, by id, each decoded once.

    A token is decoded behind a word that is then taken away, for some tokenizers drop the space of a first token.

    Args:
        tokenizer: one of transformers', any kind that can decode.

    Raises:
        SepoError: the tokenizer encodes a letter to nothing.
    """

    def __init__(self, tokenizer: Any) -> None:
        anchor = tokenizer.encode("a", add_special_tokens=False)
        if not anchor:
            raise SepoError("the tokenizer encodes 'a' to no token; steps and spans need one that decodes text.")
        self._tokenizer, self._anchor = tokenizer, list(anchor)
        self._before = len(self._decode([]))
        self._special = frozenset(tokenizer.all_special_ids)
        self._texts: dict[int, str] = {}

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; a part of a character is U+FFFD."""
        missing = set(ids) - self._texts.keys()
        self._texts |= {token: self._after([token]) for token in missing}
        return [self._texts[token] for token in ids]

    def steps(self, ids: Sequence[int]) -> list[int]:
        """The number of each token's line or sentence; special tokens belong to the step before them."""
        pieces = self.pieces(ids)
        return step_ids(["" if token in self._special else piece for token, piece in zip(ids, pieces, strict=True)])

    def offsets(self, ids: Sequence[int], text: str) -> list[tuple[int, int]] | None:
        """Which characters of a response's text each of its tokens covers.

        The tokens that make up one character cover it all. Tokens outside the text (a template's, an end of turn) cover
        nothing: their end is their start. A literal U+FFFD in the text is covered by the last of its tokens only.

        Args:
            ids: the response's tokens, all of them.
            text: the response as the data set has it.

        Returns:
            (start, end) per token, or None where the decoded tokens do not contain the text.
        """
        covered, decoded = self._laid_out(ids)
        begin = 0 if decoded.startswith(text) else decoded.rfind(text)
        if begin < 0:
            return None
        last = len(text)
        moved = ((start - begin, end - begin) for start, end in covered)
        return [(min(max(start, 0), last), min(max(end, 0), last)) for start, end in moved]

    def spelled(self, ids: Sequence[int]) -> str:
        """The text of tokens that follow others; a part of a character is U+FFFD."""
        return self._laid_out(ids)[1]

    def _laid_out(self, ids: Sequence[int]) -> tuple[list[tuple[int, int]], str]:
        """The characters of each token in the text of all, and that text."""
        pieces, covered, text = self.pieces(ids), [], ""
        index = 0
        while index < len(ids):
            stop = index + 1
            piece = pieces[index]
            if _BROKEN in piece:
                stop, piece = self._whole_character(ids, index)
            covered += [(len(text), len(text) + len(piece))] * (stop - index)
            text += piece
            index = stop
        return covered, text

    def _whole_character(self, ids: Sequence[int], start: int) -> tuple[int, str]:
        """The first index after the tokens from ``start`` that decode to whole characters, and these."""
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
