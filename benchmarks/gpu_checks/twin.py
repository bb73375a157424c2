"""A session without a host: sepo's step and a plain padded DPO step on one model, as LLaMA-Factory would train it.

It takes the place of the session of `sepo bench` if LLaMA-Factory cannot be imported: LoRA of rank 16 on all linear
layers in float32, a base in bfloat16 or NF4, autocast, reentrant gradient checkpointing, random token ids.
"""

import contextlib
from dataclasses import dataclass, field
from typing import Any

import gpu_step

PLAIN_DPO = "plain_dpo"
METHODS = {"sepo": "sepo", "dpo": "dpo", "selective_dpo": "selective_dpo"}
BETA = 0.1


@dataclass(frozen=True)
class Contender:
    """A contender, as in `sepo bench`."""

    name: str
    needs_reference_model: bool


class Trainer:
    """One contender's step.

    Args:
        method: sepo's method; None for the plain DPO step.
    """

    def __init__(self, method):
        self.method = method

    def shares_prompts(self):
        return True

    def training_step(self, model, batch):
        import torch

        device = batch["input_ids"].device.type
        with torch.autocast(device, torch.bfloat16):
            loss = _plain_dpo(model, batch) if self.method is None else self._loss(model, batch)
        loss.backward()
        return loss.detach()

    def _loss(self, model, batch):
        from sepo.training.step import preference_step

        @contextlib.contextmanager
        def reference():
            with model.disable_adapter():
                yield model

        return preference_step(
            model, batch, method=self.method, reference=reference if self.method.needs_reference else None,
            share_prompts=self.shares_prompts(),
        ).loss  # fmt: skip


def _plain_dpo(model, batch):
    import torch
    from torch.nn.functional import logsigmoid

    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    targets = batch["labels"][:, 1:]

    def sums():
        logits = model(**inputs, use_cache=False).logits[:, :-1].float()
        values = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        return (values * (targets != -100)).sum(-1)

    with torch.no_grad(), model.disable_adapter():
        reference = sums()
    ratios = sums() - reference
    pairs = len(targets) // 2
    return -logsigmoid(BETA * (ratios[:pairs] - ratios[pairs:])).mean()


@dataclass
class TwinSession:
    """The part of ``sepo.hosts.llamafactory.bench.session.Session`` that the checks use."""

    model: Any
    trainers: dict[str, Trainer]
    batches: dict[str, list[dict[str, Any]]]
    pairs: list[int]
    tokens: list[int]
    context: Any
    contenders: list[Contender] = field(default_factory=list)

    def step(self, name, batch):
        from sepo.forward.lora import fuse_lora, unfuse_lora
        from sepo.forward.recompute import recompute_as_before, recompute_less

        trainer = self.trainers[name]
        for change in (unfuse_lora, recompute_as_before) if trainer.method is None else (fuse_lora, recompute_less):
            change(self.model)
        return trainer.training_step(self.model, dict(self.batches[name][batch]))

    def settle(self, name):
        self.model.zero_grad(set_to_none=True)

    def synchronize(self):
        self.context.synchronize()

    def longest(self, count):
        return list(range(min(count, len(self.pairs))))


def open_twin(context, setup):
    """Return a session of a setup with random token ids."""
    from sepo.objectives import resolve_method

    methods = {name: resolve_method(objective) for name, objective in METHODS.items()}
    trainers = {PLAIN_DPO: Trainer(None), **{name: Trainer(method) for name, method in methods.items()}}
    batches = _batches(context, setup)
    count = len(batches)
    return TwinSession(
        _model(context, setup),
        trainers,
        dict.fromkeys(trainers, batches),
        [gpu_step.PAIRS_PER_STEP] * count,
        [2 * gpu_step.PAIRS_PER_STEP * setup.length] * count,
        context,
        [Contender(PLAIN_DPO, True), *(Contender(name, method.needs_reference) for name, method in methods.items())],
    )


def _model(context, setup):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if setup.quantization == "4":
        quantized = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(
            context.sessions.weights(setup.shape), quantization_config=quantized, dtype=torch.bfloat16,
            device_map={"": context.device},
        )  # fmt: skip
    else:
        model = gpu_step.random_model(setup.shape, context.device)
    model = get_peft_model(model.train(), LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
                if "lora_B" in name:
                    weight.normal_(std=1e-3)  # the reference differs from the policy
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    return model


def _batches(context, setup):
    import torch

    draw = torch.Generator().manual_seed(0)
    pairs, length, prompt = gpu_step.PAIRS_PER_STEP, setup.length, setup.length // 2
    made = []
    for _ in range(setup.rounds):
        ids = torch.randint(4, gpu_step.VOCABULARY[setup.shape], (2 * pairs, length), generator=draw)
        ids[pairs:, :prompt] = ids[:pairs, :prompt]
        labels = ids.clone()
        labels[:, :prompt] = -100
        selection = (labels != -100) & (torch.rand(ids.shape, generator=draw) < 0.3)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "selection": selection}
        made.append({name: value.to(context.device) for name, value in batch.items()})
    return made
