"""Pairs as one row with shared prompts equal the padded batch: log-probabilities and gradients, for every model."""

import copy
import logging

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch._dynamo.testing import CompileCounter

from sepo.forward import sharing_support as sharing
from sepo.forward.attention import PREFIX
from sepo.forward.head import selected_log_probs
from sepo.forward.lora import fuse_lora
from sepo.forward.recompute import recompute_less
from sepo.forward.sharing_support import batch_layout, layout_for, refusal_of
from tests.support.models import MODELS, PAIRS, SMALL, batch_of, model_of, values_and_gradients
from tests.support.tempered import TemperedAttention


def assert_equal_ways(model, *, lengths=PAIRS, tolerance=2e-5, share=1.0):
    inputs, wanted = batch_of(lengths)
    wanted &= torch.rand(wanted.shape, generator=torch.Generator().manual_seed(2)) <= share
    layout = layout_for(model, inputs, batch_layout(inputs, wanted))
    assert layout is not None
    assert layout.tokens < inputs["attention_mask"].sum()
    plain, expected = values_and_gradients(model, inputs, wanted)
    shared, gradients = values_and_gradients(model, inputs, wanted, layout)
    torch.testing.assert_close(shared, plain, rtol=tolerance, atol=tolerance * plain.abs().max().item())
    assert gradients.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("share", [1.0, 0.3], ids=["all tokens", "some tokens"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_the_row_equals_the_batch(name, attention, share):
    assert_equal_ways(model_of(name, attention=attention), share=share)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_in_bfloat16(name, attention):
    # 8 bits of mantissa through three layers; attention to other pairs would change values by whole nats.
    assert_equal_ways(model_of(name, attention=attention, dtype=torch.bfloat16), tolerance=0.04)


@pytest.mark.parametrize("name", ["Phi", "GPT2", "GPTNeoX"])  # the others always compute norms in float32
def test_in_float64(name):
    assert_equal_ways(model_of(name, dtype=torch.float64), tolerance=1e-13)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["Llama", "Gemma2", "GPT2"])
def test_with_gradient_checkpointing(name, reentrant):
    model = model_of(name)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert_equal_ways(model)


def test_two_rows_before_one_backward_pass():
    """Checkpointed layers are recomputed in the backward pass, each with the layout of its row."""
    model = model_of("Llama")
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    batches = [batch_of(PAIRS), batch_of([(3, 9, 4), (6, 2, 8)], seed=5)]
    sums = {}
    for way in ("plain", "shared"):
        model.zero_grad()
        losses = []
        for inputs, wanted in batches:
            layout = layout_for(model, inputs, batch_layout(inputs, wanted)) if way == "shared" else None
            logps = selected_log_probs(model, inputs, labels=inputs["input_ids"], wanted=wanted, layout=layout)
            losses.append(logps.sum())
        sum(losses).backward()
        sums[way] = model.model.layers[0].mlp.down_proj.weight.grad.clone()
    torch.testing.assert_close(sums["shared"], sums["plain"], rtol=2e-5, atol=2e-5)


def test_lora_with_its_adapter_enabled_and_disabled():
    model = get_peft_model(model_of("Llama"), LoraConfig(target_modules="all-linear", init_lora_weights=False))
    assert_equal_ways(model)
    inputs, wanted = batch_of(PAIRS)
    layout = layout_for(model, inputs, batch_layout(inputs, wanted))
    with torch.no_grad(), model.disable_adapter():
        tokens = {"labels": inputs["input_ids"], "wanted": wanted}
        shared = selected_log_probs(model, inputs, layout=layout, **tokens)
        torch.testing.assert_close(shared, selected_log_probs(model, inputs, **tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_other_uses_of_the_model_are_unchanged(attention, tmp_path):
    model = model_of("Gemma2", attention=attention).eval()
    before = copy.deepcopy(model)
    inputs, wanted = batch_of(PAIRS)
    assert layout_for(model, inputs, batch_layout(inputs, wanted)) is not None
    assert model.config._attn_implementation == PREFIX + attention
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, before(**inputs).logits, rtol=0, atol=0)
    prompt = inputs["input_ids"][:1, :6]
    written = [some.generate(prompt, max_new_tokens=9, do_sample=False).tolist() for some in (model, before)]
    assert written[0] == written[1]
    model.save_pretrained(tmp_path)
    assert PREFIX not in (tmp_path / "config.json").read_text()


class Shifted(torch.nn.Module):
    """An MLP that mixes in the previous token: state outside of attention."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, states):
        return self.inner(states + torch.nn.functional.pad(states, (0, 0, 1, 0))[:, :-1])


def leaking():
    model = model_of("Llama")
    model.model.layers[1].mlp = Shifted(model.model.layers[1].mlp)
    return model


def half_ours():
    model = model_of("Llama")
    layer = model.model.layers[1].self_attn
    layer.config = copy.deepcopy(layer.config)
    return model


def with_argument_that_is_read(attention):
    model = model_of("Llama", attention=attention)
    model.model.layers[2].self_attn.__class__ = TemperedAttention
    return model


def passing(**arguments):
    """Return a model that passes more arguments to the attention of its last layer."""
    model = model_of("Llama")
    layer = model.model.layers[2].self_attn
    own = layer.forward
    layer.forward = lambda *args, **kwargs: own(*args, **{**kwargs, **arguments})
    return model


def bidirectional():
    model = model_of("Llama")
    model.model.layers[1].self_attn.is_causal = False
    return model


def test_arguments_that_no_attention_reads_are_no_obstacle():
    assert_equal_ways(passing(output_router_logits=True, flag_of_the_next_release=torch.ones(3)))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (leaking, "returns other log-probabilities for a row of pairs than for a batch"),
        (half_ours, "2 of the 3 layers of LlamaForCausalLM used sepo's attention"),
        (lambda: with_argument_that_is_read("sdpa"), "TemperedAttention passes temperature to its attention"),
        (lambda: passing(is_causal=False), "LlamaAttention passes is_causal=False to its attention"),
        (bidirectional, "LlamaAttention passes is_causal=False to its attention"),
        (lambda: passing(attention_mask=torch.zeros(1, 1, 1, 16)), "LlamaAttention changes its attention mask"),
    ],
)
def test_an_unsupported_model_is_detected_and_takes_the_plain_path(make, reason, caplog):
    model = make()
    inputs, wanted = batch_of(PAIRS)
    sharing._WARNED.clear()
    with caplog.at_level(logging.WARNING, logger="sepo"):
        for _ in range(2):
            assert layout_for(model, inputs, batch_layout(inputs, wanted)) is None
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("sepo")]
    assert reason in message
    assert model.config._attn_implementation == "sdpa"


def test_an_argument_that_only_the_eager_attention_of_the_model_reads_is_detected_there():
    model, (inputs, wanted) = with_argument_that_is_read("eager"), batch_of(PAIRS)
    assert layout_for(model, inputs, batch_layout(inputs, wanted)) is None
    plain, _ = values_and_gradients(model, inputs, wanted)
    without, _ = values_and_gradients(model_of("Llama", attention="eager"), inputs, wanted)
    assert (plain - without).abs().max() > 0.1


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.MambaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1), "carries state"),
        (transformers.BloomConfig(vocab_size=9, hidden_size=8, n_layer=1, n_head=1), "registry"),
        (
            transformers.LlamaConfig(**{**SMALL, "attention_chunk_size": 4}),
            "chunks",
        ),
        (transformers.GPT2Config(**{**SMALL, "reorder_and_upcast_attn": True}), "float32"),
        (transformers.LlamaConfig(**SMALL, attn_implementation="flex_attention"), "'flex_attention'"),
    ],
)
def test_unsupported_models_have_a_reason(config, reason):
    assert reason in refusal_of(transformers.AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda inputs: {**inputs, "pixel_values": torch.zeros(1)}, "the batch carries pixel_values"),
        (lambda inputs: {**inputs, "attention_mask": inputs["attention_mask"].flip(1)}, "not padded on the right"),
        (lambda inputs: {**inputs, "attention_mask": torch.ones(6, 1, 4, 4)}, "not a padding mask"),
    ],
)
def test_batches_without_a_layout_run_padded(change, reason, caplog):
    inputs, wanted = batch_of(PAIRS)
    sharing._WARNED.clear()
    with caplog.at_level(logging.WARNING, logger="sepo"):
        assert batch_layout(change(inputs), wanted) is None
    assert reason in caplog.text


def test_a_batch_without_a_mask_has_no_padding():
    inputs, wanted = batch_of([(4, 6, 6)], padding=0)
    assert batch_layout({"input_ids": inputs["input_ids"]}, wanted).tokens == 4 + 5 + 5


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it between two graphs
@pytest.mark.parametrize("checkpointed", [False, True], ids=["", "checkpointed"])
def test_compiled_models_are_not_recompiled_for_every_batch(checkpointed):
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(model_of("Llama", num_hidden_layers=2), config).train()
    if checkpointed:
        model.base_model.model.gradient_checkpointing_enable({"use_reentrant": True})
        model.enable_input_require_grads()
    fuse_lora(model)
    recompute_less(model)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    frames = []
    for more in range(3):
        inputs, wanted = batch_of([(7 + more, 5, 9), (2, 8 + more, 7)], seed=more)
        layout = layout_for(model, inputs, batch_layout(inputs, wanted))
        expected, gradients = values_and_gradients(model, inputs, wanted, layout)
        result, found = values_and_gradients(compiled, inputs, wanted, layout)
        torch.testing.assert_close(result, expected)
        found = {name.removeprefix("_orig_mod."): gradient for name, gradient in found.items()}
        torch.testing.assert_close(found, gradients, rtol=2e-5, atol=2e-5 * max(g.abs().max() for g in found.values()))
        frames.append(counter.frame_count)
    assert frames[1] == frames[-1]  # once for the first shape, once for any
