"""Log-probabilities at wanted positions against the model's full logits, by family and by wrapper."""

import contextlib

import pytest
import torch
import transformers
from peft import PromptTuningConfig, get_peft_model
from torch import nn
from torch.multiprocessing import start_processes
from torch.nn.parallel import DistributedDataParallel
from transformers.modeling_outputs import CausalLMOutput

from sepo.errors import SepoError
from sepo.forward import selected_log_probs
from sepo.forward.head import causal_lm
from tests.support import tiny
from tests.support.heads import FAMILIES, VOCABULARY, batch, gradients, lora, make


def from_full_logits(model, inputs, labels, wanted):
    logits = model(**inputs, use_cache=False).logits
    targets = labels[:, 1:].clamp(min=0).unsqueeze(-1)
    return logits[:, :-1].log_softmax(-1).gather(-1, targets).squeeze(-1).where(wanted, 0.0)


def assert_equals_full_logits(model, *, tolerance=1e-10, chunk_tokens=2):
    inputs, labels, wanted = batch()
    logps = selected_log_probs(model, inputs, labels=labels, wanted=wanted, chunk_tokens=chunk_tokens)
    actual = {"logps": logps, **gradients(model, logps)}
    full = from_full_logits(model, inputs, labels, wanted)
    expected = {"logps": full, **gradients(model, full)}
    assert torch.equal(logps != 0, wanted)
    assert actual.keys() == expected.keys()
    largest = max(value.abs().max().item() for value in expected.values())
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("trains", ["all", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_families(family, trains, dtype):
    model = make(family, dtype)
    if trains == "lora":
        model = lora(model, fan_in_fan_out=family == "GPT2")  # GPT-2's layers are transposed
    # Some families always compute rotary embeddings and norms in float32: both sides share that.
    assert_equals_full_logits(model, tolerance={torch.float64: 1e-10, torch.float32: 1e-4}[dtype])


@pytest.mark.parametrize(
    ("family", "neutral"),
    [
        ("Gemma2", {"final_logit_softcapping": None}),
        ("Cohere", {"logit_scale": 1.0}),
        ("Granite", {"logits_scaling": 1.0}),
    ],
)
def test_the_transform_after_the_head_matters_in_these_models(family, neutral):
    inputs, labels, wanted = batch()
    with_it, without = (
        selected_log_probs(model, inputs, labels=labels, wanted=wanted)
        for model in (make(family), make(family, **neutral))
    )
    assert (with_it - without).abs().max() > 1


class Scaled(transformers.LlamaForCausalLM):
    """A model that uses a setting of other models in its own way."""

    scale = staticmethod(lambda logits, setting: logits)

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = self.scale(output.logits, self.config.logits_scaling)
        return output


def scaled(scale):
    model = make()
    model.__class__ = type("Scaled", (Scaled,), {"scale": staticmethod(scale)})
    model.config.logits_scaling = 4.0
    return model


@pytest.mark.parametrize(
    "scale",
    [
        lambda logits, setting: logits / setting,
        lambda logits, setting: logits * setting,
        lambda logits, setting: logits,
    ],
    ids=["divided", "multiplied", "not read"],
)
def test_what_a_setting_does_to_the_logits_is_measured(scale):
    assert_equals_full_logits(scaled(scale))


def test_a_setting_with_an_effect_of_its_own_is_unsupported():
    inputs, labels, wanted = batch()
    with pytest.raises(SepoError, match="Scaled changes its logits after the head in an unsupported way"):
        selected_log_probs(scaled(lambda logits, setting: logits / setting**0.5), inputs, labels=labels, wanted=wanted)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6]},
    ],
    ids=["lora_on_head", "head_saved", "trainable_tokens"],
)
@pytest.mark.parametrize("family", ["Llama", "Phi"])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # PEFT takes untied models for tied ones
def test_peft_around_the_head(family, settings):
    assert_equals_full_logits(lora(make(family, tie_word_embeddings=False), **settings))


def test_tied_head_with_a_trainable_embedding():
    model = make(tie_word_embeddings=True).requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert_equals_full_logits(model)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("trains", ["all", "lora"])
def test_gradient_checkpointing(trains, use_reentrant):
    model = make() if trains == "all" else lora(make())
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    model.train()  # checkpointing works in this mode only; there is no dropout
    assert_equals_full_logits(model)


