"""Values and gradients on the device against the plain method in float64 on the CPU.

The plain method is a padded batch with full logits through the unchanged model. Errors are relative, |a - b| / |b| over
all values of a kind. The error of sepo's path may be twice that of the plain method in the same precision on the same
device, plus a floor for errors that are small by chance.
"""

import contextlib
import copy
import functools
import importlib.util
import tempfile

from gpu_checks.runner import Check, Failure, Skip

SECONDS = 45
FLOOR = {"float32": 3e-5, "bfloat16": 5e-3}
FACTOR = 2.0
COMMON = {"vocab_size": 1013, "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 3,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
          "initializer_range": 0.08, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
WINDOW = 40  # the rows below are longer
FAMILIES = {
    "Llama": {},
    "Qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "Qwen3": {"head_dim": 64},
    "Mistral": {"sliding_window": WINDOW},
    "Gemma2": {"head_dim": 64, "sliding_window": WINDOW, "attn_logit_softcapping": 20.0,
               "final_logit_softcapping": 10.0},
    "Qwen3Moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "head_dim": 64},
}  # fmt: skip
EAGER = ("Gemma2",)
BACKENDS = {
    "flash": ("FLASH_ATTENTION",),
    "efficient": ("EFFICIENT_ATTENTION",),
    "cudnn": ("CUDNN_ATTENTION", "EFFICIENT_ATTENTION"),  # it has no kernel for a rejected response after its prompt
    "math": ("MATH",),
}
PAIRS = [(90, 60, 75), (17, 130, 44), (140, 33, 20)]
TINY_PAIRS = [(50, 9, 14), (5, 48, 20)]
# Windows over several blocks of queries, see `sepo.forward.attention`.
LONG = {"pairs": [(2100, 90, 60)], "sliding_window": 700, "max_position_embeddings": 4096}
TINY_LONG = {"pairs": [(300, 40, 30)], "sliding_window": 100}
STEPS = {
    "sepo": {},
    "dpo": {},
    "tdpo2": {},
    "wpo": {},
    "otpo": {},
    "d2po": {},
    "simpo": {"token_scorer": "confidence"},
    "selective_dpo": {},
}


def checks():
    """Return the checks of this group."""
    found = []
    for family in FAMILIES:
        for dtype in ("float32", "bfloat16"):
            found.append(_check(f"sharing/{family}-{dtype}", sharing, family=family, dtype=dtype))
    for name in BACKENDS:
        for dtype in ("float32", "bfloat16"):
            found.append(_check(f"attention/{name}-{dtype}", sharing, family="Llama", dtype=dtype, backend=name))
    found.append(
        _check("attention/windows-efficient", sharing, family="Mistral", dtype="bfloat16", backend="efficient")
    )
    found.append(_check("attention/flash_attention_2", flash_attention, package="flash_attn"))
    for dtype in ("float32", "bfloat16"):
        found.append(_check(f"attention/long windows-{dtype}", long_windows, dtype=dtype))
        found.append(_check(f"head/{dtype}", chunked_head, dtype=dtype))
        found.append(_check(f"lora/{dtype}", fused_lora, dtype=dtype))
        found.append(_check(f"qlora/{dtype}", qlora, dtype=dtype))
    found.append(_check("router_loss", router_loss))
    found += [_check(f"step/{name}", step, objective=name) for name in STEPS]
    return found


def _check(name, function, **arguments):
    return Check(f"correctness/{name}", functools.partial(function, **arguments), SECONDS)


def _dtype(name):
    import torch

    return getattr(torch, name)


def model_of(family, *, attention=None, **changes):
    """Return a seeded model on the CPU, in training mode: the truth, in float64.

    Eager attention is in float32: in float64, padding without a token to attend to overflows to NaN.
    """
    import torch
    import transformers

    attention = attention or ("eager" if family in EAGER else "sdpa")
    values = {**COMMON, **FAMILIES[family], **changes}
    config = getattr(transformers, f"{family}Config")(**values, attn_implementation=attention)
    if hasattr(config, "num_experts"):
        config._experts_implementation = "eager"  # the default is a kernel for narrower types
    torch.manual_seed(3)
    dtype = torch.float32 if attention == "eager" else torch.float64
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).train()


def placed(model, *, device, dtype, attention=None):
    """Return a copy on the device in a precision."""
    moved = copy.deepcopy(model).to(device=device, dtype=_dtype(dtype) if isinstance(dtype, str) else dtype)
    if attention is not None:
        moved.config._attn_implementation = attention
    return moved


