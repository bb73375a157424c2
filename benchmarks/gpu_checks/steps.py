"""Speed and memory of training steps, against the host's and against the plan, and what each kernel contributes."""

import contextlib
import functools
import statistics
from unittest import mock

import gpu_step

from gpu_checks.runner import Check, Failure, Skip
from gpu_checks.sessions import HOST_DPO, HOST_SIMPO, Setup, peak, timed

PLANNED = {"sepo": {"stage": "sepo", "token_scorer": "random"}, "dpo": {"stage": "sepo", "objective": "dpo"}}
"""Contenders whose memory is planned, with the keys of their recipes."""
TOO_LITTLE, TOO_MUCH = 0.95, 1.5
"""Range of planned over measured bytes: a plan that is too low ends in an out-of-memory error."""
KERNEL_ROUNDS = 3
KERNELS = ("fused LoRA", "lean checkpointing", "chunked head", "pair attention", "last MLP")
TOP_KERNELS = 20


def checks(*, tiny):
    """Return the checks of this group, by shape, so that a model is loaded once."""
    if tiny:
        plain, quantized = (Setup("tiny", each, length=64, rounds=2) for each in ("none", "4"))
        return [*_all(plain, seconds=60), _speed(quantized, 60), _memory(quantized, 60)]
    large, quantized, last = Setup("7b"), Setup("7b", "4"), Setup("13b", "4", rounds=3)
    grouped, small = Setup("8b"), Setup("0.5b")
    return [
        *_all(large, seconds=150),
        *_all(quantized, seconds=110),
        _speed(grouped, 110), _memory(grouped, 30), _kernels(grouped, 80),
        _speed(small, 60), _memory(small, 30),
        _speed(last, 150), _memory(last, 40),
    ]  # fmt: skip


def first():
    """Return the check that anything runs at all."""
    return Check("start/tiny step", functools.partial(speed, setup=Setup("tiny", length=64, rounds=2)), 150)


def _all(setup, *, seconds):
    return [_speed(setup, seconds), _memory(setup, 40), _kernels(setup, 80), _profile(setup, 30)]


def _speed(setup, seconds):
    return Check(f"speed/{setup.name}", functools.partial(speed, setup=setup), seconds)


def _memory(setup, seconds):
    return Check(f"memory/{setup.name}", functools.partial(memory, setup=setup), seconds)


def _kernels(setup, seconds):
    return Check(f"kernels/{setup.name}", functools.partial(kernels, setup=setup), seconds)


def _profile(setup, seconds):
    return Check(f"profile/{setup.name}", functools.partial(profile, setup=setup), seconds)


def spread(seconds):
    """Return median, minimum and maximum of some seconds, and the seconds."""
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds), "all": list(seconds)}


def speed(context, *, setup):
    """Time the training steps of sepo's stages and of the host's dpo and simpo, interleaved."""
    from sepo.hosts.llamafactory.bench.report import loss_notes
    from sepo.hosts.llamafactory.bench.rounds import speeds

    session, baseline = context.sessions.open(setup), context.sessions.baseline
    steps = {name: (name, functools.partial(session.step, name)) for name in session.trainers}
    timings = timed(session, steps, rounds=setup.rounds)
    found = speeds(
        timings.seconds, pairs=session.pairs, tokens=session.tokens, baselines=[baseline, HOST_SIMPO]
    )  # fmt: skip
    values = {
        "baseline": baseline,
        "host_failure": context.sessions.host_failure,
        "length": setup.length,
        "pairs_per_step": session.pairs[0],
        "tokens_per_step": session.tokens[0],
        "peak_flops_per_second": context.peak_flops(),
        "contenders": {},
    }
    for contender in context.sessions.contenders:
        own = found[contender.name]
        flops = gpu_step.model_flops(
            setup.shape, own.tokens_per_second, reference=contender.needs_reference_model
        )  # fmt: skip
        values["contenders"][contender.name] = {
            "seconds": spread(timings.seconds[contender.name]),
            "pairs_per_second": own.pairs_per_second,
            "tokens_per_second": own.tokens_per_second,
            "speed_over_baseline": own.ratios[baseline],
            "speed_over_host_simpo": own.ratios.get(HOST_SIMPO),
            "model_flops_per_second": flops,
            "share_of_peak": flops / context.peak_flops() if context.cuda else None,
            "first_batch_loss": timings.losses[contender.name],
        }
    differ = loss_notes({**timings.losses, HOST_DPO: timings.losses[baseline]})
    if differ:
        raise Failure(" ".join(differ), values)
    return values


def memory(context, *, setup):
    """Compare the peak of a step with the plan, and with the host's dpo.

    Measured are all tensors: weights, gradients and activations. What a plan has besides them (optimizer states, which
    a step does not create, CUDA's own memory and fragmentation) is left out of the planned bytes and measured by
    itself.
    """
    session, baseline = context.sessions.open(setup), context.sessions.baseline
    before = context.allocated(session.model)
    values = {"baseline": baseline, "before_step_bytes": before, "contenders": {}}
    for name in (baseline, *PLANNED):
        context.empty_cache()
        above = peak(context, session, name, functools.partial(session.step, name))
        values["contenders"][name] = {"step_peak_bytes": above, "total_peak_bytes": before + above}
        values["contenders"][name] |= context.reserved(before + above)
    plain = values["contenders"][baseline]["step_peak_bytes"]
    wrong = []
    for name, changes in PLANNED.items():
        entry = values["contenders"][name]
        entry["step_peak_over_baseline"] = entry["step_peak_bytes"] / plain
        if context.sessions.host_failure is not None:  # a plan reads the host's keys
            continue
        planned, items = planned_bytes(setup.recipe(context, **changes), tokens=setup.shared_tokens, gpu=context.cuda)
        ratio = planned / entry["total_peak_bytes"]
        entry |= {"planned_bytes": planned, "planned_items": items, "planned_over_measured": ratio}
        if context.cuda and not TOO_LITTLE <= ratio <= TOO_MUCH:
            wrong.append(f"{name}: planned over measured is {ratio:.2f}, expected {TOO_LITTLE} to {TOO_MUCH}")
    values |= context.besides_tensors()
    if wrong:
        raise Failure("; ".join(wrong), values)
    return values