def test_lora_dropout_on_the_head_is_the_same_in_the_backward_pass():
    """Chunks are computed twice, with the same dropout mask both times."""
    model = lora(make(), target_modules=["lm_head"], lora_dropout=0.5).train()
    inputs, labels, wanted = batch()

    def loss(shift=0.0):
        torch.manual_seed(3)
        with torch.no_grad():
            parameter.view(-1)[0] += shift
        return selected_log_probs(model, inputs, labels=labels, wanted=wanted, chunk_tokens=2).sum()

    parameter = model.base_model.model.lm_head.lora_A["default"].weight
    gradient = gradients(model, loss().reshape(1))["base_model.model.lm_head.lora_A.default.weight"].view(-1)[0] / 0.5
    slope = (loss(1e-5) - loss(-2e-5)) / 2e-5
    torch.testing.assert_close(gradient, slope, rtol=1e-6, atol=1e-7)


def test_frozen_head_gets_no_gradient_and_nothing_wanted_gives_zeros_with_a_graph():
    model = make().requires_grad_(True)
    model.lm_head.requires_grad_(False)
    inputs, labels, wanted = batch()
    logps = selected_log_probs(model, inputs, labels=labels, wanted=torch.zeros_like(wanted))
    assert not logps.any()
    logps.sum().backward()
    assert model.lm_head.weight.grad is None
    assert not model.model.layers[0].mlp.up_proj.weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_and_half_precision_give_float32(dtype):
    model, (inputs, labels, wanted) = make(dtype=dtype), batch()
    context = torch.autocast("cpu", dtype=torch.bfloat16) if dtype == torch.float32 else contextlib.nullcontext()
    with context:
        logps = selected_log_probs(model, inputs, labels=labels, wanted=wanted)
        logits = model(**inputs).logits.float()
    expected = logits[:, :-1].log_softmax(-1).gather(-1, labels[:, 1:].clamp(min=0).unsqueeze(-1)).squeeze(-1)
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, expected.where(wanted, 0.0), rtol=1e-5, atol=1e-5)


class RoundsItsOutput(nn.Module):
    """A wrapper that rounds outputs, as FSDP2's mixed precision does."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, **inputs):
        output = self.module(**inputs)
        output.logits = output.logits.bfloat16()
        return output


def test_a_wrapper_that_rounds_its_output_does_not_change_the_values():
    model, (inputs, labels, wanted) = make(dtype=torch.float32), batch()
    arguments = {"labels": labels, "wanted": wanted}
    expected = selected_log_probs(model, inputs, **arguments)
    actual = selected_log_probs(RoundsItsOutput(make(dtype=torch.float32)), inputs, **arguments)
    assert torch.equal(actual, expected)
    assert actual.requires_grad


# Errors, and restored state


class Changed(transformers.LlamaForCausalLM):
    """A model with an unknown transform of its logits."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        return CausalLMOutput(logits=self.change(output.logits))

    def change(self, logits):
        return logits


CHANGES = {
    "scale": lambda logits: logits * 1.01,
    "clamp": lambda logits: logits.clamp(-50, 50),
    "cap": lambda logits: 100 * torch.tanh(logits / 100),
    "vocabulary_bias": lambda logits: logits + torch.ones(VOCABULARY),
    "shift": lambda logits: logits - 0.01,
}


def changed(change):
    model = Changed(tiny.config(VOCABULARY)).eval()
    model.change = change
    return model