def with_lora(model):
    """Add LoRA with weights that are not zero to all linear layers."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(7)))
    return adapted


def batch_of(context, *, device, pairs=None):
    """Return inputs [2B, T], labels and wanted positions [2B, T - 1]: right-padded pairs with common prompts."""
    import torch

    draw = torch.Generator().manual_seed(0)
    sides, prompts = [[], []], []
    for prompt, chosen, rejected in pairs or (TINY_PAIRS if context.tiny else PAIRS):
        text, *responses = (
            torch.randint(3, COMMON["vocab_size"], (length,), generator=draw) for length in (prompt, chosen, rejected)
        )
        responses[1][:2] = responses[0][:2]
        for side, response in zip(sides, responses, strict=True):
            side.append(torch.cat([text, response]))
        prompts.append(prompt)
    rows = sides[0] + sides[1]
    ids = torch.zeros(len(rows), max(map(len, rows)) + 3, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
        start = prompts[index % len(prompts)]
        labels[index, start : len(row)] = row[start:]
    wanted = (labels[:, 1:] != -100) & (torch.rand(labels[:, 1:].shape, generator=draw) < 0.7)
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    return inputs, labels.to(device), wanted.to(device)


def plain_log_probs(model, inputs, wanted):
    """Compute the log-probabilities of the plain method, 0 where not wanted."""
    import torch

    logits = model(**inputs, use_cache=False).logits[:, :-1]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    values = logits.log_softmax(-1).gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
    return torch.where(wanted, values, 0.0)


def shared_log_probs(model, inputs, wanted):
    """Compute them by sepo's path, with shared prompts."""
    from sepo.forward.head import selected_log_probs
    from sepo.forward.sharing_support import batch_layout, layout_for

    layout = layout_for(model, inputs, batch_layout(inputs, wanted))
    if layout is None:
        raise Failure("the model does not share prompts here: see the warning in the output", {})
    return selected_log_probs(model, inputs, labels=inputs["input_ids"], wanted=wanted, layout=layout)


def graded(model, logps):
    """Return the values and the gradients of a weighted sum, in float64 on the CPU."""
    import torch

    model.zero_grad(set_to_none=True)
    weights = torch.randn(logps.shape, generator=torch.Generator().manual_seed(1)).to(logps)
    (logps * weights).sum().backward()
    gradients = {
        name: weight.grad.detach().double().cpu()
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }
    return logps.detach().double().cpu(), gradients


def error(found, expected):
    """Return |found - expected| / |expected|, over a tensor or all tensors of a mapping."""
    import torch

    if isinstance(expected, dict):
        if found.keys() != expected.keys():
            return float("inf")
        found, expected = (torch.cat([part[name].flatten() for name in expected]) for part in (found, expected))
    return ((found - expected).norm() / expected.norm()).item()


def judged(dtype, *, ours, plain, truth):
    """Return the errors of values and gradients; raise ``Failure`` if those of sepo's path are too large.

    Args:
        dtype: the precision.
        ours: values and gradients of sepo's path on the device.
        plain: those of the plain method on the device.
        truth: those of the plain method in float64.
    """
    values, wrong = {}, []
    for index, what in enumerate(("values", "gradients")):
        own, other = error(ours[index], truth[index]), error(plain[index], truth[index])
        allowed = FACTOR * other + FLOOR[dtype]
        values[what] = {"error": own, "plain_error": other, "allowed": allowed}
        if not own <= allowed:
            wrong.append(f"{what}: error {own:.3g}, expected at most {allowed:.3g}")
    if wrong:
        raise Failure("; ".join(wrong), values)
    return values


def long_windows(context, *, dtype):
    """Compare rows that are longer than a block of queries, in a model with sliding windows."""
    changes = TINY_LONG if context.tiny else LONG
    return sharing(context, family="Mistral", dtype=dtype, **changes)


def sharing(context, *, family, dtype, backend=None, pairs=None, **changes):
    """Compare shared prompts with the padded batch, with the default or one forced kernel for sepo's attention."""
    kernels = _forced(context, backend, dtype)
    truth_inputs, _, truth_wanted = batch_of(context, device="cpu", pairs=pairs)
    truth_model = model_of(family, **changes)
    truth = graded(truth_model, plain_log_probs(truth_model, truth_inputs, truth_wanted))
    inputs, _, wanted = batch_of(context, device=context.device, pairs=pairs)
    results = {}
    for name, log_probs in (("plain", plain_log_probs), ("ours", shared_log_probs)):
        model = placed(truth_model, device=context.device, dtype=dtype)
        log_probs(model, inputs, wanted)  # sepo's first call compares both paths by itself, with any kernel
        with kernels() if name == "ours" else contextlib.nullcontext():
            results[name] = graded(model, log_probs(model, inputs, wanted))
    return judged(dtype, truth=truth, **results)


