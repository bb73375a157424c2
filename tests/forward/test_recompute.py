"""Recomputation in checkpointed layers and computation in the last layer; values do not change."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

from sepo.forward.lora import fuse_lora
from sepo.forward.recompute import is_computed_again, recompute_as_before, recompute_less
from sepo.forward.shared_prompt import pair_layout
from sepo.forward.sharing_support import batch_layout, layout_for
from tests.support.models import MODELS, PAIRS, batch_of, model_of, values_and_gradients


def adapted(name="Llama", **checkpointing):
    model = model_of(name, dtype=torch.float64)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(model, config).train()
    model.base_model.model.gradient_checkpointing_enable(checkpointing or {"use_reentrant": True})
    model.enable_input_require_grads()
    return model


def step(model, *, share=1.0):
    inputs, wanted = batch_of(PAIRS)
    wanted &= torch.rand(wanted.shape, generator=torch.Generator().manual_seed(2)) <= share
    layout = layout_for(model, inputs, batch_layout(inputs, wanted))
    return values_and_gradients(model, inputs, wanted, layout)


def products(model, monkeypatch, run):
    """Count the products with each frozen matrix in a step, by layer name: in first and repeated forward passes."""
    names = {id(module.weight): name for name, module in model.named_modules() if name.endswith("base_layer")}
    counts = dict.fromkeys(names.values(), 0)
    linear = F.linear

    def counted(x, weight, bias=None):
        if id(weight) in names:
            counts[names[id(weight)]] += 1
        return linear(x, weight, bias)

    monkeypatch.setattr(F, "linear", counted)
    run()
    monkeypatch.setattr(F, "linear", linear)
    return {name.removeprefix("base_model.model.model.layers.").removesuffix(".base_layer"): n
            for name, n in counts.items() if ".layers." in name}  # fmt: skip


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("name", [*MODELS])
def test_values_and_gradients_are_the_same(name):
    model = adapted(name)
    fuse_lora(model)
    expected, gradients = step(model, share=0.4)
    assert recompute_less(model) == 3
    result, lean = step(model, share=0.4)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    torch.testing.assert_close(lean, gradients, rtol=0, atol=1e-10 * largest)


def test_a_layers_last_product_and_the_last_layer_run_once(monkeypatch):
    model = adapted()
    fuse_lora(model)
    step(model)  # the model is checked here
    before = products(model, monkeypatch, lambda: step(model))
    assert set(before.values()) == {2}
    recompute_less(model)
    after = products(model, monkeypatch, lambda: step(model))
    once = {name for name, count in after.items() if count == 1}
    assert once == {name for name in after if name.startswith("2.") or name.endswith("down_proj")}
    assert set(after.values()) == {1, 2}
    recompute_as_before(model)
    assert products(model, monkeypatch, lambda: step(model)) == before


class Unpacked(torch.autograd.Function):
    """A function that keeps its weight as bitsandbytes does, outside of the tensors saved for the backward pass."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.weight = weight
        return x @ weight.T

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.weight, None


class Packed(torch.nn.Linear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return Unpacked.apply(x, self.weight)


def test_quantized_weights_are_not_unpacked_unnecessarily():
    model = adapted()
    down = model.base_model.model.model.layers[0].mlp.down_proj.base_layer
    down.__class__ = Packed
    fuse_lora(model)
    expected, gradients = step(model)
    down.calls = 0
    step(model)
    assert down.calls == 2
    recompute_less(model)
    down.calls = 0
    result, lean = step(model)
    assert down.calls == 1
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lean, gradients, rtol=1e-9, atol=1e-9)


def test_other_functions_and_sharded_weights_are_not_changed():
    assert recompute_less(adapted(use_reentrant=False)) == 0
    model = adapted()
    layers = model.base_model.model.model.layers
    layers[0]._gradient_checkpointing_func = lambda function, *args: function(*args)
    next(layers[1].parameters()).ds_id = 1
    own = [layer._gradient_checkpointing_func for layer in layers]
    assert recompute_less(model) == 1
    assert [layer._gradient_checkpointing_func for layer in layers][:2] == own[:2]
    recompute_as_before(model)
    assert [layer._gradient_checkpointing_func for layer in layers] == own
    assert own[2].func is checkpoint


def test_it_is_idempotent():
    model = adapted()
    assert recompute_less(model) == recompute_less(model) == 3
    recompute_as_before(model)
    assert all(layer._gradient_checkpointing_func.func is checkpoint for layer in model.base_model.model.model.layers)


def read_positions(layout, wanted):
    """Count distinct positions before wanted tokens; the end of a prompt may be read for both responses."""
    return len(set(layout.placed[:, :-1][wanted].tolist()))


@pytest.mark.parametrize("name", ["Llama", "Phi", "GPT2", "Gemma2"])
def test_the_last_mlp_runs_where_hidden_states_are_read(name):
    model = model_of(name)
    decoder = model.get_decoder()
    *_, last = decoder.layers if hasattr(decoder, "layers") else decoder.h
    inputs, wanted = batch_of(PAIRS)
    wanted &= torch.rand(wanted.shape, generator=torch.Generator().manual_seed(2)) <= 0.3
    layout = layout_for(model, inputs, batch_layout(inputs, wanted))
    inside = []
    next(last.mlp.children()).register_forward_pre_hook(lambda module, args: inside.append(args[0].shape[:2].numel()))
    values_and_gradients(model, inputs, wanted, layout)
    assert inside == [read_positions(layout, wanted)]
    assert inside[0] < layout.tokens / 2
    assert "forward" not in vars(last.mlp)


def test_a_last_layer_in_torchs_wrapper_runs_whole():
    """FSDP's activation checkpointing wraps layers, without a sign of it inside."""
    plain, wrapped = model_of("Llama"), model_of("Llama")
    for place, layer in enumerate(wrapped.model.layers):
        wrapped.model.layers[place] = checkpoint_wrapper(layer)
    inputs, wanted = batch_of(PAIRS)
    wanted[:, ::2] = False
    ways = [
        values_and_gradients(model, inputs, wanted, layout_for(model, inputs, pair_layout(inputs["input_ids"], wanted)))
        for model in (plain, wrapped)
    ]
    torch.testing.assert_close(ways[0][0], ways[1][0])
    inside = {name.replace("_checkpoint_wrapped_module.", ""): gradient for name, gradient in ways[1][1].items()}
    torch.testing.assert_close(inside, ways[0][1])


def test_a_last_layer_that_is_computed_again_runs_whole():
    model = model_of("Llama")
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    last = model.model.layers[-1]
    assert is_computed_again(last)
    sizes = []
    last.mlp.gate_proj.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[1]))
    inputs, wanted = batch_of(PAIRS)
    wanted[:, ::2] = False
    layout = pair_layout(inputs["input_ids"], wanted)
    layout_for(model, inputs, layout)
    sizes.clear()
    values_and_gradients(model, inputs, wanted, layout)
    assert sizes == [layout.tokens] * 2
    recompute_less(model)
    assert not is_computed_again(last)
    assert is_computed_again(model.model.layers[0])
    sizes.clear()
    values_and_gradients(model, inputs, wanted, layout)
    assert sizes == [read_positions(layout, wanted)]
