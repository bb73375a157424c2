"""Escaping of invisible characters."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepo.report.visible import clipped, number, one_line, shortened, visible

ANY_TEXT = st.text(st.characters(exclude_categories=()))


@given(ANY_TEXT)
def test_nothing_is_hidden_and_everything_can_be_encoded(text):
    shown = visible(text)
    shown.encode("utf-8")
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert all(character in "\n\t\u200c\u200d" or unicodedata.category(character) not in hidden for character in shown)
    assert visible(shown) == shown
    assert "\n" not in one_line(text)


@given(st.text(st.characters(categories=["L", "N", "P", "S"])))
def test_ordinary_text_is_unchanged(text):
    assert visible(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b", "a␀b"),
        ("\r\n", "␍\n"),
        ("\x7f", "␡"),
        ("\ud800", "⟨U+D800⟩"),
        ("\u202eabc", "⟨U+202E⟩abc"),
        ("zero\u200bwidth", "zero⟨U+200B⟩width"),
        ("pass\u200dword", "pass⟨U+200D⟩word"),
        ("👩\u200d🔬 می\u200cخواهم", "👩\u200d🔬 می\u200cخواهم"),
        ("a\u2028b\ufeff", "a⟨U+2028⟩b⟨U+FEFF⟩"),
        ("\U000e0041", "⟨U+E0041⟩"),
        ("nbsp\u00a0 שלום", "nbsp\u00a0 שלום"),
    ],
)
def test_hidden_characters_are_escaped(text, shown):
    assert visible(text) == shown


def test_truncated_text_has_its_length():
    assert clipped("abc", 3) == "abc"
    assert clipped("abcd" * 1000, 3) == "abc … (4,000 characters)"
    assert shortened("abcd", 3) == "ab…"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (-3, "−3"),
        (1234567, "1,234,567"),
        (10**400, "∞"),
        (-1e300, "−1e+300"),
        (10**20, "1e+20"),
        (0.5, "0.5"),
        (-1234.56, "−1,235"),
        (1e-7, "1e−07"),
        (float("nan"), "not a number"),
        (float("-inf"), "−∞"),
    ],
)
def test_numbers_are_formatted_for_reading(value, text):
    assert number(value) == text