def _forced(context, backend, dtype):
    if backend is None:
        return contextlib.nullcontext
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if not context.cuda and backend in ("efficient", "cudnn"):
        raise Skip(f"the {backend} kernel is CUDA's")
    if context.cuda and dtype == "float32" and backend in ("flash", "cudnn"):
        raise Skip(f"the {backend} kernel computes in half precision only")
    return functools.partial(sdpa_kernel, [getattr(SDPBackend, name) for name in BACKENDS[backend]], set_priority=True)


def flash_attention(context, *, package):
    """Compare a model that is loaded with flash_attention_2, whose pairs run through torch's kernels."""
    if importlib.util.find_spec(package) is None:
        raise Skip("flash-attn is not installed")
    if not context.cuda:
        raise Skip("flash-attn needs a CUDA GPU")
    inputs, _, wanted = batch_of(context, device="cpu")
    truth_model = model_of("Llama")
    truth = graded(truth_model, plain_log_probs(truth_model, inputs, wanted))
    inputs, _, wanted = batch_of(context, device=context.device)
    results = {}
    for name, log_probs in (("plain", plain_log_probs), ("ours", shared_log_probs)):
        model = placed(truth_model, device=context.device, dtype="bfloat16", attention="flash_attention_2")
        results[name] = graded(model, log_probs(model, inputs, wanted))
    return judged("bfloat16", truth=truth, **results)


def chunked_head(context, *, dtype):
    """Compare the chunked head, its sum of squared probabilities and its weight gradient with full logits."""
    import torch

    from sepo.forward.chunked import token_statistics

    vocabulary, hidden, tokens = (997, 64, 70) if context.tiny else (32000, 512, 2000)
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(tokens, hidden, generator=draw, dtype=torch.float64)
    weight = torch.randn(vocabulary, hidden, generator=draw, dtype=torch.float64) / hidden**0.5
    targets = torch.randint(0, vocabulary, (tokens,), generator=draw)
    upstream = torch.randn(tokens, generator=draw)

    def run(compute, device, kind, *, trained):
        leaf = states.to(device, kind, copy=True).requires_grad_()
        matrix = weight.to(device, kind, copy=True).requires_grad_(trained)
        logps = compute(leaf, matrix, targets.to(device))
        (logps * upstream.to(logps)).sum().backward()
        grads = {"hidden": leaf.grad.double().cpu()}
        if trained:
            grads["weight"] = matrix.grad.double().cpu()
        return logps.detach().double().cpu(), grads

    def full(leaf, matrix, ids):
        logits = torch.nn.functional.linear(leaf, matrix)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]

    def chunked(leaf, matrix, ids):
        found = token_statistics(leaf, matrix, ids, chunk_tokens=23 if context.tiny else None, with_p2=True)
        return found.logps + 0 * found.log_sum_p2

    # float64 for the truth is computed where it is fast: on the device, whose float64 is exact as well
    truth = run(full, context.device, torch.float64, trained=True)
    values = {}
    for trained in (False, True):
        expected = truth if trained else (truth[0], {"hidden": truth[1]["hidden"]})
        plain = run(full, context.device, _dtype(dtype), trained=trained)
        ours = run(chunked, context.device, _dtype(dtype), trained=trained)
        values["trained head" if trained else "frozen head"] = judged(dtype, ours=ours, plain=plain, truth=expected)
    return values


def fused_lora(context, *, dtype):
    """Compare the fused LoRA layers, lean checkpointing and the last MLP at wanted positions with PEFT's layers."""
    truth_model = with_lora(model_of("Llama"))
    return _adapted(context, truth_model, dtype, moved=lambda: _as_trained(truth_model, context, dtype))


def _as_trained(model, context, dtype):
    """Return a copy as a host trains it: a base in the precision, an adapter in float32."""
    import torch

    moved = copy.deepcopy(model).to(context.device, _dtype(dtype))
    for name, weight in moved.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.to(torch.float32)
    return moved


def _adapted(context, truth_model, dtype, *, moved):
    """Compare PEFT's layers and the plain method with sepo's path, under autocast and the host's checkpointing."""
    import torch

    from sepo.forward.lora import fuse_lora
    from sepo.forward.recompute import recompute_less

    inputs, _, wanted = batch_of(context, device="cpu")
    truth = graded(truth_model, plain_log_probs(truth_model, inputs, wanted))
    inputs, _, wanted = batch_of(context, device=context.device)
    half = dtype == "bfloat16"
    results, counted = {}, {}
    for name, log_probs in (("plain", plain_log_probs), ("ours", shared_log_probs)):
        model = moved()
        model.gradient_checkpointing_enable({"use_reentrant": True})
        model.enable_input_require_grads()
        if name == "ours":
            counted = {"fused_layers": fuse_lora(model), "lean_layers": recompute_less(model)}
            if not all(counted.values()):
                raise Failure(f"{counted}: no layer uses sepo's LoRA or checkpointing", counted)
        with torch.autocast(torch.device(context.device).type, torch.bfloat16, enabled=half):
            logps = log_probs(model, inputs, wanted)
        results[name] = graded(model, logps)
    return {**counted, **judged(dtype, truth=truth, **results)}