def planned_bytes(recipe, *, tokens, gpu):
    """Return the bytes of tensors that `sepo plan` expects in a step without optimizer states, and all items."""
    from sepo.hosts.llamafactory.plan.account import account_for
    from sepo.hosts.llamafactory.plan.recipe import planned_run

    account = account_for(planned_run(recipe), on_gpu=gpu, tokens=tokens)
    items = next(phase for phase in account.phases if phase.name == "training").items
    besides = ("optimizer", "CUDA", "fragmentation", "process")
    return sum(size for name, size in items.items() if not name.startswith(besides)), items


def kernels(context, *, setup):
    """Switch each of sepo's kernels off in turn, interleaved with all of them on: step time and peak memory."""
    session = context.sessions.open(setup)
    values = {"contenders": {}}
    for name in PLANNED:
        variants = {"all on": (), **{each: (each,) for each in KERNELS}, "all off": KERNELS}
        steps = {
            variant: (name, functools.partial(_step_without, session, name, off)) for variant, off in variants.items()
        }
        timings = timed(session, steps, rounds=min(KERNEL_ROUNDS, setup.rounds))
        entries = {}
        for variant, (_, run) in steps.items():
            context.empty_cache()
            entries[variant] = {
                "seconds": spread(timings.seconds[variant]),
                "step_peak_bytes": peak(context, session, name, run),
                "first_batch_loss": timings.losses[variant],
            }
        best = entries["all on"]
        for variant, entry in entries.items():
            off = timings.seconds[variant]
            ratios = [without / with_all for without, with_all in zip(off, timings.seconds["all on"], strict=True)]
            entry["slower_without"] = statistics.median(ratios)
            entry["memory_without"] = entry["step_peak_bytes"] / max(1, best["step_peak_bytes"])
            entry["earns_its_place"] = entry["slower_without"] > 1.01 or entry["memory_without"] > 1.01
        values["contenders"][name] = entries
        losses = {variant: entry["first_batch_loss"] for variant, entry in entries.items()}
        apart = max(abs(loss - losses["all on"]) for loss in losses.values())
        if not apart <= 0.03 * max(1e-3, abs(losses["all on"])):
            raise Failure(f"{name}: the losses differ by {apart:.3g} between the variants: {losses}", values)
    return values


def _step_without(session, name, off, batch):
    """Run a step of a contender with some of sepo's kernels off."""
    from sepo.forward import head, statistics
    from sepo.forward.lora import fuse_lora, unfuse_lora
    from sepo.forward.recompute import recompute_as_before, recompute_less

    trainer = session.trainers[name]
    (unfuse_lora if "fused LoRA" in off else fuse_lora)(session.model)
    (recompute_as_before if "lean checkpointing" in off else recompute_less)(session.model)
    with contextlib.ExitStack() as stack:
        if "chunked head" in off:
            stack.enter_context(mock.patch.object(statistics, "token_statistics", _full_statistics))
            stack.enter_context(mock.patch.object(head, "token_log_probs", _full_log_probs))
        if "pair attention" in off:
            stack.enter_context(mock.patch.object(trainer, "shares_prompts", return_value=False))
        if "last MLP" in off:
            unchanged = contextlib.nullcontext()
            stack.enter_context(mock.patch.object(head, "last_mlp_only_at", return_value=unchanged))
        return trainer.training_step(session.model, dict(session.batches[name][batch]))


def _full_log_probs(hidden, weight, targets, *, bias=None, chunk_tokens=None, transform=None):
    """Compute log-probabilities from the logits of all wanted tokens at once, kept for the backward pass."""
    from torch.nn.functional import linear

    from sepo.forward.chunked import at_least_float32, matmul_dtype

    dtype = matmul_dtype(hidden)
    logits = transform(at_least_float32(linear(hidden.to(dtype), weight.to(dtype), bias)))
    return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def _full_statistics(hidden, weight, targets, *, reference, with_p2, **options):
    from sepo.forward.vocabulary import TokenStatistics

    if reference is not None or with_p2:
        raise ValueError("reference and with_p2 are set, expected a method without sums over the vocabulary")
    return TokenStatistics(logps=_full_log_probs(hidden, weight, targets, **options))


def profile(context, *, setup):
    """Profile one step of stage sepo and one of dpo: the operations with the most time of their own."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    session = context.sessions.open(setup)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if context.cuda else [])]
    device = "device" if context.cuda else "cpu"
    values = {}
    for name in PLANNED:
        session.step(name, 0)
        session.settle(name)
        session.synchronize()
        with profiled(activities=activities) as found:
            session.step(name, 0)
            session.synchronize()
        session.settle(name)
        kinds = [each for each in found.key_averages() if context.is_device_event(each)]
        times = sorted(
            ((getattr(each, f"self_{device}_time_total"), each.key, each.count) for each in kinds), reverse=True
        )
        total = sum(time for time, _, _ in times)
        if not total:
            raise Skip("the profiler recorded no time on the device")
        values[name] = {
            "total_milliseconds": total / 1000,
            "largest": [
                {"name": key[:120], "milliseconds": time / 1000, "share": time / total, "calls": count}
                for time, key, count in times[:TOP_KERNELS]
            ],
        }
    return values
