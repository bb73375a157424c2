"""Conversations in another tokenizer and chat template: encoding, token spans, truncation."""

import pytest

from sepo.errors import SepoError
from sepo.text.chat_encoding import ChatReader
from tests.support import foreign

PLAIN = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"


def conversation(*responses, system="", tools="", turns=("How many legs?",)):
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    return {"messages": messages, "answers": list(responses), "system": system, "tools": tools}


def reader(template=PLAIN, name="byte_level", **options):
    return ChatReader(foreign.tokenizer(name), name="the oracle", chat_template=template, **options)


def covered(read, response):
    return [response[start:end] for start, end in read.spans.offsets]


@pytest.mark.parametrize("name", sorted(foreign.MAKERS))
@pytest.mark.parametrize("response", ["It has 8 legs.", "  a tail\n", "你好 🕷️", "wings <s> or </s> none", "a", "s"])
def test_the_response_is_the_tokens_after_the_text_of_the_template(name, response):
    (read,) = reader(name=name).read(conversation(response))
    words = foreign.tokenizer(name)
    text = f"<s>user\nHow many legs?</s>\n<s>assistant\n{response}</s>\n"
    assert read.input_ids == words(text, add_special_tokens=False)["input_ids"]
    ids = read.input_ids[read.response_start :]
    assert len(ids) == len(read.spans.offsets)
    assert ids[read.spans.end_of_turn] == words.eos_token_id
    letters = {i for i, letter in enumerate(response) if letter.isascii() and letter.isalnum()}
    places = [range(start, end) for start, end in read.spans.offsets]
    assert letters <= {place for part in places for place in part}


def test_spans_of_a_trimming_template_are_those_in_the_whole_response():
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }} </s>{% endfor %}"
    response = " \n It has 8 legs.  "
    (read,) = reader(template).read(conversation(response))
    assert foreign.tokenizer("byte_level").decode(read.input_ids).endswith("[assistant] It has 8 legs. </s>")
    assert "".join(covered(read, response)) == "It has 8 legs."
    assert read.spans.offsets[-1] == (len(response), len(response))


def test_text_that_a_template_adds_before_a_response_belongs_to_the_prompt():
    template = PLAIN.replace("{{ m.content }}", "{% if m.role == 'assistant' %}a tail: {% endif %}{{ m.content }}")
    read, other = reader(template).read(conversation("a tail", "It"))
    words = foreign.tokenizer("byte_level")
    assert words.decode(read.input_ids[: read.response_start]).endswith("assistant\na tail:")
    assert "".join(covered(read, "a tail")) == "a tail"
    assert "".join(covered(other, "It")) == "It"


def test_a_system_prompt_goes_into_the_first_turn_if_the_template_rejects_it():
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN
    (read,) = reader(refusing).read(conversation("x", system="Be brief."))
    assert "<s>user\nBe brief.\n\nHow many legs?</s>" in foreign.tokenizer("byte_level").decode(read.input_ids)
    (read,) = reader().read(conversation("x", system="Be brief."))
    assert "<s>system\nBe brief.</s>\n<s>user" in foreign.tokenizer("byte_level").decode(read.input_ids)


def test_errors_of_a_template_are_one_line():
    never = "{{ raise_exception('roles must alternate\nalways') }}"
    with pytest.raises(SepoError, match="the oracle rejects the conversation that begins with 'How many") as caught:
        reader(never).read(conversation("x"))
    assert "\n" not in str(caught.value)
    with pytest.raises(SepoError, match="rejects the conversation"):
        reader().read(conversation("x", tools="{not json"))
    with pytest.raises(SepoError, match="does not write the assistant's response unchanged"):
        reader("{{ messages[0].content }}").read(conversation("x"))
    bare = foreign.byte_level()
    bare.chat_template = None
    with pytest.raises(SepoError, match="the oracle has another tokenizer than the policy and no chat template"):
        ChatReader(bare, name="the oracle")


def test_a_template_that_writes_the_date_writes_the_same_one_every_day():
    dated = "{{ strftime_now('%d %b %Y') }} {{ date_string }}\n" + PLAIN
    (read,) = reader(dated).read(conversation("x"))
    assert foreign.tokenizer("byte_level").decode(read.input_ids).startswith("26 Jul 2024 26 Jul 2024\n")


def test_the_conversation_is_truncated_before_the_response():
    response = "It has 8 legs."
    (whole,) = reader().read(conversation(response))
    length = len(whole.input_ids) - whole.response_start
    for limit in range(2, len(whole.input_ids) + 2):
        (read,) = reader(max_tokens=limit).read(conversation(response))
        assert len(read.input_ids) == min(limit, len(whole.input_ids))
        assert read.input_ids[0] == whole.input_ids[0]
        kept = len(read.input_ids) - read.response_start
        assert kept == min(length, limit - 1) == len(read.spans.offsets)
        assert read.input_ids[read.response_start :] == whole.input_ids[whole.response_start :][:kept]
        assert read.spans.offsets == whole.spans.offsets[:kept]
        assert (read.spans.end_of_turn is None) == (kept <= whole.spans.end_of_turn)
        assert read.response_cut == (kept < length)
        assert read.prompt_cut == (limit < len(whole.input_ids))


class Slow:
    """A tokenizer without offsets."""

    is_fast = False

    def __init__(self, words):
        self.words, self.chat_template = words, words.chat_template

    def __getattr__(self, name):
        return getattr(self.words, name)


def test_tokens_of_a_slow_tokenizer_are_located_by_decoding():
    made = ChatReader(Slow(foreign.tokenizer("byte_level")), name="the oracle", chat_template=PLAIN)
    response = "It has 8 🕷️."
    (read,) = made.read(conversation(response))
    (fast,) = reader().read(conversation(response))
    assert (read.input_ids, read.response_start) == (fast.input_ids, fast.response_start)
    assert read.spans == fast.spans
    lossy = ChatReader(Slow(foreign.tokenizer("wordpiece")), name="the oracle", chat_template=PLAIN)
    with pytest.raises(SepoError, match=r"do not decode to the response 'It has 8 .* returns no offsets"):
        lossy.read(conversation(response))
