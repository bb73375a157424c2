"""Layers with a state over a row of pairs: the state of the prompt continues in both responses, with its gradient."""

import copy
import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model

from sepo.forward import sharing_support as sharing
from sepo.forward import state_layers as state_layers_module
from sepo.forward.head import selected_log_probs
from sepo.forward.lora import fuse_lora
from sepo.forward.recompute import recompute_less
from sepo.forward.sequences import ScoredSequence, response_log_probs
from sepo.forward.shared_prompt import LAYOUT
from sepo.forward.sharing_support import batch_layout, layout_for, refusal_of
from sepo.forward.state_layers import state_layers
from sepo.forward.state_space import chunk_scan
from tests.support.models import OTHERS, PAIRS, batch_of, model_of, values_and_gradients
from tests.support.recurrences import delta_rule

FAMILIES = ["Qwen3_5", "Qwen3Next", "Granite4", "Bamba"]
SHORT = [(1, 6, 4), (2, 3, 9), (3, 5, 1), (4, 2, 7), (5, 1, 1)]  # prompts around the 4 tokens of the convolution
LONG = [(70, 90, 5), (2, 3, 130), (130, 4, 66)]  # several chunks of 64 tokens


def assert_equal_ways(model, *, lengths=PAIRS, values=1e-5, gradients=1e-4, change=None):
    inputs, wanted = batch_of(lengths)
    if change is not None:
        change(inputs["input_ids"])
    layout = layout_for(model, inputs, batch_layout(inputs, wanted))
    assert layout is not None
    plain, expected = values_and_gradients(model, inputs, wanted)
    shared, found = values_and_gradients(model, inputs, wanted, layout)
    assert layout.carried >= len(state_layers(model)) > 0
    torch.testing.assert_close(shared, plain, rtol=0, atol=values)
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=gradients * largest, msg=name)


