"""Memory of a step counted without data equals that of the real step."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from sepo.forward.lora import fuse_lora
from sepo.forward.recompute import recompute_less
from sepo.forward.sharing_support import batch_layout, layout_for
from sepo.forward.statistics import selected_statistics
from sepo.memory import step
from sepo.memory.live import LiveBytes, tensors_of
from sepo.memory.shapes import Adapters, Trained
from sepo.memory.step import Pass, Row, largest_row, scoring_row, step_bytes
from sepo.objectives import Transport, weigh_states
from tests.support.models import batch_of, model_of, values_and_gradients

PAIRS = ((7, 30, 41), (2, 25, 33))


def real_bytes(model, *, pairs=PAIRS, autocast=None, token_weight=None, router_loss=False):
    """Return the peak of a real model's training step on a real batch, without the loss."""
    fuse_lora(model)
    recompute_less(model)
    inputs, wanted = batch_of(pairs)
    layout = layout_for(model, inputs, batch_layout(inputs, wanted, whole=router_loss))
    context = torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None)
    with context:
        values_and_gradients(model, inputs, wanted, layout)  # gradients exist from here on
    live = LiveBytes()
    live.leave_out([*tensors_of(model), *(weight.grad for weight in model.parameters() if weight.grad is not None)])
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    with live, context:
        lengths = wanted.sum(-1).tolist()
        weigh = None if token_weight is None else lambda states: weigh_states(token_weight, states, lengths)
        tokens = {"labels": inputs["input_ids"], "wanted": wanted, "layout": layout}
        statistics = selected_statistics(model, inputs, weigh=weigh, **tokens, router_loss=router_loss)
        (statistics.logps.sum() + (statistics.router_losses.sum() if router_loss else 0.0)).backward()
    assert all(weight.grad is gradients[name] for name, weight in model.named_parameters())
    return live.peak


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Phi", "Gemma2", "Qwen3_5", "Granite4", "Qwen3Moe"])
def test_a_step_without_data_needs_as_much_as_the_real_one(name, checkpointing):
    model = model_of(name)
    config = model.config.to_dict()
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    model = get_peft_model(model, lora).train()
    if checkpointing:
        model.base_model.model.gradient_checkpointing_enable({"use_reentrant": True})
    # without the last rejected token, which predicts no token
    row = Row(tuple((prompt, chosen - 1, rejected - 1) for prompt, chosen, rejected in PAIRS), 30 + 41 + 25 + 33)
    planned = step_bytes(type(model_of(name).config).from_dict(config), row,
                         Pass(torch.float32, trained=Trained(Adapters(4)), checkpointing=checkpointing))  # fmt: skip
    assert planned == pytest.approx(real_bytes(model), rel=0.1)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_step_that_trains_all_weights_in_bfloat16(checkpointing):
    """Under ``pure_bf16`` weights train in the dtype in which they are loaded."""
    model = model_of("Llama", dtype=torch.bfloat16).train()
    config = model.config
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": True})
    row = Row(tuple((prompt, chosen - 1, rejected - 1) for prompt, chosen, rejected in PAIRS), 30 + 41 + 25 + 33)
    trained = Trained(everything=True, in_float32=False)
    planned = step_bytes(config, row, Pass(torch.bfloat16, trained=trained, checkpointing=checkpointing))
    assert planned == pytest.approx(real_bytes(model), rel=0.1)


def test_a_transport_between_long_responses():
    """Its matrices, one number for each pair of tokens, are larger than all else here; both passes free them."""
    model, weight = model_of("Llama"), Transport(reg=1.0, reg_m=0.2)
    config, pairs = model.config, ((1, 700, 500), (3, 200, 600))
    row = Row(((1, 699, 499), (3, 199, 599)), 2000)
    how = Pass(torch.float32, trained=Trained(everything=True))
    planned = step_bytes(config, row, replace(how, token_weight=weight))
    model.gradient_checkpointing_enable({"use_reentrant": True})
    assert planned == pytest.approx(real_bytes(model, pairs=pairs, token_weight=weight), rel=0.1)
    assert planned > step_bytes(config, row, how) + 700 * 500 * 4


def test_the_selected_tokens_of_each_response():
    row = Row(((1, 99, 49), (5, 10, 20)), 89)
    assert row.selected_lengths == [50, 4, 25, 10]
    assert replace(row, selected=178).selected_lengths == [99, 10, 49, 20]


