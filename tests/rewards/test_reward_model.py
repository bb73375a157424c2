"""Reward models against plain loops in float64: one conversation at a time, without padding."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.llama import modeling_llama

from sepo.errors import SepoError
from sepo.rewards import check_rewards, open_rewards, resolve_rewards, rewards_identity
from sepo.scoring.hub import HubAccess
from tests.support import rewarded
from tests.support.rewarded import BLOCKS, CUSTOM, opened, responses, save, save_value_head, text_of

NEWLINE = BLOCKS.replace("{% endfor %}", "\n{% endfor %}")


def settings(folder, **keys):
    return resolve_rewards({"judge": "reward_model", "judge_model": str(folder), **keys})


def refused(folder, *, trust=False, **keys):
    with pytest.raises(SepoError) as error:
        check_rewards(settings(folder, **keys), access=HubAccess(trust_remote_code=trust))
    assert "\n" not in str(error.value)
    return str(error.value)


def ids_of(folder, each):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(text_of(each), tokenize=False)
    return tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]


@torch.no_grad()
def by_hand(folder, given, *, back=0):
    """Return the scores of the tokens ``back`` before the last ones, from the weights of the head alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64)
    hidden = [model.model(ids_of(folder, each)).last_hidden_state[0] for each in given]
    return [float(states[-1 - back] @ model.score.weight[0]) for states in hidden]