@pytest.mark.parametrize("lengths", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_of_any_length(name, lengths):
    assert_equal_ways(model_of(name, max_position_embeddings=256), lengths=lengths)


@pytest.mark.parametrize(
    ("name", "checkpointed"), [*((name, False) for name in OTHERS), ("Zamba2", True)]
)  # Nemotron-H has no checkpointing
def test_blocks_that_are_built_otherwise(name, checkpointed):
    model = model_of(name)
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": True})
        model.enable_input_require_grads()
    assert_equal_ways(model)


@pytest.mark.parametrize("some", [5, 3], ids=["all", "some"])
@pytest.mark.parametrize("name", ["Qwen3_5", "Granite4"])
def test_pairs_without_a_common_token(name, some):
    def differ(ids):
        ids[5 : 5 + some, 0] = ids[:some, 0] - 1

    assert_equal_ways(model_of(name), lengths=SHORT, change=differ)


@pytest.mark.parametrize("lengths", [PAIRS, SHORT], ids=["", "short"])
def test_in_float64_with_the_recurrence_token_by_token(lengths):
    # what remains: norms and decays, which the model computes in float32
    model = model_of("Qwen3_5", dtype=torch.float64)
    for layer in state_layers(model):
        layer.chunk_gated_delta_rule = delta_rule
    assert_equal_ways(model, lengths=lengths, values=2e-6, gradients=2e-6)


def test_with_a_fused_convolution():
    """As with the library of its kernel, which the layer calls in place of its module."""

    def fused(x, weight, bias, activation, seq_idx):
        assert (bias, activation, seq_idx) == (None, "silu", None)
        left = torch.nn.functional.pad(x, (weight.shape[1] - 1, 0))
        return torch.nn.functional.silu(torch.nn.functional.conv1d(left, weight[:, None], groups=x.shape[1]))

    model = model_of("Qwen3_5")
    for layer in state_layers(model):
        layer.causal_conv1d_fn = fused
    assert_equal_ways(model, lengths=SHORT)


@pytest.mark.parametrize("way", ["reentrant", "non-reentrant", "lean"])
@pytest.mark.parametrize("name", FAMILIES)
def test_with_gradient_checkpointing(name, way):
    model = model_of(name)
    model.gradient_checkpointing_enable({"use_reentrant": way != "non-reentrant"})
    model.enable_input_require_grads()
    if way == "lean":
        assert recompute_less(model) == 3
    assert_equal_ways(model)


def test_two_rows_before_one_backward_pass():
    """Checkpointed layers are recomputed in the backward pass, each with the layout of its row."""
    model = model_of("Qwen3_5")
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    batches = [batch_of(PAIRS), batch_of(SHORT, seed=5)]
    sums = {}
    for way in ("plain", "shared"):
        model.zero_grad()
        losses = []
        for inputs, wanted in batches:
            layout = layout_for(model, inputs, batch_layout(inputs, wanted)) if way == "shared" else None
            tokens = {"labels": inputs["input_ids"], "wanted": wanted}
            losses.append(selected_log_probs(model, inputs, layout=layout, **tokens).sum())
        sum(losses).backward()
        sums[way] = model.model.layers[0].linear_attn.in_proj_qkv.weight.grad.clone()
    torch.testing.assert_close(sums["shared"], sums["plain"], rtol=1e-4, atol=1e-4 * sums["plain"].abs().max().item())


@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
@pytest.mark.parametrize("name", FAMILIES)
def test_lora_on_the_projections(name, fused):
    model = get_peft_model(model_of(name), LoraConfig(target_modules="all-linear", init_lora_weights=False))
    if fused:
        assert fuse_lora(model)
    assert_equal_ways(model)


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_of_pairs_equal_those_of_sequences(name):
    model = model_of(name).eval()
    inputs, _ = batch_of(PAIRS)
    rows = [ids[kept != 0].tolist() for ids, kept in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    sequences = [ScoredSequence(row, PAIRS[index % 3][0]) for index, row in enumerate(rows)]
    shared = response_log_probs(model, sequences, pairs=True)
    assert sharing._REFUSALS[model] is None
    for found, sequence in zip(shared, sequences, strict=True):
        torch.testing.assert_close(found, *response_log_probs(model, [sequence]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_other_uses_of_the_model_are_unchanged(name):
    model = model_of(name).eval()
    before = copy.deepcopy(model)
    inputs, wanted = batch_of(PAIRS)
    assert layout_for(model, inputs, batch_layout(inputs, wanted)) is not None
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, before(**inputs).logits, rtol=0, atol=0)
    prompt = inputs["input_ids"][:1, :6]
    written = [some.generate(prompt, max_new_tokens=9, do_sample=False).tolist() for some in (model, before)]
    assert written[0] == written[1]


@pytest.mark.parametrize("name", ["Qwen3_5", "Granite4"])
def test_a_copy_uses_its_own_weights(name):
    model = model_of(name)
    assert_equal_ways(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer in state_layers(other):
            layer.out_proj.weight.mul_(-2)
    assert_equal_ways(other)
    inputs, wanted = batch_of(PAIRS)
    first, _ = values_and_gradients(model, inputs, wanted)
    second, _ = values_and_gradients(other, inputs, wanted)
    assert (first - second).abs().max() > 0.1


def forgetful(layer):
    own = layer.chunk_gated_delta_rule
    layer.chunk_gated_delta_rule = lambda *args, **kwargs: own(*args, **{**kwargs, "initial_state": None})


def with_own_recurrence(layer):
    forward, own = type(layer).forward, layer.chunk_gated_delta_rule

    def run(*args, **kwargs):
        layer.chunk_gated_delta_rule = own
        return forward(layer, *args, **kwargs)

    layer.forward = run


def without_convolution(layer):
    layer.causal_conv1d_fn = lambda x, **kwargs: torch.nn.functional.silu(x)
    forward, own = type(layer).forward, layer.causal_conv1d_fn

    def run(*args, **kwargs):
        layer.causal_conv1d_fn = own
        return forward(layer, *args, **kwargs)

    layer.forward = run


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (forgetful, "returns other log-probabilities for a row of pairs than for a batch"),
        (with_own_recurrence, "Qwen3_5GatedDeltaNet called no recurrence that carries its state"),
        (without_convolution, "Qwen3_5GatedDeltaNet called no convolution that carries its state"),
    ],
)
def test_a_state_that_is_not_carried_is_detected(spoil, reason, caplog):
    model = model_of("Qwen3_5")
    layer = model.model.layers[2].linear_attn
    spoil(layer)
    forward = layer.__dict__.get("forward")
    inputs, wanted = batch_of(PAIRS)
    sharing._WARNED.clear()
    with caplog.at_level(logging.WARNING, logger="sepo"):
        assert layout_for(model, inputs, batch_layout(inputs, wanted)) is None
    assert reason in caplog.text
    assert model.config._attn_implementation == "sdpa"
    assert layer.__dict__.get("forward") is forward
    assert not any(block._forward_pre_hooks for block in model.model.layers)


def test_a_layer_with_another_cache_is_detected(caplog):
    model = model_of("Granite4")
    layer = model.model.layers[0].mamba
    layer.cuda_kernels_forward = lambda hidden_states, cache_params, attention_mask: cache_params.conv_states[0]
    inputs, wanted = batch_of(PAIRS)
    sharing._WARNED.clear()
    with caplog.at_level(logging.WARNING, logger="sepo"):
        assert layout_for(model, inputs, batch_layout(inputs, wanted)) is None
    assert "GraniteMoeHybridMambaLayer does not run over a row of pairs in this version (" in caplog.text
    assert layer.__dict__.get("forward") is None


def test_a_state_space_that_is_not_carried_is_detected(monkeypatch, caplog):
    monkeypatch.setattr(
        state_layers_module,
        "chunk_scan",
        lambda *args, **kwargs: chunk_scan(*args, **{**kwargs, "initial_states": None}),
    )
    model = model_of("Granite4")
    inputs, wanted = batch_of(PAIRS)
    sharing._WARNED.clear()
    with caplog.at_level(logging.WARNING, logger="sepo"):
        assert layout_for(model, inputs, batch_layout(inputs, wanted)) is None
    assert "GraniteMoeHybridForCausalLM returns other log-probabilities for a row of pairs" in caplog.text


def test_a_delta_rule_without_kernels_that_is_not_carried_is_detected(monkeypatch, caplog):
    own = state_layers_module.chunk_gated_delta_rule
    monkeypatch.setattr(
        state_layers_module,
        "chunk_gated_delta_rule",
        lambda *args, **kwargs: own(*args, **{**kwargs, "initial_state": None}),
    )
    model = model_of("Qwen3Next")
    inputs, wanted = batch_of(PAIRS)
    sharing._WARNED.clear()
    with caplog.at_level(logging.WARNING, logger="sepo"):
        assert layout_for(model, inputs, batch_layout(inputs, wanted)) is None
    assert "Qwen3NextForCausalLM returns other log-probabilities for a row of pairs" in caplog.text


@pytest.mark.parametrize("seed", [0, 1])
def test_the_scan_in_chunks_equals_the_recurrence(seed):
    """Values and gradients for every argument, from a state and over several chunks, in float64."""
    draw = torch.Generator().manual_seed(seed)
    rows, length, heads, groups, width, states = 2, 75, 4, 2, 3, 5

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()

    x, z = normal(rows, length, heads, width), normal(rows, length, heads, width)
    dt, A = normal(rows, length, heads), (-torch.rand(heads, generator=draw, dtype=torch.float64)).requires_grad_()
    B, C = normal(rows, length, groups, states), normal(rows, length, groups, states)
    D, bias, state = normal(heads), normal(heads), normal(rows, heads, width, states)
    limit = (0.3, 1.5)
    found = chunk_scan(
        x, dt, A, B, C, 32, D=D, z=z, dt_bias=bias, dt_softplus=True, dt_limit=limit, initial_states=state,
        return_final_states=True,
    )  # fmt: skip
    step = torch.nn.functional.softplus(dt + bias).clamp(*limit)
    now, outputs = state, []
    for t in range(length):
        keys, queries = (each[:, t].repeat_interleave(heads // groups, 1) for each in (B, C))
        entering = (step[:, t, :, None] * x[:, t])[..., None] * keys[:, :, None]
        now = now * (A * step[:, t]).exp()[..., None, None] + entering
        outputs.append((now * queries[:, :, None]).sum(-1) + D[:, None] * x[:, t])
    expected = torch.stack(outputs, 1) * torch.nn.functional.silu(z), now
    arguments = (x, z, dt, A, B, C, D, bias, state)
    slopes = [torch.randn(each.shape, generator=draw, dtype=torch.float64) for each in expected]
    for result, other in zip(found, expected, strict=True):
        torch.testing.assert_close(result, other, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(both, arguments, slopes, retain_graph=True) for both in (found, expected)]
    for gradient, other in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-10)


def test_compiled_models_take_the_plain_path(caplog):
    model = model_of("Granite4")
    inputs, wanted = batch_of(PAIRS)
    sharing._WARNED.clear()
    with caplog.at_level(logging.WARNING, logger="sepo"):
        assert layout_for(torch.compile(model), inputs, batch_layout(inputs, wanted)) is None
    assert "GraniteMoeHybridForCausalLM carries state from token to token and is compiled" in caplog.text
    assert model.config._attn_implementation == "sdpa"


def test_a_block_that_does_not_pass_the_layout_is_detected(caplog):
    model = model_of("Qwen3_5")
    model.model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: (args, {k: v for k, v in kwargs.items() if k != LAYOUT}), with_kwargs=True
    )
    inputs, wanted = batch_of(PAIRS)
    sharing._WARNED.clear()
    with caplog.at_level(logging.WARNING, logger="sepo"):
        assert layout_for(model, inputs, batch_layout(inputs, wanted)) is None
    assert "1 of the 2 layers with a state of Qwen3_5ForCausalLM carried it" in caplog.text


@pytest.mark.parametrize("name", FAMILIES)
def test_supported_by_class(name):
    with torch.device("meta"):
        assert refusal_of(model_of(name)) is None
