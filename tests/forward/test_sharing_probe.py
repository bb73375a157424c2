"""The comparison of both layouts on a model's first batch detects wrong ones in every precision, and no correct one."""

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from sepo.forward import attention, sharing_probe
from sepo.forward.sharing_probe import probe_length
from sepo.forward.sharing_support import batch_layout, layout_for
from tests.support.models import MODELS, batch_of, layout_of, model_of

LONG = [(30, 20, 25), (9, 33, 41), (24, 12, 16)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, "autocast"]
SWITCH = 60


def takes_the_row(model, lengths=LONG, *, autocast=False, seed=0):
    inputs, wanted = batch_of(lengths, seed=seed)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return layout_for(model, inputs, batch_layout(inputs, wanted)) is not None


def made(name, dtype, **changes):
    """Return a model and whether it runs under autocast."""
    weights = torch.float32 if dtype == "autocast" else dtype
    return model_of(name, dtype=weights, **changes), dtype == "autocast"


def with_a_switch(kind, dtype, **more):
    """A model whose rotary frequencies change for sequences of more than 60 tokens."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0]} if kind == "longrope" else {}
    parameters = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **factors}
    length = {"original_max_position_embeddings": SWITCH, "max_position_embeddings": 4 * SWITCH}
    if kind == "dynamic":
        length = {"max_position_embeddings": SWITCH}
    else:
        parameters["original_max_position_embeddings"] = SWITCH
    return made("Llama", dtype, rope_parameters=parameters, **length, **more)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_no_supported_model_is_refused(name, dtype):
    for seed in range(3):
        model, autocast = made(name, dtype)
        assert takes_the_row(model, autocast=autocast, seed=seed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", [LONG, [(4, 55, 50)], [(4, 57, 50)], [(4, 90, 80)]], ids=str)
def test_no_model_whose_frequencies_switch_is_refused(lengths, dtype):
    """Also with sequences of as many tokens as the switch, and with one more and with many more."""
    model, autocast = with_a_switch("longrope", dtype)
    assert takes_the_row(model, lengths, autocast=autocast)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_model_with_dynamic_frequencies_is_refused_below_its_switch(dtype):
    """Above it, versions of transformers differ in whether one token more or less changes the frequencies."""
    model, autocast = with_a_switch("dynamic", dtype)
    assert takes_the_row(model, autocast=autocast)


def window_ignored(dtype, monkeypatch):
    own = attention.attend_pairs
    monkeypatch.setattr(attention, "attend_pairs", lambda *args, sliding_window, **more: own(*args, **more))
    return made("Mistral", dtype, sliding_window=40)


def frequencies_of_the_row(kind):
    def make(dtype, monkeypatch):
        model, autocast = with_a_switch(kind, dtype)
        rotary = model.model.rotary_emb
        own = rotary.forward

        def forward(states, position_ids):
            last = torch.full_like(position_ids[:, :1], states.shape[1] - 1)
            return tuple(part[:, :-1] for part in own(states, torch.cat([position_ids, last], 1)))

        rotary.forward = forward
        return model, autocast

    return make


def positions_of_the_rejected(dtype, monkeypatch):
    own = sharing_probe.pair_layout

    def shifted(ids, wanted):
        layout = own(ids, wanted)
        for span in layout.spans:
            layout.position_ids[span.split : span.end] += 1
        return layout

    monkeypatch.setattr(sharing_probe, "pair_layout", shifted)
    return made("Llama", dtype)


FAULTS = {
    "a window is ignored": window_ignored,
    "longrope by the tokens of the row": frequencies_of_the_row("longrope"),
    "dynamic rope by the tokens of the row": frequencies_of_the_row("dynamic"),
    "rejected positions are off by one": positions_of_the_rejected,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_detected(fault, dtype, monkeypatch, caplog):
    model, autocast = FAULTS[fault](dtype, monkeypatch)
    with caplog.at_level(logging.WARNING, logger="sepo"):
        assert not takes_the_row(model, autocast=autocast)
    assert model.config._attn_implementation == "sdpa"


@given(pairs=st.lists(st.tuples(*[st.integers(1, 4000)] * 3), min_size=1, max_size=8), window=st.integers(1, 5000))
def test_the_long_probe_costs_little_and_exceeds_a_window_that_the_batch_exceeds(pairs, window):
    model = model_of("Mistral", sliding_window=window, num_hidden_layers=1)
    layout = layout_of(*pairs)
    longest = max(shared + max(chosen, rejected) for shared, chosen, rejected in pairs)
    length = probe_length(model, layout)
    assert length <= max(64, layout.tokens / 5, longest)
    if longest >= window + max(8, window // 4):
        assert length > window
    model.config.sliding_window = None
    assert probe_length(model, layout) <= max(64, layout.tokens / 5)


def test_sequences_of_a_probe_are_within_a_switch_that_its_row_exceeds():
    model, _ = with_a_switch("longrope", torch.float32)
    length = probe_length(model, layout_of((30, 20, 30)))
    ids, wanted = sharing_probe._pairs_of(torch.arange(100), 1, length)
    assert ids.shape[1] == length <= SWITCH < sharing_probe.pair_layout(ids, wanted).tokens


def test_the_state_of_the_random_generator_is_that_of_a_run_without_the_check():
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    model = model_of("GPT2", resid_pdrop=0.1)
    torch.manual_seed(11)
    assert takes_the_row(model)
    assert torch.equal(torch.rand(1), expected)
    assert model.training


def test_a_compiled_model_is_compared_without_compilation():
    counter = CompileCounter()
    model = torch.compile(model_of("Llama"), backend=counter)
    assert takes_the_row(model)
    assert counter.frame_count == 0


@pytest.mark.parametrize(("setting", "unit"), [("tf32", 2.0**-10), ("ieee", 2.0**-23)])
def test_matrix_products_of_float32_on_cuda_may_be_rounded_more(setting, unit):
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, setting
    try:
        assert sharing_probe._unit(torch.float32, torch.device("cuda")) == unit
        assert sharing_probe._unit(torch.float32, torch.device("cpu")) == 2.0**-23
        assert sharing_probe._unit(torch.bfloat16, torch.device("cuda")) == 2.0**-7
    finally:
        matmul.fp32_precision = before


def test_a_first_batch_without_wanted_tokens_is_checked_too():
    """Its row has one token of each pair: the probes repeat it."""
    model = model_of("Llama")
    inputs, wanted = batch_of(LONG)
    layout = batch_layout(inputs, torch.zeros_like(wanted))
    assert layout.tokens == len(LONG)
    assert layout_for(model, inputs, layout) is layout