@torch.no_grad()
def by_itself(folder, rows):
    """Return the scores of the model's own forward, of one row at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64)
    return [float(model(ids).logits) for ids in rows]


def close(found, expected):
    # Norms and softmax of the models compute in float32.
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_the_score_is_that_of_the_last_token_whatever_the_batch(tmp_path, family):
    folder = save(tmp_path / "judge", family=family)
    given = responses()
    expected = by_hand(folder, given)
    assert max(expected) - min(expected) > 0.1
    for tokens in (1, 100, 8192):
        close(opened(settings(folder, score_batch_tokens=tokens))(given), expected)
    close(opened(settings(folder))(given[::-1])[::-1], expected)
    assert opened(settings(folder))([]) == []


@pytest.mark.parametrize(
    ("config", "template", "back"),
    [
        ({"pad_token_id": None}, BLOCKS, 0),
        ({"pad_token_id": -1}, BLOCKS, 0),
        ({"pad_token_id": 2}, NEWLINE, 0),
        ({"pad_token_id": 2}, BLOCKS, 1),  # the end of the turn is padding to the model, alone as in a batch
    ],
    ids=["none", "invalid", "within", "last"],
)
def test_padding_tokens_that_are_missing_or_end_a_turn(tmp_path, config, template, back):
    folder = save(tmp_path / "judge", template=template, **config)
    given = [each for each in responses() if "<|im_end|>" not in each.response]
    alone = by_itself(folder, [ids_of(folder, each) for each in given])
    close(alone, by_hand(folder, given, back=back))
    found = opened(settings(folder))
    close(found(given), alone)
    close(found(given[:1]), alone[:1])


@torch.no_grad()
def test_heads_are_wider_than_bfloat16(tmp_path):
    folder = save(tmp_path / "judge")
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16)
    given = responses()
    hidden = [model.model(ids_of(folder, each)).last_hidden_state[0, -1].double() for each in given]
    expected = [float(states @ model.score.weight[0].double()) for states in hidden]
    found = opened(settings(folder, score_batch_tokens=1), dtype=torch.bfloat16)(given)
    close(found, expected)
    assert found != torch.tensor(found).bfloat16().tolist()


def test_the_template_is_the_judges(tmp_path):
    folder = save(tmp_path / "judge")
    other = save(tmp_path / "other", template=NEWLINE.replace("[", "("))
    first, second = (opened(settings(each))(responses()) for each in (folder, other))
    assert all(abs(one - two) > 1e-3 for one, two in zip(first, second, strict=True))


def test_a_long_conversation_loses_its_beginning(tmp_path, caplog):
    folder = save(tmp_path / "judge", max_position_embeddings=20)
    given = responses()
    long = [ids_of(folder, each)[0] for each in given]
    cut = [ids if len(ids) <= 20 else torch.cat([ids[:1], ids[-19:]]) for ids in long]
    assert sum(len(ids) > 20 for ids in long) > 1
    close(opened(settings(folder))(given), by_itself(folder, [ids[None] for ids in cut]))
    assert len([each for each in caplog.messages if "does not read the beginning" in each]) == 1


def save_gated(folder):
    """Save a model with code of its own and several rewards, whose output has a score."""
    save(folder, labels=3, seed=9)
    (folder / "modeling_gated.py").write_text(CUSTOM)
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(3)
    weights["gating.weight"] = torch.randn(3, 64, dtype=torch.float64)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    file = folder / "config.json"
    code = {"AutoModelForSequenceClassification": "modeling_gated.TinyGated"}
    file.write_text(json.dumps({**json.loads(file.read_text()), "architectures": ["TinyGated"], "auto_map": code}))
    return folder, weights


def test_the_score_of_an_output_with_several_rewards(tmp_path):
    folder, weights = save_gated(tmp_path / "judge")
    given = responses()
    body = AutoModel.from_pretrained(folder, dtype=torch.float64)
    expected = []
    for each in given:
        with torch.no_grad():
            last = body(ids_of(folder, each)).last_hidden_state[0, -1]
        gates = (weights["gating.weight"] @ last).softmax(-1)
        expected.append(float(gates @ (weights["score.weight"] @ last)))
    check_rewards(settings(folder), access=HubAccess(trust_remote_code=True))
    close(opened(settings(folder), trust=True)(given), expected)
    # The code imports a name of earlier releases, which is provided for its import alone.
    assert not hasattr(modeling_llama, "LLAMA_INPUTS_DOCSTRING")


def test_code_of_a_model_runs_only_if_the_recipe_allows_it(tmp_path):
    folder, _ = save_gated(tmp_path / "judge")
    message = refused(folder)
    assert "has code of its own for its head (modeling_gated.TinyGated)" in message
    assert "trust_remote_code: true" in message
    (folder / "modeling_gated.py").write_text("raise SystemExit('the code was run')")
    assert "code of its own" in refused(folder)


def test_an_adapter_with_a_head_over_a_language_model(tmp_path):
    folder = save(tmp_path / "base", cls="ForCausalLM")
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float64)
    tuned = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(4)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    tuned.save_pretrained(tmp_path / "tuned")
    given = responses()
    with torch.no_grad():
        expected = [float(tuned.eval()(ids_of(folder, each)).logits) for each in given]
    close(opened(settings(folder, judge_model_adapters=str(tmp_path / "tuned")))(given), expected)
    assert "is of the class LlamaForCausalLM, which gives no score" in refused(folder)


def test_an_adapter_without_a_head_is_refused(tmp_path):
    folder = save(tmp_path / "base", cls="ForCausalLM")
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "tuned")
    file = tmp_path / "tuned" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "task_type": "SEQ_CLS"}))
    assert "holds no trained head (score.weight)" in refused(folder, judge_model_adapters=str(tmp_path / "tuned"))
    two = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    get_peft_model(two, LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])).save_pretrained(tmp_path / "two")
    assert "has 2 outputs (num_labels)" in refused(folder, judge_model_adapters=str(tmp_path / "two"))


def test_a_head_that_was_not_trained_is_refused(tmp_path):
    folder = save(tmp_path / "judge", cls="ForCausalLM")
    file = folder / "config.json"
    values = json.loads(file.read_text()) | {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
    values |= {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    file.write_text(json.dumps(values))
    with pytest.raises(SepoError, match=r"lack score\.weight, which would be random"):
        opened(settings(folder))


def test_a_value_head_on_a_language_model(tmp_path):
    folder = save(tmp_path / "judge", cls="ForCausalLM")
    head = save_value_head(folder)
    body = AutoModel.from_pretrained(folder, dtype=torch.float64)
    given, expected = responses(), []
    for each in given:
        with torch.no_grad():
            last = body(ids_of(folder, each)).last_hidden_state[0, -1]
        expected.append(float(head["v_head.summary.weight"][0].double() @ last + head["v_head.summary.bias"][0]))
    check_rewards(settings(folder), access=HubAccess())
    for tokens in (1, 100, 8192):
        close(opened(settings(folder, score_batch_tokens=tokens))(given), expected)


def test_a_value_head_of_another_form_is_refused(tmp_path):
    folder = save(tmp_path / "judge", cls="ForCausalLM")
    save_file({"summary.weight": torch.zeros(1, 64)}, folder / "value_head.safetensors")
    with pytest.raises(SepoError, match=r"holds summary\.weight \[1, 64\], expected v_head\.summary\.weight"):
        opened(settings(folder))
    (folder / "value_head.safetensors").unlink()
    (folder / "value_head.bin").write_bytes(b"pickle")
    assert "value_head.bin, a pickle" in refused(folder)


def test_what_is_refused_before_weights_are_loaded(tmp_path):
    missing = str(tmp_path / "none")
    assert f"judge_model: '{missing}' " in refused(missing)
    two = save(tmp_path / "two", labels=2)
    assert f"'{two}' has 2 outputs (num_labels)" in refused(two)
    mute = save(tmp_path / "mute")
    (mute / "chat_template.jinja").unlink()
    assert f"judge_model: the tokenizer of '{mute}' has no chat template" in refused(mute)
    partial = save(tmp_path / "partial", template="{{ messages[0].content }}")
    assert "without 'This is the response.'" in refused(partial)
    broken = save(tmp_path / "broken", template="{{ messages[0].missing.deeper }}")
    assert "rejects the conversation" in refused(broken)


def test_a_score_that_is_no_number_names_the_response(tmp_path):
    folder = save(tmp_path / "judge")
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"] = torch.full_like(weights["score.weight"], math.nan)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SepoError) as error:
        opened(settings(folder))(responses())
    assert "gives the response 'It has 8 legs.' to 'How many legs has a spider?' the reward nan" in str(error.value)


def test_a_template_can_refuse_a_conversation(tmp_path):
    strict = "{% if messages|length > 2 %}{{ raise_exception('too long') }}{% endif %}"
    folder = save(tmp_path / "judge", template=strict + BLOCKS)
    given = responses()
    with pytest.raises(SepoError, match=r"rejects the conversation that begins with 'Hi': too long"):
        opened(settings(folder))([given[3]])
    # A system prompt that the template refuses is put before the first turn.
    joined = replace(
        given[2], system="", messages=({"role": "user", "content": f"{given[2].system}\n\nWhat is a reward?"},)
    )
    found = opened(settings(folder))
    close(found([given[2]]), found([joined]))


def in_four_bits(folder, **options):
    model_args = rewarded.arguments(dtype=torch.float32, **options)
    model_args.quantization_type, model_args.double_quantization = "nf4", True
    quantized = settings(folder, judge_model_quantization_bit=4)
    return open_rewards(quantized, model_args=model_args, device=torch.device("cpu"))


def test_weights_of_four_bits_leave_the_head_as_it_is(tmp_path):
    folder = save(tmp_path / "judge")
    found = in_four_bits(folder)
    model = found._head._model
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    saved = AutoModelForSequenceClassification.from_pretrained(folder)
    assert torch.equal(model.score.weight, saved.score.weight.float())
    plain = opened(settings(folder), dtype=torch.float32)(responses())
    differences = [abs(one - two) for one, two in zip(found(responses()), plain, strict=True)]
    assert 0 < max(differences) < 5


def test_several_heads_are_left_as_they_are(tmp_path):
    folder, _ = save_gated(tmp_path / "judge")
    model = in_four_bits(folder, trust=True)._head._model
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert {model.score.weight.dtype, model.gating.weight.dtype} == {torch.float32}


def test_rewards_are_identified_by_content(tmp_path):
    def identity(folder, **keys):
        return rewards_identity(settings(folder, **keys), access=HubAccess())

    folder = save(tmp_path / "judge")
    first = identity(folder)
    shutil.copytree(folder, tmp_path / "moved")
    assert identity(tmp_path / "moved", score_batch_tokens=1) == first
    assert identity(folder, judge_model_quantization_bit=4) != first
    others = [
        save(tmp_path / "weights", seed=6),
        save(tmp_path / "template", template=NEWLINE),
        save(tmp_path / "base", cls="ForCausalLM"),
    ]
    save_value_head(others[-1])
    found = [first, *map(identity, others)]
    save_value_head(others[-1], seed=1)
    found.append(identity(others[-1]))
    assert len({json.dumps(each, sort_keys=True) for each in found}) == 5
    policy = {"judge": "policy", "model_name_or_path": str(folder), "ref_model": str(tmp_path / "weights")}
    both = rewards_identity(resolve_rewards(policy), access=HubAccess())
    assert both["policy"]["model"] == first["model"]["model"] != both["reference"]["model"]
    verifier = resolve_rewards({"judge": "exact", "expected_column": "answer"})
    assert rewards_identity(verifier, access=HubAccess()) == verifier.as_dict()
