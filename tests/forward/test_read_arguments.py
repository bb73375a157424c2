"""The arguments that an attention function reads, however it reads them."""

import functools

import pytest
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sepo.forward.read_arguments import read_arguments


def named(query, *, bias=None, **kwargs):
    return query


def taken(query, **kwargs):
    return kwargs.get("bias", query)


def looked_for(query, **kwargs):
    return query if any(name in kwargs for name in ("bias", "slope")) else None


def in_a_closure(query, **kwargs):
    def inner():
        return kwargs["bias"]

    return inner()


def passed_on(query, **kwargs):
    return named(query, **kwargs)


def passed_to_a_kernel(query, **kwargs):
    return kernel()(query, **kwargs)


def kernel():
    return functools.partial(named, slope=1)


@functools.wraps(named)
def decorated(*args, **kwargs):
    return named(*args, **kwargs)


@pytest.mark.parametrize(
    "function",
    [
        named,
        taken,
        looked_for,
        in_a_closure,
        passed_on,
        passed_to_a_kernel,
        decorated,
        functools.partial(taken, slope=1),
    ],
)
def test_an_argument_is_found_however_it_is_read(function):
    assert "bias" in read_arguments(function)
    assert "output_router_logits" not in read_arguments(function)


def test_a_function_without_further_arguments_reads_those_of_its_signature():
    def plain(query, scaling):
        return taken(query, bias=scaling)

    assert read_arguments(plain) == {"query", "scaling"}


def test_of_a_function_that_is_not_written_in_python_nothing_is_known():
    assert read_arguments(max) is None


def test_the_functions_of_transformers():
    assert {"dropout", "scaling", "is_causal"} <= read_arguments(ALL_ATTENTION_FUNCTIONS["sdpa"])
    sinks = {"s_aux", "softcap", "sliding_window", "cu_seq_lens_q", "max_length_k", "position_ids"}
    assert sinks <= read_arguments(ALL_ATTENTION_FUNCTIONS["flash_attention_2"])
    ignored = {"output_router_logits", "cache_position", "position_embeddings", "past_key_values", "num_items_in_batch"}
    for name in ("sdpa", "flash_attention_2", "flash_attention_3"):
        assert not ignored & read_arguments(ALL_ATTENTION_FUNCTIONS[name])
