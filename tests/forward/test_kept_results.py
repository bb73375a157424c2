"""Results that checkpointed layers keep for the recomputation: the same numbers, fewer products, bounded memory."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

from sepo.forward import kept_results
from sepo.forward.head import selected_log_probs
from sepo.forward.kept_results import step_limit
from sepo.forward.lora import fuse_lora
from sepo.forward.recompute import _BUDGETS, recompute_as_before, recompute_less
from sepo.forward.sharing_support import batch_layout, layout_for
from sepo.memory.live import LiveBytes, tensors_of
from tests.support.models import PAIRS, batch_of, model_of, values_and_gradients

ALL = 10**9
LONG = [(40, 150, 190), (3, 270, 120)]  # more than one block of queries


def adapted(name="Llama", *, dtype=torch.float32, dropout=0.0, **changes):
    model = model_of(name, dtype=dtype, **changes)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False, r=4,
                        lora_dropout=dropout)  # fmt: skip
    model = get_peft_model(model, config).train()
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    fuse_lora(model)
    return model


def step(model, pairs=PAIRS, *, autocast=False):
    inputs, wanted = batch_of(pairs)
    layout = layout_for(model, inputs, batch_layout(inputs, wanted))
    torch.manual_seed(5)  # for dropout
    with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
        return values_and_gradients(model, inputs, wanted, layout)


class Calls(TorchDispatchMode):
    """The number of attention kernels in the forward direction, and of products with frozen matrices."""

    def __init__(self, model):
        super().__init__()
        self.attention, self.products = 0, 0
        self._frozen = {weight.data_ptr() for name, weight in model.named_parameters() if "base_layer" in name}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.attention += func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        if func is torch.ops.aten.t.default:
            self.products += args[0].data_ptr() in self._frozen
        return func(*args, **(kwargs or {}))


def calls(model, **how):
    with Calls(model) as counted:
        step(model, **how)
    return counted.attention, counted.products


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("Llama", {}),
        ("Llama", {"pairs": LONG, "max_position_embeddings": 512}),
        ("Llama", {"autocast": True}),
        ("Llama", {"dtype": torch.bfloat16}),
        ("Llama", {"dropout": 0.5}),
        ("Gemma2", {}),
        ("GPT2", {}),
        ("Qwen3Moe", {}),
        ("Qwen3_5", {}),
        ("Granite4", {}),
    ],
)
def test_values_and_gradients_are_the_same_to_the_last_bit(name, how):
    running = {key: how[key] for key in ("pairs", "autocast") if key in how}
    model = adapted(name, **{key: value for key, value in how.items() if key not in running})
    step(model, **running)  # the model is checked here
    recompute_less(model, kept_bytes=0)
    expected, gradients = step(model, **running)
    before = calls(model, **running)
    recompute_as_before(model)
    recompute_less(model, kept_bytes=ALL)
    step(model, **running)  # costs are measured here
    result, kept = step(model, **running)
    assert torch.equal(result, expected)
    assert all(torch.equal(kept[parameter], gradient) for parameter, gradient in gradients.items())
    after = calls(model, **running)
    assert after[0] <= before[0]
    assert after[1] <= before[1]
    assert after != before
    assert _BUDGETS[model].now == 0


def test_each_product_and_each_attention_runs_once():
    model = adapted()
    recompute_less(model, kept_bytes=ALL)
    step(model)
    assert calls(model) == (len(PAIRS) * 2 * 3, 7 * 3)
    recompute_less(model, kept_bytes=0)  # another limit for the same layers
    assert calls(model)[1] == 7 * 3 + 6 * 2  # the last product of a layer and the last layer run once in any case


def peak(model, pairs, *, share=1.0):
    live = LiveBytes()
    live.leave_out(tensors_of(model))
    inputs, wanted = batch_of(pairs)
    wanted &= torch.rand(wanted.shape, generator=torch.Generator().manual_seed(2)) <= share
    layout = layout_for(model, inputs, batch_layout(inputs, wanted))
    model.zero_grad()
    with live:
        values_and_gradients(model, inputs, wanted, layout)
    return live.peak


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_kept_results_stay_within_the_limit(share):
    model = adapted(num_hidden_layers=6, max_position_embeddings=512)
    recompute_less(model, kept_bytes=0)
    step(model, LONG)
    least = peak(model, LONG)
    recompute_less(model, kept_bytes=ALL)
    step(model, LONG)
    most = peak(model, LONG) - least
    limit = int(share * most)
    recompute_less(model, kept_bytes=limit)
    step(model, LONG)
    assert 0.6 * limit < peak(model, LONG) - least <= limit
    step(model, [(3, 3, 3)])
    assert 0 <= peak(model, LONG) - least <= limit  # also with costs from before a small batch


def test_results_that_do_not_fit_after_all_are_computed_again():
    """Estimates from another batch can be too low: the third of four attentions is not kept, but the last one is."""
    model = adapted(max_position_embeddings=512)
    recompute_less(model, kept_bytes=0)
    step(model, LONG)
    expected, gradients = step(model, LONG)
    recompute_less(model, kept_bytes=ALL)
    step(model, LONG)
    for layer in _BUDGETS[model].layers:
        layer.results = {"attention": layer.results["attention"]}
        layer.results["attention"].bytes_per_token = 1e-3
    recompute_less(model, kept_bytes=(190 + 190 + 130) * (32 + 4) * 4)  # a float32 output and a log-sum for each head
    with Calls(model) as counted:
        result, kept = step(model, LONG)
    assert counted.attention == 4 + 4 * 2 + 4 * 2 - 3
    assert torch.equal(result, expected)
    assert all(torch.equal(kept[name], gradient) for name, gradient in gradients.items())


def test_a_second_backward_pass_over_the_same_graph():
    model = adapted()
    recompute_less(model, kept_bytes=ALL)
    step(model)
    inputs, wanted = batch_of(PAIRS)
    layout = layout_for(model, inputs, batch_layout(inputs, wanted))
    logps = selected_log_probs(model, inputs, labels=inputs["input_ids"], wanted=wanted, layout=layout)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    first, second = (torch.autograd.grad(logps.sum(), trained, retain_graph=True) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize(("wanted_share", "vocabulary"), [(0.2, 3500), (1.0, 20_000)])
def test_by_default_a_step_stays_below_its_logits(wanted_share, vocabulary):
    model = adapted(num_hidden_layers=12, max_position_embeddings=512, vocab_size=vocabulary)
    recompute_less(model, kept_bytes=0)
    step(model, LONG)
    least = peak(model, LONG, share=wanted_share)
    recompute_less(model)
    limit = step_limit(batch_of(LONG)[0]["input_ids"].numel(), vocabulary)
    first = peak(model, LONG, share=wanted_share)
    assert first == pytest.approx(least, rel=0.02)  # nothing is known, so nothing is kept
    most = peak(model, LONG, share=wanted_share)
    assert least + 0.25 * (limit - least) < most < limit


def test_small_batches_may_be_as_large_as_the_largest_one():
    model = adapted(max_position_embeddings=512, vocab_size=3000)
    recompute_less(model)
    step(model)
    step(model)
    before = _BUDGETS[model].allowed
    step(model, LONG)
    step(model)
    assert _BUDGETS[model].allowed > before


def test_nothing_is_kept_without_free_memory(monkeypatch):
    model = adapted(vocab_size=12_000)
    recompute_less(model)
    step(model)
    step(model)
    assert _BUDGETS[model].allowed > 0
    monkeypatch.setattr(kept_results, "free_bytes", lambda device: 2000)
    least = calls(model)
    assert _BUDGETS[model].allowed == 0
    recompute_less(model, kept_bytes=0)
    assert calls(model) == least


def test_the_most_arithmetic_per_byte_is_kept_first_in_the_last_layers():
    model = adapted(num_hidden_layers=4, intermediate_size=96)
    recompute_less(model, kept_bytes=ALL)
    step(model)
    tokens = sum(map(sum, PAIRS))
    layers = _BUDGETS[model].layers
    cost = {key: (each.flops_per_token / each.bytes_per_token) for key, each in layers[0].results.items()}
    down = model.base_model.model.model.layers[0].mlp.down_proj.base_layer.weight
    assert cost[id(down)] == max(value for key, value in cost.items() if key != "attention")
    assert id(down) not in layers[0].repeated  # it is not computed again in any case
    recompute_less(model, kept_bytes=int(32 * 4 * tokens * 1.01))
    step(model)
    assert [len(layer.chosen) for layer in layers] in ([0, 0, 1], [0, 1, 1], [0, 0, 2])


def test_a_graph_without_a_backward_pass_gives_its_bytes_back():
    model = adapted()
    recompute_less(model, kept_bytes=ALL)
    step(model)
    inputs, _ = batch_of(PAIRS)
    logits = model(**inputs, use_cache=False).logits
    assert _BUDGETS[model].now > 0
    del logits
    assert _BUDGETS[model].now == 0


def test_layers_without_an_adapter_on_a_product_keep_their_attention():
    model = model_of("Llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    step(model)
    recompute_less(model, kept_bytes=0)
    expected, gradients = step(model)
    before = calls(model)[0]
    recompute_less(model, kept_bytes=ALL)
    step(model)
    result, kept = step(model)
    assert torch.equal(result, expected)
    assert all(torch.equal(kept[name], gradient) for name, gradient in gradients.items())
    assert calls(model)[0] == len(PAIRS) * 2 * 3 < before


def test_attention_has_the_values_and_gradients_of_torchs():
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 70, 8, generator=draw, requires_grad=True) for heads in (4, 2, 2))
    from sepo.forward.kept_attention import cpu_attention

    mask = torch.rand(70, 70, generator=draw) < 0.5
    mask.fill_diagonal_(True)
    for attn_mask, is_causal in ((None, True), (None, False), (mask, False)):
        how = {"attn_mask": attn_mask, "dropout_p": 0.0, "is_causal": is_causal, "scale": 0.3, "enable_gqa": True}
        results = []
        for function in (F.scaled_dot_product_attention, cpu_attention):
            output = function(q, k, v, **how)
            results.append((output, *torch.autograd.grad(output.square().sum(), (q, k, v))))
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
