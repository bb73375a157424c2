"""Texts of tokens that join to a response, prompts as plain text, and steps computed from the texts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sepo.text.steps import step_ids
from sepo.text.token_texts import TokenTexts
from tests.support import foreign, tiny

NAMES = ("byte_level", "metaspace_bpe", "unigram", "wordpiece", "characters")
TEXTS = ["It has 8 legs. Yes!\nWhy 🕷️?", "你好，世界。好。", "  two  spaces ", "naïve café — é", "👨‍👩‍👧 ok", ""]


@pytest.fixture(scope="module")
def words():
    return tiny.tokenizer()


@pytest.mark.parametrize("text", TEXTS)
def test_byte_tokens_join_to_the_text_with_each_character_in_one_token(words, text):
    ids = [*words.encode(text, add_special_tokens=False), words.eos_token_id]
    spelled = TokenTexts(words).spelling(ids)
    assert len(spelled) == len(ids)
    assert "".join(spelled) == text + "<|im_end|>"
    assert "\ufffd" not in "".join(spelled)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", TEXTS)
def test_token_texts_of_every_kind_of_tokenizer_join_to_the_decoded_text(name, text):
    tokenizer = foreign.tokenizer(name)
    ids = tokenizer.encode(text, add_special_tokens=False)
    texts = TokenTexts(tokenizer)
    spelled = texts.spelling(ids)
    assert len(spelled) == len(ids)
    decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert "".join("".join(spelled).split()) == "".join(decoded.split())
    assert texts.spelling_and_steps(ids)[0] == spelled


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30), cut=st.integers(0, 9))
@settings(max_examples=60)
def test_steps_can_be_computed_from_the_token_texts(words, text, cut):
    """Also with a truncated character and special tokens in between."""
    ids = words.encode(text + ". 你好。 No!\n", add_special_tokens=False)
    ids = [*ids[: len(ids) - cut], words.eos_token_id, *words.encode("\n")]
    texts = TokenTexts(words)
    spelled, read = texts.spelling_and_steps(ids)
    pieces = list(spelled)
    for index, piece in read:
        assert piece != spelled[index]
        pieces[index] = piece
    assert step_ids(pieces) == texts.steps(ids)


def test_a_truncated_character_is_the_replacement_character(words):
    ids = words.encode("a🕷", add_special_tokens=False)[:-1]
    assert set("".join(TokenTexts(words).spelling(ids))) == {"a", "\ufffd"}


def test_a_prompt_has_a_line_break_for_special_tokens(words):
    texts = TokenTexts(words)
    chat = words.apply_chat_template(
        [{"role": "user", "content": "How many?"}], add_generation_prompt=True, tokenize=False
    )
    assert texts.plain(words.encode(chat, add_special_tokens=False)) == "user\nHow many?\nassistant"
    ids = [words.eos_token_id, *words.encode("a"), words.eos_token_id, words.eos_token_id, *words.encode("b c")]
    assert texts.plain(ids) == "a\nb c"
    assert texts.plain([]) == ""


def test_a_token_is_decoded_once(words, monkeypatch):
    texts, real, calls = TokenTexts(words), words.decode, []
    monkeypatch.setattr(words, "decode", lambda ids, **how: calls.append(ids) or real(ids, **how))
    for _ in range(2):
        texts.pieces(list(range(100)) * 3)
    assert len(calls) == 100
