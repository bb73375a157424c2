"""The load-balancing loss of a pair and its gradients equal the model's own ``aux_loss`` for the pair's padded rows."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import one_hot

from sepo.errors import SepoError
from sepo.forward import router_loss
from sepo.forward.head import selected_log_probs
from sepo.forward.recompute import recompute_less
from sepo.forward.router_loss import PairTokens, check_router_loss, pair_losses, refusal_by_config
from sepo.forward.sharing_support import batch_layout, layout_for
from sepo.forward.statistics import selected_statistics
from tests.support.models import MODELS, PAIRS, batch_of, model_of

EXPERTS = ("Qwen3Moe", "Mixtral", "Qwen3Next")
TOLERANCE = 1e-5


def some_wanted(inputs, wanted, share):
    return wanted & (torch.rand(wanted.shape, generator=torch.Generator().manual_seed(2)) <= share)


def gradients_of(model, losses):
    """Return the gradients of a mean whose weights differ from pair to pair."""
    model.zero_grad()
    (losses * torch.arange(1.0, len(losses) + 1)).mean().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def own_losses(model, inputs):
    """Return the model's own loss of each pair, from its two padded rows alone."""
    pairs = len(inputs["input_ids"]) // 2
    rows = [[pair, pairs + pair] for pair in range(pairs)]
    outputs = [model(**{name: part[two] for name, part in inputs.items()}, output_router_logits=True) for two in rows]
    return torch.stack([output.aux_loss for output in outputs])


def losses_of(model, inputs, wanted, *, share_prompts):
    layout = layout_for(model, inputs, batch_layout(inputs, wanted, whole=True)) if share_prompts else None
    assert (layout is not None) is share_prompts
    statistics = selected_statistics(
        model, inputs, labels=inputs["input_ids"], wanted=wanted, layout=layout, router_loss=True
    )
    return statistics.router_losses


def assert_equal_to_own(model, *, share_prompts, share=0.3, inputs=None, wanted=None):
    if inputs is None:
        inputs, wanted = batch_of(PAIRS)
    wanted = some_wanted(inputs, wanted, share)
    reference = copy.deepcopy(model)
    reference.gradient_checkpointing_disable()
    own = own_losses(reference, inputs)
    expected = gradients_of(reference, own)
    losses = losses_of(model, inputs, wanted, share_prompts=share_prompts)
    gradients = gradients_of(model, losses)
    torch.testing.assert_close(losses, own, rtol=TOLERANCE, atol=0)
    assert losses.min() > 1  # k experts of E: at least k if all are used alike, and the loss depends on the routing
    largest = max(gradient.abs().max() for gradient in expected.values())
    assert largest > 1e-3
    for name, gradient in gradients.items():
        target = expected.get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(gradient, target, rtol=1e-4, atol=1e-4 * largest)
    assert expected.keys() <= gradients.keys()


@pytest.mark.parametrize("share", [1.0, 0.3], ids=["all tokens", "some tokens"])
@pytest.mark.parametrize("share_prompts", [False, True], ids=["padded", "shared"])
@pytest.mark.parametrize("name", EXPERTS)
def test_each_pair_has_the_models_own_loss(name, share_prompts, share):
    """The row keeps tokens that no wanted one depends on, and the last layer's router reads all of them."""
    assert_equal_to_own(model_of(name), share_prompts=share_prompts, share=share)


@pytest.mark.parametrize("share_prompts", [False, True], ids=["padded", "shared"])
def test_a_model_whose_last_layer_has_no_experts(share_prompts):
    assert_equal_to_own(model_of("Qwen3Moe", mlp_only_layers=[2]), share_prompts=share_prompts)


