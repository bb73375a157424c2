"""The attention over pairs in two ways: two SDPA calls per pair, as in sepo, and one call with lengths for all pairs.

`torch.nn.attention.varlen.varlen_attn` takes sequences of any lengths in one call and aligns a causal mask at their
last tokens, as the pieces of pairs need it: the queries are the row itself, in pieces, and the keys are the row with
the shared tokens of each pair once more before its rejected response. It is CUDA's (flash attention, half precision).
"""

import functools
import itertools

from gpu_checks.correctness import error
from gpu_checks.rates import seconds_of
from gpu_checks.runner import Check, Failure, Skip
from gpu_checks.steps import spread

SMALL = [(90, 60, 75), (17, 130, 44), (140, 33, 20), (0, 25, 70), (40, 12, 0)]
"""Pairs of (shared, chosen, rejected) tokens whose values and gradients are compared."""
CASES = {
    "16 short pairs": [(64 + 8 * pair, 60 + 4 * pair, 150 - 5 * pair) for pair in range(16)],
    "64 short pairs": [(64 + 2 * pair, 60 + pair, 150 - pair) for pair in range(64)],
    "4 long pairs": [(1024, 1024, 900)] * 4,
}
HEADS, SIZE = 32, 128
ALLOWED = 2.0
"""Error against float64, as a multiple of that of the calls per pair."""


def checks():
    """Return the checks of this group: equality, then the time of each case."""
    return [
        Check("pair_attention/equal", equal, 30),
        *(
            Check(f"pair_attention/{name}", functools.partial(timed, lengths=lengths), 30)
            for name, lengths in CASES.items()
        ),
    ]


def kernel(context):
    """Return torch's function; raise ``Skip`` if there is none."""
    import torch

    if not context.cuda:
        raise Skip("attention with lengths is CUDA's")
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        raise Skip(f"torch {torch.__version__} has no torch.nn.attention.varlen") from None
    return varlen_attn


def layout_of(lengths, device):
    """Return the layout of a row of (shared, chosen, rejected) tokens."""
    import torch

    from sepo.forward.shared_prompt import PairLayout, PairSpan

    spans, start = [], 0
    for each in lengths:
        spans.append(PairSpan(start, *each))
        start = spans[-1].end
    places = torch.arange(start, device=device)
    return PairLayout(tuple(spans), places, places, places[None])


def per_pair(layout, query, key, value):
    """Compute the attention as sepo does; tensors [1, heads, N, D], result [1, N, heads, D]."""
    from sepo.forward.attention import _fused_piece, attend_pairs

    piece = functools.partial(_fused_piece, "sdpa")
    return attend_pairs(None, query, key, value, layout, piece=piece)


def with_lengths(function, layout, query, key, value):
    """Compute the same by one call of ``varlen_attn``. What depends on the row only is made once per layout."""
    import torch

    if "lengths" not in layout.parts:
        own, seen, keys = [0], [0], []
        for span in layout.spans:
            own += [span.split - span.start, span.rejected]
            seen += [span.split - span.start, span.shared + span.rejected]
            keys += [*range(span.start, span.split), *range(span.start, span.start + span.shared)]
            keys += range(span.split, span.end)
        ends = (torch.tensor([*itertools.accumulate(each)], dtype=torch.int32) for each in (own, seen))
        layout.parts["lengths"] = (
            *(each.to(query.device) for each in ends),
            max(own),
            max(seen),
            torch.tensor(keys, device=query.device),
        )
    *lengths, keys = layout.parts["lengths"]
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    return function(q, k.index_select(0, keys), v.index_select(0, keys), *lengths, window_size=(-1, 0))[None]


def drawn(layout, *, device, dtype, heads=HEADS, size=SIZE):
    """Return query, key and value [1, heads, N, D], which require gradients."""
    import torch

    draw = torch.Generator().manual_seed(0)
    states = torch.randn(3, 1, heads, layout.tokens, size, generator=draw)
    return [each.to(device=device, dtype=dtype).requires_grad_() for each in states]


def graded(way, states):
    """Return the values and the gradients of a weighted sum of them, in float64 on the CPU."""
    import torch

    output = way(*states)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    found = [output, *torch.autograd.grad(output, states, weights)]
    values, *gradients = (each.detach().double().cpu() for each in found)
    return values, dict(enumerate(gradients))


def compared(ways, *, device, dtype, **shape):
    """Return the errors of both ways against float64; raise ``Failure`` if those with lengths are too large.

    Args:
        ways: ``per pair`` and ``with lengths``, functions of a layout and the states.
        device: where they run.
        dtype: their precision.
        **shape: heads and size of a head.
    """
    import torch

    layout = layout_of(SMALL, "cpu")
    truth = graded(functools.partial(per_pair, layout), drawn(layout, device="cpu", dtype=torch.float64, **shape))
    errors = {}
    for name, way in ways.items():
        here = layout_of(SMALL, device)
        states = drawn(here, device=device, dtype=dtype, **shape)
        found = graded(functools.partial(way, here), states)
        errors[name] = {what: error(*pair) for what, *pair in zip(("values", "gradients"), found, truth, strict=True)}
    for what, own in errors["with lengths"].items():
        allowed = ALLOWED * errors["per pair"][what] + 1e-6
        if not own <= allowed:
            raise Failure(f"{what}: error {own:.3g} with lengths, expected at most {allowed:.3g}", errors)
    return errors


def _ways(context):
    return {"per pair": per_pair, "with lengths": functools.partial(with_lengths, kernel(context))}


def equal(context):
    """Compare values and gradients of both ways."""
    import torch

    return compared(_ways(context), device=context.device, dtype=torch.bfloat16)


def timed(context, *, lengths):
    """Time both ways, forward and backward, on a row of pairs, in bfloat16."""
    import torch

    values = {"pairs": len(lengths), "ways": {}}
    for name, way in _ways(context).items():
        layout = layout_of(lengths, context.device)
        states = drawn(layout, device=context.device, dtype=torch.bfloat16)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()

        def both(way=way, layout=layout, states=states):
            output = way(layout, *states)
            torch.autograd.grad(output, states, output)

        seconds = seconds_of(context, both)
        values["tokens"] = layout.tokens
        values["ways"][name] = {
            "seconds": spread(seconds),
            "peak_bytes": torch.cuda.max_memory_allocated() - before,
        }
    by_way = {name: way["seconds"]["median"] for name, way in values["ways"].items()}
    values["speed_with_lengths"] = by_way["per pair"] / by_way["with lengths"]
    return values
