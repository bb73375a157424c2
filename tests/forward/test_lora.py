"""Fused LoRA: PEFT's values and gradients, or PEFT's own forward for layers that do more."""

import copy

import bitsandbytes
import pytest
import torch
from peft import LoraConfig, get_peft_model

from sepo.forward.lora import _forward, _low_rank, fuse_lora, unfuse_lora
from tests.support.models import PAIRS, batch_of, model_of


def adapted(dtype=torch.float64, name="Phi", **config):
    """Return a model with nonzero adapters; Phi's layers have biases."""
    torch.manual_seed(5)
    values = {"target_modules": "all-linear", "init_lora_weights": False, "r": 3, "lora_alpha": 7, **config}
    return get_peft_model(model_of(name, dtype=dtype), LoraConfig(task_type="CAUSAL_LM", **values)).train()


def run(model, autocast=False):
    inputs, _ = batch_of(PAIRS)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(**inputs, use_cache=False).logits
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(logits.dtype)
    (logits * weights).sum().backward()
    grads = {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}
    return logits.detach(), grads


def assert_same(model, tolerance, autocast=False):
    expected, gradients = run(model, autocast)
    assert fuse_lora(model) > 0
    result, fused = run(model, autocast)
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())
    assert fused.keys() == gradients.keys()
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    torch.testing.assert_close(fused, gradients, rtol=tolerance, atol=tolerance * largest)
    unfuse_lora(model)
    again, _ = run(model, autocast)
    assert torch.equal(again, expected)


def used(model):
    """Count the layers that take the fused path."""
    states = torch.zeros(1, 1, 1)
    layers = [
        module for module in model.modules() if getattr(module.__dict__.get("forward"), "__func__", 0) is _forward
    ]
    assert layers
    return sum(_low_rank(layer, states.to(next(layer.parameters()).dtype)) is not None for layer in layers)


@pytest.mark.parametrize("name", ["Phi", "GPTNeoX"])
def test_values_and_gradients_equal_pefts(name):
    assert_same(adapted(name=name), 1e-12)


def test_in_float32_and_with_rank_stabilized_scaling():
    assert_same(adapted(torch.float32, use_rslora=True), 2e-5)


def test_under_autocast():
    """Frozen bfloat16 weights and float32 adapters, as in the host."""
    model = adapted(torch.bfloat16)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    assert_same(model, 0.05, autocast=True)


def test_a_base_that_trains_too():
    model = adapted()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("base_layer" in name or parameter.requires_grad)
    assert_same(model, 1e-12)


@pytest.mark.parametrize("reentrant", [True, False])
def test_with_gradient_checkpointing(reentrant):
    model = adapted()
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert_same(model, 1e-12)


def test_quantized_base():
    model = model_of("Llama")
    for layer in model.model.layers:
        for owner, name in [(layer.mlp, "up_proj"), (layer.self_attn, "q_proj")]:
            plain = getattr(owner, name)
            quantized = bitsandbytes.nn.Linear4bit(plain.in_features, plain.out_features, bias=False,
                                                   quant_type="nf4", compute_dtype=torch.float32)  # fmt: skip
            quantized.weight = bitsandbytes.nn.Params4bit(plain.weight.data, requires_grad=False, quant_type="nf4")
            setattr(owner, name, quantized.to("cpu"))
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["up_proj", "q_proj"], init_lora_weights=False)
    model = get_peft_model(model, config).train()
    assert {type(m).__name__ for m in model.modules()} >= {"Linear4bit"}
    assert_same(model, 2e-5)


@pytest.mark.parametrize(
    "config",
    [{"use_dora": True}, {"lora_dropout": 0.3}, {"lora_bias": True, "target_modules": ["q_proj"]}],
    ids=["dora", "dropout", "lora bias"],
)
def test_layers_that_do_more_keep_their_own_forward(config):
    model = adapted(**config)
    fuse_lora(model)
    assert used(model) == 0
    run(model)


def test_dropout_is_off_in_evaluation():
    model = adapted(lora_dropout=0.3)
    fuse_lora(model)
    assert used(model.eval()) > 0


def test_states_of_an_adapter():
    """Disabled, merged, and two active adapters."""
    model = adapted()
    inputs, _ = batch_of(PAIRS)
    expected = {}
    for fused in (False, True):
        if fused:
            fuse_lora(model)
        values = []
        with torch.no_grad():
            with model.disable_adapter():
                values.append(model(**inputs).logits)
            model.merge_adapter()
            values.append(model(**inputs).logits)
            model.unmerge_adapter()
            values.append(model(**inputs).logits)
        expected[fused] = values
    for result, target in zip(expected[True], expected[False], strict=True):
        torch.testing.assert_close(result, target, rtol=1e-11, atol=1e-11)
    model.add_adapter("other", LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "other"])
    assert used(model) == len([name for name, _ in model.named_modules() if name.endswith("lora_A")]) - 3


def test_a_copied_model_uses_its_own_weights():
    model = adapted()
    fuse_lora(model)
    copied = copy.deepcopy(model)
    before, _ = run(copied)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(run(copied)[0], before)


def test_layers_with_sharded_weights_keep_their_own_forward():
    model = adapted()
    fuse_lora(model)
    whole = used(model)
    layer = next(module for module in model.modules() if hasattr(module, "lora_A"))
    layer.lora_A["default"].weight.ds_id = 3
    assert used(model) == whole - 1


def test_a_matrix_with_a_hook_keeps_its_own_forward():
    model = adapted()
    fuse_lora(model)
    whole = used(model)
    matrices = [module.lora_A["default"] for module in model.modules() if hasattr(module, "lora_A")]
    for matrix, register in zip(
        matrices, ("register_forward_hook", "register_forward_pre_hook", "register_backward_hook"), strict=False
    ):
        getattr(matrix, register)(lambda *args: None)
    assert used(model) == whole - 3
