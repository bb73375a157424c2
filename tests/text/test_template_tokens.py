"""Template tokens: found by encoding, marked in responses, cut ones included."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sepo.text.template_tokens
from sepo.text.template_tokens import TemplateTokens, template_tokens


class Letters:
    """A tokenizer with one token per character, its code point, and <X> for the special token X."""

    all_special_ids = (1000, 1001)

    def __init__(self, prefix=()):
        self.prefix = list(prefix)  # SentencePiece's word start, as a token of its own

    def encode(self, text, add_special_tokens=False):
        return [*self.prefix, *map(ord, text)]


def test_the_examples_of_the_docstrings_hold():
    results = doctest.testmod(sepo.text.template_tokens)
    assert results.attempted >= 3
    assert results.failed == 0


@pytest.mark.parametrize(
    ("before", "after", "end"),
    [
        ([], [1000], 0),
        ([], [1000, 10], 0),
        ([50, 51], [1000, 10], 0),
        ([], [10, 1000], 1),  # a line break before the end of turn
        ([], [10, 11], 0),  # no special token: the first one ends the turn
        ([], [10, 11, 12], 2),  # a stop word of the template
        ([], [], 0),
    ],
)
@pytest.mark.parametrize("prefix", [(), (7,)])
def test_the_tokens_around_a_text_are_found(before, after, end, prefix):
    words = Letters(prefix)
    found = template_tokens(lambda text: [*before, *words.encode(text), *after], words, stop_ids=[12])
    assert found == TemplateTokens((tuple(before),) if before else (), tuple(after), end)
    assert bool(found) == (bool(before) or len(after) > 1)


def test_a_text_that_merges_with_the_tokens_before_it_hides_them():
    words = Letters()
    found = template_tokens(lambda text: [50, ord(text) + 500, 1000, 10], words)
    assert found == TemplateTokens((), (1000, 10), 0)


def test_a_tokenizer_that_cannot_tell_letters_apart_finds_nothing():
    class Unknown(Letters):
        def encode(self, text, add_special_tokens=False):
            return [3] * len(text)

    assert template_tokens(lambda text: [5, 3, 1000, 10], Unknown()) == TemplateTokens()


def test_what_is_written_before_a_text_may_depend_on_its_thought():
    words = Letters()

    def encode(text):
        return [*([] if "t" in text else [50, 51]), 10, *words.encode(text), 1000]

    found = template_tokens(encode, words, with_thought="ta")
    assert found == TemplateTokens(((50, 51, 10), (10,)), (1000,), 0)
    assert found.candidates(encode("xy")) == [False] * 3 + [True] * 3
    assert found.candidates(encode("txy")) == [False] + [True] * 4
    assert found.candidates(encode("x")[:2]) == [False, False]
    assert found.candidates(words.encode("x")) == [True]


templates = st.builds(
    lambda leading, before_end, after_end: TemplateTokens(
        (tuple(leading),) if leading else (), (*before_end, 1000, *after_end), len(before_end)
    ),
    st.lists(st.integers(1, 5), max_size=3),
    st.lists(st.integers(6, 9), max_size=2),
    st.lists(st.integers(6, 9), max_size=3),
)


@given(templates, st.lists(st.integers(20, 40), min_size=1, max_size=5), st.integers(1, 20))
def test_exactly_the_template_s_tokens_are_no_candidates(template, text, kept):
    """The text and the end of turn remain, and what else is left of the template after a cut does not."""
    after = template.trailing
    labels = [
        *[(token, "lead") for token in (template.leading or [()])[0]], *[(token, "text") for token in text],
        *[(token, "end" if index == template.end else "trail") for index, token in enumerate(after)],
    ][:kept]  # fmt: skip
    ends = any(kind == "end" for _, kind in labels)
    # Tokens between the text and a lost end of turn may as well be the text's.
    expected = [kind in ("text", "end") or (kind == "trail" and not ends) for _, kind in labels]
    assert template.candidates([token for token, _ in labels]) == expected