@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_loss_of_routers_keeps_the_probabilities_of_all_experts(checkpointing):
    """In bfloat16, in which torch itself has the shapes of the experts' product."""
    more = {"num_experts": 64, "num_hidden_layers": 3}  # so that the probabilities are a large part
    model = model_of("Qwen3Moe", dtype=torch.bfloat16, **more).train()
    config = model.config
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": True})
    row = Row(PAIRS, 30 + 41 + 25 + 33)
    trained = Trained(everything=True, in_float32=False)
    planned, without = (
        step_bytes(config, row, Pass(torch.bfloat16, trained=trained, checkpointing=checkpointing, router_loss=loss))
        for loss in (True, False)
    )
    assert planned > 1.1 * without
    inputs, wanted = batch_of(PAIRS)
    layout = layout_for(model, inputs, batch_layout(inputs, wanted, whole=True))
    selected_statistics(model, inputs, labels=inputs["input_ids"], wanted=wanted, layout=layout, router_loss=True)
    assert planned == pytest.approx(real_bytes(model, router_loss=True), rel=0.1)


def test_more_tokens_layers_and_no_checkpointing_cost_more():
    config = model_of("Llama").config
    trained = Trained(Adapters(4))
    small = step_bytes(config, Row(((1, 50, 50),), 30), Pass(torch.float32, trained=trained))
    large = step_bytes(config, Row(((1, 100, 100),), 60), Pass(torch.float32, trained=trained))
    open_ = step_bytes(config, Row(((1, 100, 100),), 60), Pass(torch.float32, trained=trained, checkpointing=False))
    scored = step_bytes(config, Row(((1, 100, 100),), 60), Pass(torch.float32, backward=False))
    assert 1.8 * small < large < 2.2 * small
    assert open_ > 1.5 * large
    assert scored < large


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("name", ["Llama", "Gemma3"])
def test_deep_models_cost_as_much_as_their_layers(name, checkpointing, monkeypatch):
    config = model_of(name).config
    values = {**config.to_dict(), "num_hidden_layers": 12}
    if values.get("layer_types"):
        values["layer_types"] = ["sliding_attention", "full_attention"] * 6
    deep = type(config).from_dict(values)
    how = Pass(torch.float32, trained=Trained(Adapters(4)), checkpointing=checkpointing)
    row = Row(((1, 50, 50), (7, 20, 30)), 60)
    short = step_bytes(deep, row, how)
    monkeypatch.setattr(step, "_depths", lambda config: (11, 12))
    assert short == pytest.approx(step_bytes(deep, row, how), rel=0.01)


@pytest.mark.parametrize(
    ("name", "equal"),
    [("Llama", True), ("GPT2", True), ("Mixtral", True), ("Qwen2", False), ("Gemma2", False), ("Qwen3_5", False),
     ("Granite4", False)],
)  # fmt: skip
def test_models_with_equal_layers_are_run_with_fewer(name, equal):
    config = model_of(name).config
    values = {**config.to_dict(), "num_hidden_layers": 12, "n_layer": 12}
    for kinds in ("layer_types", "layers_block_type"):
        if values.get(kinds):
            values[kinds] = values[kinds][:3] * 4
    assert step._depths(type(config).from_dict(values)) == ((2, 3) if equal else (4, 6))


def test_layers_that_differ_in_their_modules_are_not_equal():
    values = model_of("Qwen3Moe").config.to_dict()
    found = [
        step._depths(type(model_of("Qwen3Moe").config).from_dict({**values, "num_hidden_layers": 9, **more}))
        for more in ({}, {"mlp_only_layers": [0]}, {"decoder_sparse_step": 2})
    ]
    assert found == [(2, 3), (4, 6), (4, 6)]


@pytest.mark.parametrize("name", ["Llama", "Gemma3"])
def test_a_pass_without_a_backward_pass_needs_the_same_at_any_depth(name):
    config = model_of(name).config
    values = {**config.to_dict(), "num_hidden_layers": 12}
    if values.get("layer_types"):
        values["layer_types"] = [*["sliding_attention"] * 5, "full_attention"] * 2
    deep = type(config).from_dict(values)
    row, how = Row(((1, 50, 50), (7, 20, 30)), 60), Pass(torch.float32, backward=False)
    assert step_bytes(deep, row, how) == step._step_bytes(*step.at_depth(deep, 12), row, how)


def test_rows_stay_within_the_budget():
    assert largest_row(4, cutoff=100, batch_tokens=None, share=0.3).tokens == 4 * 199
    assert largest_row(4, cutoff=100, batch_tokens=450, share=0.3) == Row(((1, 99, 99),) * 2, 119)
    assert largest_row(4, cutoff=100, batch_tokens=10, share=1.0).tokens == 199
    assert scoring_row(1000, cutoff=100).tokens == 5 * 199
    assert scoring_row(10, cutoff=100).tokens == 199
