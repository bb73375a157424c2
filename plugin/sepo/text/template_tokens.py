"""Tokens of a response that its chat template writes, for any text: an empty thought, a line break after the turn.

They say nothing about the response, so they are no candidates of a selection. Only the end of turn is: the policy has
to predict it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any

TEMPLATE_TOKENS = "template_tokens"
"""Key of the tokens by their texts (``TemplateTokens.as_texts``) in the settings of a run and the names of a store."""

Token = int | str


@dataclass(frozen=True)
class TemplateTokens:
    """The tokens around the text of a response, by their ids; in files of a run, by their texts.

    A token is identified by its id and position: an empty thought that the text of a response contains is the same
    tokens as one that the template writes, and is treated alike.

    >>> qwen = TemplateTokens(leading=((1, 2),), trailing=(7, 8))  # an empty thought; end of turn and line break
    >>> qwen.candidates([1, 2, 50, 51, 7, 8])
    [False, False, True, True, True, False]
    >>> qwen.candidates([50, 51, 7]), qwen.candidates([50, 51])  # cut
    ([True, True, True], [True, True])

    Attributes:
        leading: ids of the tokens before the text, not empty; several if they depend on the text (whether it has a
            thought), the longest first.
        trailing: ids of the tokens after the text.
        end: index of the end of turn in ``trailing``.
    """

    leading: tuple[tuple[Token, ...], ...] = ()
    trailing: tuple[Token, ...] = ()
    end: int = 0

    def __bool__(self) -> bool:
        """Return whether the template writes any token except the end of turn."""
        return bool(self.leading) or len(self.trailing) > 1

    @property
    def most(self) -> int:
        """Maximum number of tokens around a text, end of turn included."""
        return max(map(len, self.leading), default=0) + len(self.trailing)

    def candidates(self, response: Sequence[Token]) -> list[bool]:
        """Return for each token of a response whether it may be selected.

        Args:
            response: all its tokens, possibly cut at the end. The trailing tokens are found if the end of turn is among
                those that are left.
        """
        flags = [True] * len(response)
        for index in self.excluded(response):
            flags[index] = False
        return flags

    def excluded(self, response: Sequence[Token]) -> list[int]:
        """Return the indices of the tokens of a response that may not be selected, from its first and last tokens.

        Args:
            response: as in :meth:`candidates`.
        """
        count = len(response)
        first = tuple(response[: max(map(len, self.leading), default=0)])
        written = (tokens[:count] for tokens in self.leading)
        before = next((len(tokens) for tokens in written if first[: len(tokens)] == tokens), 0)
        found = list(range(before))
        for length in range(len(self.trailing), self.end, -1):
            start = count - length
            if start >= 0 and tuple(response[start:]) == self.trailing[:length]:
                found += [start + index for index in range(length) if index != self.end and start + index >= before]
                break
        return found

    def as_texts(self, spelling: Callable[[Sequence[int]], Sequence[str]]) -> dict[str, Any]:
        """Return the tokens as plain JSON values, by their texts.

        Args:
            spelling: returns the text of each token.
        """
        leading = [list(spelling(_ids(before))) for before in self.leading]
        return {"leading": leading, "trailing": list(spelling(_ids(self.trailing))), "end": self.end}

    @classmethod
    def of_texts(cls, values: object) -> TemplateTokens:
        """Return the tokens by their texts, from the values of :meth:`as_texts`; none if the values are others."""
        if not isinstance(values, Mapping):
            return cls()
        leading, trailing, end = (values.get(name) for name in ("leading", "trailing", "end"))
        sound = isinstance(leading, list) and all(map(_is_texts, leading)) and _is_texts(trailing)
        if not sound or type(end) is not int or not 0 <= end < max(1, len(trailing or ())):
            return cls()
        return cls(tuple(tuple(before) for before in leading or ()), tuple(trailing or ()), end)


NO_TEMPLATE = TemplateTokens()
"""A template that writes no tokens."""


def template_tokens(
    encode: Callable[[str], Sequence[int]], tokenizer: Any, *, stop_ids: Collection[int] = (), with_thought: str = ""
) -> TemplateTokens:
    """Find the tokens that a chat template writes around the text of a response, by encoding short responses.

    Args:
        encode: returns all tokens of a response with this text, as the host encodes and trains them: not its prompt,
            with its end of turn, not cut.
        tokenizer: the tokenizer of these tokens.
        stop_ids: ids that end a turn, in addition to the tokenizer's special tokens. The first such token after the
            text is the end of turn; without one it is the first token after the text.
        with_thought: a text with a thought, if the template writes other tokens before such a text.

    Returns:
        The tokens. Tokens before the text are found only if the tokens of the text do not depend on them.
    """
    alone = {letter: tuple(tokenizer.encode(letter, add_special_tokens=False)) for letter in ascii_lowercase}
    first = "a"
    second = next((letter for letter, ids in alone.items() if ids[-1:] != alone[first][-1:]), None)
    if second is None or not alone[first]:
        return NO_TEMPLATE
    one, other = tuple(encode(first)), tuple(encode(second))
    after = 0
    while after < min(len(one), len(other)) and one[-1 - after] == other[-1 - after]:
        after += 1
    trailing = one[len(one) - after :]
    ends = {*tokenizer.all_special_ids, *stop_ids}
    end = next((index for index, token in enumerate(trailing) if token in ends), 0)
    leading = set()
    for text in filter(None, (first, with_thought)):
        whole, own = tuple(encode(text)), tuple(tokenizer.encode(text, add_special_tokens=False))
        start = len(whole) - after - len(own)
        if start > 0 and whole[start : start + len(own)] == own:
            leading.add(whole[:start])
    return TemplateTokens(tuple(sorted(leading, key=len, reverse=True)), trailing, end)


def before_text(candidates: Sequence[bool]) -> int:
    """Return the number of tokens of a response that the template writes before its text."""
    return list(candidates).index(True) if True in candidates else 0


def _ids(tokens: Sequence[Token]) -> list[int]:
    return [token for token in tokens if isinstance(token, int)]


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
