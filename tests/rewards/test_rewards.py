"""Which judge a recipe names, verifiers, the policy's own preference, and a judge that distinguishes nothing."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from sepo.errors import SepoError
from sepo.judges import find_judge
from sepo.recipe.model_specs import ModelSpec
from sepo.rewards import ConstantRewardCheck, RewardSettings, check_rewards, resolve_rewards
from sepo.scoring.hub import HubAccess
from tests.support.packages import on_path, write_package
from tests.support.rewarded import opened, response

CODE = """
from sepo.judges import Judge

def overlap(response, expected):
    words = set(expected.split())
    return len(words & set(response.split())) / len(words)

def infinite(response, expected):
    return float("inf")

def text(response, expected):
    return "good"

def broken(response, expected):
    raise KeyError("no such key")
"""


@pytest.fixture
def registered(tmp_path):
    names = ("overlap", "infinite", "text", "broken", "policy")
    entries = {"judges": {name: f"own_rewards:{name if name != 'policy' else 'overlap'}" for name in names}}
    write_package(tmp_path, "own-rewards", entries, CODE)
    with on_path(tmp_path):
        yield


def refused(**keys):
    with pytest.raises(SepoError) as error:
        resolve_rewards(keys)
    assert "\n" not in str(error.value)
    return str(error.value)


VERIFIER = {"judge": "contains", "expected_column": "answer"}
MODEL = {"judge": "reward_model", "judge_model": "acme/judge"}
PREFERENCE = {"judge": "policy", "model_name_or_path": "a", "ref_model": "b"}


def test_a_verifier():
    options = {"ignore_case": True, "extract": "is (.+)"}
    found = resolve_rewards({**VERIFIER, "judge_options": options, "stage": "sepo", "judge_model": None})
    assert found == RewardSettings("contains", {"ignore_case": "true", "extract": "is (.+)"}, "answer")
    assert found.is_verifier
    assert resolve_rewards({**VERIFIER, "judge_options": '{"ignore_case": true, "extract": "is (.+)"}'}) == found
    assert found.as_dict()["options"] == {"ignore_case": "true", "extract": "is (.+)"}


def test_a_reward_model():
    keys = {
        "judge_model_adapters": ["one", "two"],
        "judge_model_revision": "v1",
        "judge_model_adapters_revision": "v2",
        "judge_model_quantization_bit": "4",
        "score_batch_tokens": 99,
    }
    found = resolve_rewards({**MODEL, **keys})
    assert found.model == ModelSpec("acme/judge", ("one", "two"), 4, "v1", ("v2", "v2"))
    assert (found.batch_tokens, found.is_verifier, found.policy) == (99, False, None)
    assert resolve_rewards(MODEL).batch_tokens == 8192
    assert found.text == "the reward model acme/judge@v1 with one@v2,two@v2"


def test_the_reference_of_the_policys_own_preference():
    own = {"judge": "policy", "model_name_or_path": "base", "adapter_name_or_path": "sft,dpo"}
    found = resolve_rewards(own)
    assert (found.policy.oracle, found.policy.base) == (ModelSpec("base", ("sft", "dpo")), ModelSpec("base", ("sft",)))
    assert found.reference_key == "adapter_name_or_path"
    named = resolve_rewards({**own, "ref_model": "other", "ref_model_adapters": "x"})
    assert (named.policy.base, named.reference_key) == (ModelSpec("other", ("x",)), "ref_model")
    adapters = resolve_rewards({**own, "ref_model_adapters": "x", "quantization_bit": 8})
    assert adapters.policy.base == ModelSpec("base", ("x",), 8)
    message = refused(judge="policy", model_name_or_path="base")
    assert "the reference is the policy itself (base), so every reward would be 0; set ref_model" in message
    same = {"model_name_or_path": "base", "quantization_bit": 4, "ref_model": "base"}
    assert "the reference is the policy itself" in refused(judge="policy", **same)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "judge is missing; set it to one of exact, contains, regex, math"),
        ({"judge": "reward-model"}, "judge is 'reward-model', expected one of exact,"),
        ({"judge": "reward-model"}, "Did you mean 'reward_model'?"),
        ({"judge": "exat"}, "Did you mean 'exact'?"),
        ({"judge": "reward_model"}, "judge is reward_model, but judge_model is missing; set it to"),
        ({"judge": "exact"}, "judge is exact, but expected_column is missing; set it to"),
        ({**VERIFIER, "judge_model": "x"}, "judge_model is set, but judge is contains; remove judge_model"),
        ({**VERIFIER, "judge_model_quantization_bit": 4}, "judge_model_quantization_bit is set, but judge is contains"),
        ({**MODEL, "expected_column": "answer"}, "expected_column is set, but judge is reward_model; remove"),
        ({**MODEL, "judge_options": {"a": 1}}, "judge_options is set, but judge is reward_model; remove"),
        ({"judge": "policy", "judge_model": "x"}, "judge_model is set, but judge is policy"),
        ({**VERIFIER, "judge_options": {"ignorecase": True}}, "has no option 'ignorecase'"),
        ({**VERIFIER, "judge_options": [1]}, "judge_options is [1]; name: value is expected."),
        ({**VERIFIER, "judge_options": "x"}, "judge_options is 'x'; name: value is expected."),
        ({**VERIFIER, "judge_options": {"extract": ["a"]}}, "name: value is expected."),
        ({**MODEL, "judge_model_quantization_bit": 3}, "judge_model_quantization_bit is 3, expected 4 or 8."),
        ({**MODEL, "judge_model_adapters_revision": "v1"}, "judge_model_adapters_revision is set, but"),
        ({**MODEL, "judge_model_adapters": "a,b,c", "judge_model_adapters_revision": "1,2"}, "has 2 revisions for 3"),
    ],
)
def test_what_is_refused(keys, message):
    assert message in refused(**keys)


def test_a_verifier_gives_one_or_nothing():
    rewards = opened(resolve_rewards(VERIFIER))
    given = [response("?", "It has 8 legs.", expected="8"), response("?", "It has 6.", expected=["8", "eight"])]
    assert rewards(given) == [1.0, 0.0]
    assert rewards([]) == []
    with pytest.raises(SepoError, match=r"the response 'Yes\.' to 'Right\?' with nothing: the column answer"):
        rewards([*given, response("Right?", "Yes.")])


def test_a_registered_judge_can_return_a_number(registered):
    keys = {"judge": "overlap", "expected_column": "answer"}
    given = [response("?", "a b", expected="a b c d"), response("?", "d c b a", expected="a b c d")]
    assert opened(resolve_rewards(keys))(given) == [0.5, 1.0]
    with pytest.raises(SepoError, match=r"the judge returned 0\.5, expected True or False"):
        find_judge("overlap")("a b", "a b c d")  # where right and wrong are counted
    for name, message in (
        ("infinite", r"judge infinite gives the response 'a b' to '\?' the reward inf, expected a finite number"),
        ("text", r"the judge returned 'good', expected True, False or a number"),
        ("broken", r"KeyError: 'no such key'\); a judge has to return True, False or a number"),
    ):
        with pytest.raises(SepoError, match=message):
            opened(resolve_rewards({**keys, "judge": name}))(given)


def test_no_package_can_register_a_judge_that_is_a_model(registered):
    with pytest.raises(SepoError, match="judge 'policy' is built in"):
        find_judge("policy")


def test_the_implicit_reward_is_the_sum_of_the_log_ratios(world, tmp_path):
    keys = {"judge": "policy", "model_name_or_path": str(world / "oracle"), "ref_model": str(world / "base")}
    settings = resolve_rewards({**keys, "score_batch_tokens": 20, "head_chunk_tokens": 2})
    check_rewards(settings, access=HubAccess())
    rows = [((1, 5, 9), (7, 30, 2)), ((1, 6), (8,)), ((1,), (3, 4, 5, 6, 7, 8, 9, 2)), ((4, 4, 4, 4, 4), (9, 9))]
    given = [response("?", "x", prompt_ids=prompt, response_ids=ids) for prompt, ids in rows]
    models = [AutoModelForCausalLM.from_pretrained(world / name, dtype=torch.float64) for name in ("oracle", "base")]
    expected = []
    for prompt, ids in rows:
        with torch.no_grad():
            logps = [model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1) for model in models]
        at = range(len(prompt) - 1, len(prompt) + len(ids) - 1)
        ratios = [float(logps[0][place, token] - logps[1][place, token]) for place, token in zip(at, ids, strict=True)]
        expected.append(math.fsum(ratios))
    for more in ({}, {"score_batch_tokens": 8192}):
        found = opened(resolve_rewards({**keys, **more}))(given)
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert max(map(abs, expected)) > 0.1


def test_a_missing_policy_is_named_by_its_key(tmp_path):
    keys = {"judge": "policy", "model_name_or_path": str(tmp_path / "policy"), "ref_model": str(tmp_path / "reference")}
    with pytest.raises(SepoError, match=r"^model_name_or_path: '.*/policy' is neither"):
        check_rewards(resolve_rewards(keys), access=HubAccess())


def test_a_judge_with_one_reward_is_refused_after_64_responses():
    check = ConstantRewardCheck(resolve_rewards(VERIFIER))
    check.add([0.0] * 63)
    check.add([])
    with pytest.raises(SepoError) as error:
        check.add([0.0])
    message = str(error.value)
    assert message.startswith("judge contains gives all of the first 64 responses the reward 0, so none is better")
    assert "the column answer, and check judge_options" in message
    assert "\n" not in message
    for settings, advice in (
        (resolve_rewards(MODEL), "check that judge_model is a trained reward model"),
        (
            resolve_rewards(PREFERENCE),
            "its reference (ref_model)",
        ),
    ):
        with pytest.raises(SepoError, match=r"the reward 0\.25") as error:
            ConstantRewardCheck(settings).add([0.25] * 70)
        assert advice in str(error.value)


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), max_size=30), max_size=8))
def test_only_the_beginning_is_checked(parts):
    check, seen = ConstantRewardCheck(resolve_rewards(VERIFIER), judged=20), []
    for part in parts:
        seen += part
        if len(seen) >= 20 and len(set(seen)) == 1 and part:
            with pytest.raises(SepoError):
                check.add(part)
            return
        check.add(part)
    if len(set(seen)) > 1:
        check.add([0.0] * 100)


def test_the_settings_of_a_judge_are_values():
    settings = resolve_rewards(MODEL)
    assert settings.as_dict() == {"judge": "reward_model", "model": settings.model.as_dict()}
    assert replace(settings, batch_tokens=1).as_dict() == settings.as_dict()  # batches change no reward
    assert set(resolve_rewards(PREFERENCE).as_dict()) == {"judge", "policy", "reference"}
