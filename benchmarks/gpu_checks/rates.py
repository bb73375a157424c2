"""Rates of the device, of data transfer and of scoring."""

import copy
import functools
import random
import statistics
import time

import gpu_step
import scoring

from gpu_checks.runner import Check, Failure
from gpu_checks.sessions import require_gpu
from gpu_checks.steps import spread

WAYS = scoring.WAYS
REPEATS = 7


def device_checks():
    """Return the checks of the device's own rates."""
    return [Check("device/rates", rates, 30), Check("device/transfer", transfer, 30)]


def scoring_checks(*, tiny):
    """Return the scoring checks by shape."""
    if tiny:
        return [Check("scoring/tiny", functools.partial(scored, shape="tiny", pairs=3, length=64), 30)]
    return [
        Check("scoring/1b", functools.partial(scored, shape="1b", pairs=32, length=1024), 60),
        Check("scoring/7b", functools.partial(scored, shape="7b", pairs=12, length=1024), 90),
    ]


def seconds_of(context, function):
    """Return the seconds of several calls after one that is not timed."""
    function()
    found = []
    for _ in range(REPEATS):
        context.synchronize()
        start = time.perf_counter()
        function()
        context.synchronize()
        found.append(time.perf_counter() - start)
    return found


def rates(context):
    """Measure a large matrix product and copies between host and device."""
    import torch

    size = 2**20 if context.tiny else 2**29
    source, target = (torch.empty(size, dtype=torch.uint8, device=context.device).random_() for _ in range(2))
    on_host = {"pageable": torch.empty(size, dtype=torch.uint8).random_()}
    if context.cuda:
        on_host["pinned"] = on_host["pageable"].pin_memory()
    copied = {"device to device": seconds_of(context, lambda: target.copy_(source))}
    for kind, tensor in on_host.items():
        copied[f"host to device, {kind}"] = seconds_of(
            context, lambda tensor=tensor: target.copy_(tensor, non_blocking=True)
        )
        copied[f"device to host, {kind}"] = seconds_of(
            context, lambda tensor=tensor: tensor.copy_(source, non_blocking=True)
        )
    return {
        "matrix_flops_per_second": context.peak_flops(),
        "copied_bytes": size,
        "copied_bytes_per_second": {name: size / statistics.median(found) for name, found in copied.items()},
    }


def transfer(context):
    """Measure what a batch costs before its forward pass: to the device, and the layout of its pairs."""
    import torch

    from sepo.forward.sharing_support import batch_layout

    rows, length = (4, 64) if context.tiny else (8, 2048)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 512, (rows, length), generator=draw)
    ids[rows // 2 :, : length // 2] = ids[: rows // 2, : length // 2]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    wanted = torch.zeros(rows, length - 1, dtype=torch.bool)
    wanted[:, length // 2 :] = True

    def moved():
        return {name: value.to(context.device) for name, value in batch.items()}, wanted.to(context.device)

    inputs, on_device = moved()
    layout = batch_layout(inputs, on_device)
    expected = rows * length - (rows // 2) * (length // 2) - rows
    if not abs(layout.tokens - expected) <= rows:
        raise Failure(f"the row of pairs has {layout.tokens} tokens, expected {expected}", {})
    return {
        "rows": rows,
        "length": length,
        "to_device_seconds": spread(seconds_of(context, moved)),
        "layout_seconds": spread(seconds_of(context, lambda: batch_layout(inputs, on_device))),
    }


def scored(context, *, shape, pairs, length):
    """Time oracle scoring by sepo, by sepo without batches and by the authors' method, in bfloat16 (tiny: float32)."""
    from types import SimpleNamespace

    import torch

    from sepo.forward.sequences import ScoredSequence

    require_gpu(context, shape)
    context.sessions.close()
    base = gpu_step.random_model(shape, context.device).eval().requires_grad_(False)
    if context.tiny:
        base = base.float()
    oracle = copy.deepcopy(base)
    torch.manual_seed(1)
    for parameter in oracle.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=1e-3)
    draw = random.Random(0)
    vocabulary = gpu_step.VOCABULARY[shape]

    def drawn(count):
        return [draw.randrange(4, vocabulary) for _ in range(count)]

    rounds = []
    for _ in range(2):
        sequences = []
        for _ in range(pairs):
            prompt = drawn(length // 2)
            for _ in ("chosen", "rejected"):
                response = drawn(draw.randrange(length // 4, length // 2))
                sequences.append(ScoredSequence([*prompt, *response], len(prompt)))
        rounds.append(sequences)
    options = SimpleNamespace(batch_tokens=8192)
    ways = {name: scoring.way_of(name, oracle, base, options) for name in WAYS}
    seconds, first = scoring.timed(ways, rounds, context.synchronize)
    tokens = [sum(len(each.input_ids) for each in batch) for batch in rounds]
    values = {"pairs": pairs, "tokens": tokens, "ways": {}}
    for name in WAYS:
        apart = max(
            float((ours - theirs).abs().max()) for ours, theirs in zip(first[name], first[scoring.AUTHORS], strict=True)
        )
        ratios = [theirs / own for theirs, own in zip(seconds[scoring.AUTHORS], seconds[name], strict=True)]
        rate = statistics.median(count / own for count, own in zip(tokens, seconds[name], strict=True))
        values["ways"][name] = {
            "seconds": spread(seconds[name]),
            "tokens_per_second": rate,
            "speed_over_authors": statistics.median(ratios),
            "largest_difference": apart,
        }
    allowed = scoring.TOLERANCE["fp32" if context.tiny else "bf16"]
    worst = max(way["largest_difference"] for way in values["ways"].values())
    if not worst <= allowed:
        raise Failure(f"the ways differ by {worst:.3g} nats in a score, expected at most {allowed}", values)
    return values