def test_a_model_whose_last_experts_could_run_on_some_tokens_only(monkeypatch):
    """JetMoe's block of experts looks like any other MLP; the router in it has to read all tokens."""
    kind = ("JetMoeConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 8})
    monkeypatch.setitem(MODELS, "JetMoe", kind)
    assert_equal_to_own(model_of("JetMoe"), share_prompts=True)


def test_rows_that_are_padded_on_the_left():
    inputs, wanted = batch_of(PAIRS)
    inputs = {name: part.flip(1) for name, part in inputs.items()}
    wanted = torch.ones_like(wanted) & (inputs["attention_mask"][:, 1:] == 1)
    assert_equal_to_own(model_of("Mixtral"), share_prompts=False, inputs=inputs, wanted=wanted)


@pytest.mark.parametrize("checkpointing", ["reentrant", "not reentrant", "less"])
@pytest.mark.parametrize("share_prompts", [False, True], ids=["padded", "shared"])
@pytest.mark.parametrize("name", EXPERTS)
def test_with_gradient_checkpointing(name, share_prompts, checkpointing):
    """Reentrant checkpointing gives only a layer's outputs a gradient; transformers' aux_loss then has none."""
    model = model_of(name)
    model.gradient_checkpointing_enable({"use_reentrant": checkpointing != "not reentrant"})
    model.enable_input_require_grads()
    if checkpointing == "less":
        assert recompute_less(model) == 3
    functions = [layer._gradient_checkpointing_func for layer in model.model.layers]
    assert_equal_to_own(model, share_prompts=share_prompts)
    assert [layer._gradient_checkpointing_func for layer in model.model.layers] == functions


@pytest.mark.parametrize("checkpointed", [False, True], ids=["", "checkpointed"])
def test_adapters_of_the_attention_get_the_gradient_of_frozen_routers(checkpointed):
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(model_of("Qwen3Moe"), config).train()
    if checkpointed:
        model.base_model.model.gradient_checkpointing_enable({"use_reentrant": True})
        model.enable_input_require_grads()
    assert_equal_to_own(model, share_prompts=True)


def test_routers_that_train_beside_adapters():
    """PEFT's copies of the routers run in place of the frozen ones, which then return nothing."""
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], modules_to_save=["gate"])
    model = get_peft_model(model_of("Mixtral"), config).train()
    assert_equal_to_own(model, share_prompts=True)
    assert all(
        weight.grad.abs().max() > 0 for name, weight in model.named_parameters() if "gate.modules_to_save" in name
    )


def test_log_probabilities_are_those_of_a_pass_without_the_loss():
    model = model_of("Qwen3Moe")
    inputs, wanted = batch_of(PAIRS)
    tokens = {"labels": inputs["input_ids"], "wanted": wanted}
    with torch.no_grad():
        plain = selected_log_probs(model, inputs, **tokens)
        layout = layout_for(model, inputs, batch_layout(inputs, wanted, whole=True))
        for one in (None, layout):
            statistics = selected_statistics(model, inputs, **tokens, layout=one, router_loss=True, with_p2=True)
            torch.testing.assert_close(statistics.logps, plain, rtol=2e-5, atol=2e-4)
            assert statistics.kl is None
            assert statistics.log_sum_p2.shape == wanted.shape
            assert statistics.router_losses.shape == (3,)
            some = statistics.of([0, 2, 3, 5])
            torch.testing.assert_close(some.router_losses, statistics.router_losses[[0, 2]])


def test_in_bfloat16_the_loss_is_computed_in_float32():
    model = model_of("Mixtral", dtype=torch.bfloat16)
    inputs, wanted = batch_of(PAIRS)
    losses = losses_of(model, inputs, wanted, share_prompts=False)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, own_losses(model, inputs).float(), rtol=0.02, atol=0)


def test_the_formula_on_two_tokens_of_two_layers():
    """E = 3, k = 1. Pair 0 has tokens a (weight 2) and b (weight 1) in two layers, pair 1 has c; d is padding."""
    logits = [torch.randn(4, 3, generator=torch.Generator().manual_seed(layer), dtype=torch.float64)
              for layer in range(2)]  # fmt: skip
    tokens = PairTokens(torch.tensor([2.0, 1.0, 1.0, 0.0]), (2, 2), 2)
    losses = pair_losses(logits, tokens, top_k=1)
    counts = [[0, 0, 1], [2]]
    for pair, rows in enumerate(counts):
        probabilities = torch.cat([layer[rows].softmax(-1) for layer in logits])
        routed = one_hot(probabilities.argmax(-1), 3).double()
        assert losses[pair].item() == pytest.approx(
            3 * (routed.mean(0) * probabilities.mean(0)).sum().item(), rel=1e-12
        )