@pytest.mark.parametrize("nothing_wanted", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_an_unknown_transform_of_the_logits_raises(change, nothing_wanted):
    model, (inputs, labels, wanted) = changed(CHANGES[change]), batch()
    for _ in range(2):  # the second call too
        with pytest.raises(SepoError, match="Changed changes its logits after the head in an unsupported way"):
            selected_log_probs(model, inputs, labels=labels, wanted=wanted & (not nothing_wanted))


def test_a_head_that_is_not_called_raises():
    model, (inputs, labels, wanted) = changed(lambda logits: logits), batch()
    stand_in = nn.Linear(32, VOCABULARY)
    model.get_output_embeddings = lambda: stand_in
    with pytest.raises(SepoError, match="changes its logits after the head"):
        selected_log_probs(model, inputs, labels=labels, wanted=wanted)


def test_a_transform_that_is_enabled_later_raises():
    model, (inputs, labels, wanted) = changed(lambda logits: logits), batch()
    model.change = lambda logits: logits * getattr(model.config, "temperature_of_mine", 1.0)
    selected_log_probs(model, inputs, labels=labels, wanted=wanted)
    model.config.temperature_of_mine = 0.5
    with pytest.raises(SepoError, match="changes its logits"):
        selected_log_probs(model, inputs, labels=labels, wanted=wanted)


def test_a_softcap_set_later_is_applied():
    model = make("Gemma2", final_logit_softcapping=None)
    assert_equals_full_logits(model)
    model.config.final_logit_softcapping = 5.0
    assert_equals_full_logits(model)


def test_the_check_runs_once():
    model, (inputs, labels, wanted) = make(), batch()
    seen = []
    model.lm_head.register_forward_hook(lambda head, arguments, output: seen.append(output.numel()))
    first, second = (selected_log_probs(model, inputs, labels=labels, wanted=wanted) for _ in range(2))
    assert seen[0] > seen[1] == wanted.sum()
    assert torch.equal(first, second)


def test_models_without_a_head_and_prompt_tuning_raise():
    inputs, labels, wanted = batch()
    with pytest.raises(SepoError, match="LlamaModel has no language-model head"):
        selected_log_probs(make().model, inputs, labels=labels, wanted=wanted)
    prompted = get_peft_model(make(), PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"))
    with pytest.raises(SepoError, match=r"hidden states for \[3, 15\] positions, expected the batch's \[3, 11\]"):
        selected_log_probs(prompted, inputs, labels=labels, wanted=wanted)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("family", ["Gemma2", "Cohere", "Granite", "GPT2"])
def test_the_model_is_restored(family, hooked, fails):
    model, (inputs, labels, wanted) = make(family), batch()
    head = model.get_output_embeddings()
    if hooked:  # as accelerate's hooks do
        head.forward = type(head).forward.__get__(head)
    before = dict(vars(head)), dict(vars(model)), model.config.to_dict()
    if fails:
        blocks = model.transformer.h if family == "GPT2" else model.model.layers
        blocks[1].register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory") if fails else contextlib.nullcontext():
        selected_log_probs(model, inputs, labels=labels, wanted=wanted)
    assert (dict(vars(head)), dict(vars(model)), model.config.to_dict()) == before


def test_a_replaced_forward_of_the_head_is_called():
    """A hook that accelerate puts on the head (moved or offloaded weights) must run."""
    model, calls = make(), []
    own = model.lm_head.forward
    model.lm_head.forward = lambda hidden: calls.append(hidden.shape) or own(hidden)
    inputs, labels, wanted = batch()
    selected_log_probs(model, inputs, labels=labels, wanted=wanted, chunk_tokens=4)
    assert sum(shape[0] for shape in calls) == wanted.sum()
    assert_equals_full_logits(model)


# Wrappers


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo reads it between two graphs
def test_compiled_wrapper():
    model, (inputs, labels, wanted) = make(), batch()
    compiled = torch.compile(model, backend="eager")
    assert causal_lm(compiled) is model
    expected = selected_log_probs(model, inputs, labels=labels, wanted=wanted)
    for _ in range(2):
        torch.testing.assert_close(selected_log_probs(compiled, inputs, labels=labels, wanted=wanted), expected)


def ddp_model(trains):
    model = make()
    return lora(model, target_modules=["q_proj", "lm_head"]) if trains == "lora" else model


def ddp_batch():
    (inputs, labels, wanted), (more, more_labels, more_wanted) = batch(0), batch(1)
    joined = {name: torch.cat([value, more[name]]) for name, value in inputs.items()}
    return joined, torch.cat([labels, more_labels]), torch.cat([wanted, more_wanted])


def ddp_gradients(rank, directory):
    """Run one of two processes on its rows, with gradients averaged by DDP and saved by the first."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    for trains in ("all", "lora"):
        wrapped = DistributedDataParallel(ddp_model(trains))
        inputs, labels, wanted = ddp_batch()
        rows = slice(rank, None, 2)
        mine = {name: value[rows] for name, value in inputs.items()}
        logps = selected_log_probs(wrapped, mine, labels=labels[rows], wanted=wanted[rows])
        logps.sum().backward()
        if rank == 0:
            torch.save(trained_gradients(wrapped.module), f"{directory}/{trains}.pt")
    torch.distributed.destroy_process_group()


def trained_gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_ddp_over_two_processes_equals_one_process(tmp_path):
    # Both are forks of one process, so that imports run once.
    torch.multiprocessing.set_forkserver_preload(["peft", "sepo.forward.head", "transformers.models.llama"])
    start_processes(ddp_gradients, (str(tmp_path),), nprocs=2, start_method="forkserver")
    for trains in ("all", "lora"):
        model, (inputs, labels, wanted) = ddp_model(trains), ddp_batch()
        (selected_log_probs(model, inputs, labels=labels, wanted=wanted).sum() / 2).backward()  # DDP averages
        actual = torch.load(tmp_path / f"{trains}.pt")
        torch.testing.assert_close(actual, trained_gradients(model), rtol=1e-10, atol=1e-10)
