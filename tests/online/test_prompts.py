"""Prompts as token ids, the ends of responses, and the order of prompts."""

import json

import pytest
from trl.trainer.utils import RepeatSampler

from sepo.online.judged import JudgeReward
from sepo.online.prompt_order import PromptOrder
from sepo.online.prompts import PROMPT, ROW, PromptsAsIds, ended, prompt_row
from tests.support import tiny

STOPS = (2, 7)


class Old:
    """Generation of TRL 0.24, which tokenizes prompts, and ends responses at one token."""

    use_vllm = False

    def __init__(self):
        self.processing_class = tiny.tokenizer()

    def _generate_single_turn(self, prompts, images):
        if self.use_vllm:
            self.seen = prompts
        else:
            batch = self.processing_class(
                text=prompts, return_tensors="pt", padding=True, padding_side="left", max_length=None, truncation=True,
                add_special_tokens=False,
            )  # fmt: skip
            self.seen = {name: batch[name].tolist() for name in ("input_ids", "attention_mask")}
        return [list(ids) for ids in prompts], [[5, 7, 0, 0], [5, 2], [5, 6]], [[-1.0] * 4, [-1.0] * 2, [-1.0] * 2], {}


class New:
    """Generation of TRL 1, which has a method that tokenizes."""

    def _tokenize_prompts(self, prompts):
        raise AssertionError

    def _generate_single_turn(self, prompt_ids, images, fields):
        self.seen = prompt_ids
        return [[5, 7, 0, 0], [5, 2], [5, 6]], None


def with_ids(base):
    made = type("Trainer", (PromptsAsIds, base), {"stop_ids": STOPS})()
    return made


PROMPTS = [[11], [12, 13, 14], [15, 16]]
ENDED = [[5, 7], [5, 2], [5, 6]]


def test_trl_0_24_gets_padded_ids_and_responses_end_at_any_stop_token():
    trainer = with_ids(Old)
    tokenizer = trainer.processing_class
    ids, responses, logps, more = trainer._generate_single_turn(PROMPTS, None)
    assert trainer.seen["input_ids"] == [[0, 0, 11], [12, 13, 14], [0, 15, 16]]
    assert trainer.seen["attention_mask"] == [[0, 0, 1], [1, 1, 1], [0, 1, 1]]
    assert (ids, responses, more) == (PROMPTS, ENDED, {})
    assert [len(row) for row in logps] == [2, 2, 2]
    assert trainer.processing_class is tokenizer


def test_vllm_in_trl_0_24_gets_prompts_of_tokens():
    trainer = with_ids(Old)
    trainer.use_vllm = True
    trainer._generate_single_turn(PROMPTS, None)
    assert trainer.seen == [{"prompt_token_ids": ids} for ids in PROMPTS]


def test_trl_1_gets_ids_as_they_are():
    trainer = with_ids(New)
    ids, images, fields = trainer._tokenize_prompts(PROMPTS)
    assert (ids, images, fields) == (PROMPTS, None, {})
    assert trainer._generate_single_turn(ids, None, {}) == (ENDED, None)
    assert trainer.seen == PROMPTS


@pytest.mark.parametrize(
    ("ids", "expected"), [([], []), ([5], [5]), ([2, 2], [2]), ([5, 7, 2], [5, 7]), ([5, 6], [5, 6])]
)
def test_the_first_stop_token_ends_a_response(ids, expected):
    assert ended(ids, STOPS) == expected


def test_the_judge_gets_the_whole_row():
    words = tiny.tokenizer()
    ids = words.encode("The sky is blue")
    row = prompt_row([9, 10], messages=[{"role": "user", "content": "ö?"}], system="S", tools="T", expected=["a", 1])
    assert json.loads(row[ROW])["messages"] == [{"role": "user", "content": "ö?"}]
    seen = []

    def judge(responses):
        seen.extend(responses)
        return [float(response.finished) for response in responses]

    function = JudgeReward(judge, decode=lambda tokens: words.decode(tokens), stop_ids=STOPS)
    rewards = function(
        prompts=[row[PROMPT]] * 2, completions=["", ""], completion_ids=[[*ids, 7], ids], sepo_row=[row[ROW]] * 2,
        trainer_state=None,
    )  # fmt: skip
    assert rewards == [1.0, 0.0]
    assert function.__name__ == "judge"
    first = seen[0]
    assert (first.response, first.response_ids, first.prompt_ids) == ("The sky is blue", (*ids, 7), (9, 10))
    assert (first.system, first.tools, first.expected, first.messages) == (
        "S", "T", ["a", 1], ({"role": "user", "content": "ö?"},)
    )  # fmt: skip
    assert seen[1].response == "The sky is blue"


def test_the_order_of_prompts_is_a_function_of_the_epoch():
    def order(epoch, resumed_from=0):
        sampler = RepeatSampler(range(9), mini_repeat_count=2, batch_size=3, shuffle=True, seed=4)
        wrapped = PromptOrder(sampler, seed=4, epoch=lambda: at)
        assert len(wrapped) == len(sampler)
        for at in range(resumed_from, epoch + 1):  # noqa: B007 (read by the sampler)
            found = list(wrapped)
        return found

    plain = RepeatSampler(range(9), mini_repeat_count=2, batch_size=3, shuffle=True, seed=4)
    assert order(0) == list(plain)
    assert order(2) == order(2, resumed_from=2) != order(0)
    shown = PromptOrder(
        RepeatSampler(range(4), mini_repeat_count=1, shuffle=False), seed=4, epoch=lambda: None
    )  # fmt: skip
    assert list(shown) == [0, 1, 2, 3]
    late = RepeatSampler(range(9), mini_repeat_count=2, batch_size=3, shuffle=True, seed=4)
    assert list(PromptOrder(late, seed=4, epoch=lambda: 1.9999999)) == order(2)