def test_a_configuration_with_router_logits_costs_a_pass_nothing(monkeypatch):
    """Reference and scoring passes of such a model compute neither its loss nor hold router logits."""
    import transformers.models.qwen3_moe.modeling_qwen3_moe as module

    model, plain = model_of("Qwen3Moe", output_router_logits=True), model_of("Qwen3Moe")
    monkeypatch.setattr(module, "load_balancing_loss_func", None)
    inputs, wanted = batch_of(PAIRS)
    layout = layout_for(model, inputs, batch_layout(inputs, wanted))
    assert layout is not None
    outputs = []
    handle = model.model.register_forward_hook(lambda module, args, output: outputs.append(output))
    assert layout_for(plain, inputs, layout) is layout
    for one in (None, layout):
        tokens = {"labels": inputs["input_ids"], "wanted": wanted, "layout": one}
        logps, expected = (selected_log_probs(each, inputs, **tokens) for each in (model, plain))
        torch.testing.assert_close(logps, expected)
    handle.remove()
    assert [getattr(output, "router_logits", None) for output in outputs] == [None, None]
    assert model.config.output_router_logits is True


def check(model):
    inputs, _ = batch_of(PAIRS)
    check_router_loss(model, model, model.get_output_embeddings(), inputs)


def test_a_model_with_another_loss_is_refused(monkeypatch):
    import transformers.models.mixtral.modeling_mixtral as module

    own = module.load_balancing_loss_func
    monkeypatch.setattr(module, "load_balancing_loss_func", lambda *args, **kwargs: 1.1 * own(*args, **kwargs))
    with pytest.raises(SepoError, match=r"loss of MixtralForCausalLM is .*, expected .*remove moe_aux_loss_coef"):
        check(model_of("Mixtral"))
    monkeypatch.undo()
    check(model_of("Mixtral"))


def test_models_without_routers_are_refused_by_their_configuration():
    assert refusal_by_config(model_of("Qwen3Moe").config) is None
    reason = refusal_by_config(model_of("Llama").config)
    assert reason.startswith(
        "a model of the type llama has no experts, so it has no load-balancing loss: remove moe_aux"
    )
    with pytest.raises(SepoError, match="has no experts"):
        check(model_of("Llama"))


def test_experts_without_router_logits_are_refused():
    import transformers

    config = transformers.DeepseekV3Config()
    assert "deepseek_v3 returns no router logits" in refusal_by_config(config)
    model = model_of("Llama")
    model.config.output_router_logits = False  # declared, but without effect
    with pytest.raises(SepoError, match="LlamaForCausalLM returns no router logits"):
        check(model)


def test_a_checkpointing_function_that_takes_one_output_is_refused():
    model = model_of("Mixtral")
    model.gradient_checkpointing_enable({"use_reentrant": True})
    for layer in model.model.layers:
        layer._gradient_checkpointing_func = lambda function, *args, **kwargs: function(*args, **kwargs)
    inputs, wanted = batch_of(PAIRS)
    with pytest.raises(SepoError, match="remove use_unsloth_gc, or remove moe_aux_loss_coef"):
        losses_of(model, inputs, wanted, share_prompts=False)


def test_a_router_that_does_not_run_is_an_error():
    model = model_of("Mixtral")
    check(model)
    routers = router_loss._ROUTERS[model]
    router_loss._ROUTERS[model] = (*routers, router_loss._Router(torch.nn.Identity(), 0))
    inputs, wanted = batch_of(PAIRS)
    with pytest.raises(SepoError, match="3 of the 4 routers of MixtralForCausalLM ran"):
        losses_of(model, inputs, wanted, share_prompts=False)