def qlora(context, *, dtype):
    """Compare NF4 layers of bitsandbytes with LoRA; the truth has their dequantized weights."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise Skip("bitsandbytes is not installed")
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    with tempfile.TemporaryDirectory(prefix="sepo-gpu-check-") as folder:
        model_of("Llama").float().save_pretrained(folder)
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=_dtype(dtype), bnb_4bit_quant_storage=torch.uint8,
        )  # fmt: skip

        def quantized():
            model = AutoModelForCausalLM.from_pretrained(
                folder, quantization_config=config, dtype=_dtype(dtype), device_map={"": context.device}
            )
            return model.train()

        truth_model = with_lora(_dequantized(quantized()))

        def moved():
            adapted = with_lora(quantized())
            for name, weight in adapted.named_parameters():
                if "lora_" in name:
                    weight.data = weight.data.to(torch.float32)
            return adapted

        return _adapted(context, truth_model, dtype, moved=moved)


def _dequantized(model):
    """Return a float64 model on the CPU with the weights of a quantized one."""
    import torch
    from bitsandbytes.functional import dequantize_4bit

    weights = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is not None:
            state = getattr(weight, "quant_state", None)
            values = weight if state is None else dequantize_4bit(weight.data, state)
            weights[f"{name}.weight"] = values.detach().double().cpu()
    plain = model_of("Llama")
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(weights[name])
    return plain


def router_loss(context):
    """Compare the load-balancing loss of each pair with the model's own, for the pair's padded rows."""
    import torch

    from sepo.forward.sharing_support import batch_layout, layout_for
    from sepo.forward.statistics import selected_statistics

    truth_model = model_of("Qwen3Moe")

    def own(model, inputs):
        pairs = len(inputs["input_ids"]) // 2
        rows = [[pair, pairs + pair] for pair in range(pairs)]
        outputs = [model(**{n: p[two] for n, p in inputs.items()}, output_router_logits=True) for two in rows]
        return torch.stack([output.aux_loss for output in outputs])

    def ours(model, inputs, wanted):
        layout = layout_for(model, inputs, batch_layout(inputs, wanted, whole=True))
        found = selected_statistics(
            model, inputs, labels=inputs["input_ids"], wanted=wanted, layout=layout, router_loss=True
        )
        return found.router_losses + 0 * found.logps.sum()

    inputs, _, wanted = batch_of(context, device="cpu")
    truth = graded(truth_model, own(truth_model, inputs))
    inputs, _, wanted = batch_of(context, device=context.device)
    plain_model, model = (placed(truth_model, device=context.device, dtype="float32") for _ in range(2))
    plain = graded(plain_model, own(plain_model, inputs))
    found = graded(model, ours(model, inputs, wanted))
    kept = {name: gradient for name, gradient in found[1].items() if name in truth[1]}
    return judged("float32", truth=truth, plain=plain, ours=(found[0], kept))


def step(context, *, objective):
    """Compare loss and gradients of a whole step in float32 with those on the CPU in float64, padded."""
    import torch

    from sepo.objectives import resolve_method
    from sepo.training.step import preference_step

    method = resolve_method(objective, **STEPS[objective])
    truth_model = with_lora(model_of("Llama"))

    def run(model, device, *, share_prompts):
        inputs, labels, _ = batch_of(context, device=device)
        batch = {**inputs, "labels": labels}
        if method.needs_scores:
            drawn = torch.rand(labels.shape, generator=torch.Generator().manual_seed(9)).to(device)
            batch["selection"] = (labels != -100) & (drawn < 0.4)

        @contextlib.contextmanager
        def reference():
            with model.disable_adapter():
                yield model

        needed = reference if method.needs_reference else None
        output = preference_step(model, batch, method=method, reference=needed, share_prompts=share_prompts)
        values, gradients = graded(model, output.loss)
        return values, gradients

    truth = run(truth_model, "cpu", share_prompts=False)
    plain = run(_as_trained(truth_model, context, "float32"), context.device, share_prompts=False)
    ours = run(_as_trained(truth_model, context, "float32"), context.device, share_prompts=True)
    return judged("float32", truth=truth, plain=plain, ours=ours)
