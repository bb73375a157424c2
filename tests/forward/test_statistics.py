"""KL over the vocabulary and sum of squared probabilities in real models, for every kind of reference."""

import contextlib
import inspect

import pytest
import torch
from torch import nn

from sepo.errors import SepoError
from sepo.forward import reference_log_probs, selected_log_probs, selected_statistics
from sepo.training.starting_policy import StartingPolicy
from tests.support.heads import FAMILIES, VOCABULARY, batch, gradients, lora, make


def full_log_probs(model, inputs):
    return model(**inputs, use_cache=False).logits[:, :-1].log_softmax(-1)


def slow(policy, ref_log_probs, inputs, labels, wanted):
    """Compute the three statistics from both models' full logits, each [B, T - 1]."""
    log_p = full_log_probs(policy, inputs)
    logps = log_p.gather(-1, labels[:, 1:].clamp(min=0).unsqueeze(-1)).squeeze(-1)
    kl = (ref_log_probs.exp() * (ref_log_probs - log_p)).sum(-1)
    p2 = log_p.exp().square().sum(-1).log().detach()
    return [values.where(wanted, 0.0) for values in (logps, kl, p2)]


def loss_of(logps, kl):
    return logps.flip(0) + 3.0 * kl  # gradients() weights the positions


def assert_equals_full_logits(policy, in_place, *, chunk_tokens=2, tolerance=1e-9):
    """Compare with full logits; ``in_place`` is a context manager with the reference in its state as the reference."""
    inputs, labels, wanted = batch()
    with torch.no_grad(), in_place() as model:
        ref_log_probs = full_log_probs(model, inputs)
        expected_ref = selected_log_probs(model, inputs, labels=labels, wanted=wanted)
    with in_place() as model:
        ref_logps, states = reference_log_probs(model, inputs, labels=labels, wanted=wanted, chunk_tokens=chunk_tokens)
    torch.testing.assert_close(ref_logps, expected_ref, rtol=1e-12, atol=1e-12)
    assert not ref_logps.requires_grad
    assert not states.hidden.requires_grad
    actual = selected_statistics(
        policy, inputs, labels=labels, wanted=wanted, chunk_tokens=chunk_tokens, reference=states, with_p2=True
    )
    result = gradients(policy, loss_of(actual.logps, actual.kl))
    expected = slow(policy, ref_log_probs, inputs, labels, wanted)
    target = gradients(policy, loss_of(*expected[:2]))
    assert expected[1].abs().max() > 1e-3
    torch.testing.assert_close([actual.logps, actual.kl, actual.log_sum_p2], expected, rtol=tolerance, atol=tolerance)
    assert result.keys() == target.keys()
    largest = max(grad.abs().max().item() for grad in target.values())
    torch.testing.assert_close(result, target, rtol=tolerance, atol=tolerance * largest)


def running(model):
    return lambda: contextlib.nullcontext(model)


@pytest.mark.parametrize("trains", ["all", "lora"])
@pytest.mark.parametrize("family", ["Llama", "Phi", "Gemma2", "Cohere", "Granite", "GPT2"])
def test_another_model_is_the_reference(family, trains):
    policy = make(family)
    if trains == "lora":
        policy = lora(policy, fan_in_fan_out=family == "GPT2")
    # With another width, bias, scale or cap.
    reference = make("Gemma2", hidden_size=16) if family == "Llama" else make(family)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    assert_equals_full_logits(policy, running(reference))


HEADS = {
    "plain": {"target_modules": "all-linear"},
    "lora_on_head": {"target_modules": ["q_proj", "lm_head"]},
    "head_saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "trainable_tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6]},
}
PEFT_HEADS = pytest.mark.parametrize("settings", HEADS.values(), ids=HEADS)


def moved(model):
    """Return the model after changes of its trainable weights."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@PEFT_HEADS
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_the_policy_without_its_adapter_is_the_reference(settings):
    model = moved(lora(make("Phi", tie_word_embeddings=False), **settings))

    @contextlib.contextmanager
    def without_adapter():
        with model.disable_adapter():
            yield model

    assert_equals_full_logits(model, without_adapter)


@PEFT_HEADS
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_the_starting_policy_is_the_reference(settings):
    model = lora(make("Phi", tie_word_embeddings=False), **settings)
    start = StartingPolicy(model)
    moved(model)

    @contextlib.contextmanager
    def as_it_was():
        with start.active():
            yield model

    assert_equals_full_logits(model, as_it_was)


def test_a_starting_policy_with_a_trainable_plain_head():
    model = make()
    start = StartingPolicy(model)
    moved(model)

    @contextlib.contextmanager
    def as_it_was():
        with start.active():
            yield model

    assert_equals_full_logits(model, as_it_was)


def test_a_head_with_a_replaced_forward():
    """As with accelerate's hooks, in both models."""
    policy, reference = make(), make("Gemma2")
    for model in (policy, reference):
        model.lm_head.forward = type(model.lm_head).forward.__get__(model.lm_head)
    assert_equals_full_logits(policy, running(reference))


def test_weights_that_stay_in_place_are_not_copied():
    model, (inputs, labels, wanted) = lora(make(), target_modules=["q_proj", "lm_head"]), batch()
    head = model.base_model.model.lm_head
    with model.disable_adapter():
        _, states = reference_log_probs(model, inputs, labels=labels, wanted=wanted)
    copied = inspect.getclosurevars(states.logits).nonlocals["forward"].__self__
    assert copied is not head
    assert copied.base_layer.weight.data_ptr() == head.base_layer.weight.data_ptr()
    assert "forward" not in copied.__dict__
    assert "forward" not in head.__dict__


class Sharded(nn.Module):
    """Simulate ZeRO-3 and FSDP: a parameter's values exist in the forward pass only, and are overwritten after it."""

    def __init__(self, module, *names):
        super().__init__()
        self.module = module
        self.full = {name: module.get_parameter(name).detach().clone() for name in names}
        for name in names:
            module.get_parameter(name).data = torch.empty(0, dtype=torch.float64)

    def forward(self, **inputs):
        gathered = {name: values.clone() for name, values in self.full.items()}
        for name, values in gathered.items():
            self.module.get_parameter(name).data = values
        output = self.module(**inputs)
        for name, values in gathered.items():
            self.module.get_parameter(name).data = torch.empty(0, dtype=torch.float64)
            values.fill_(torch.nan)
        return output


@pytest.mark.parametrize("family", ["Llama", "Phi"])
def test_a_sharded_reference_is_kept_for_the_step(family):
    head = "lm_head.weight", *(["lm_head.bias"] if family == "Phi" else [])
    reference = moved(make(family))
    assert_equals_full_logits(make(family), running(Sharded(reference, *head)))


def test_a_sharded_head_with_an_adapter_raises():
    reference, (inputs, labels, wanted) = lora(make(), target_modules=["lm_head"]), batch()
    sharded = Sharded(reference, "base_model.model.lm_head.base_layer.weight")
    with pytest.raises(
        SepoError, match=r"head is a Linear whose weights are sharded.*leave lm_head out of lora_target"
    ):
        reference_log_probs(sharded, inputs, labels=labels, wanted=wanted)


def test_a_reference_with_another_vocabulary_raises():
    inputs, labels, wanted = batch()
    _, states = reference_log_probs(make(vocab_size=VOCABULARY + 3), inputs, labels=labels, wanted=wanted)
    with pytest.raises(SepoError, match=r"returns 64 logits per token and the policy's 61.*set a ref_model"):
        selected_statistics(make(), inputs, labels=labels, wanted=wanted, reference=states)


@pytest.mark.parametrize("head", ["plain", "lora_on_head"])
def test_the_policy_as_its_own_reference_has_exactly_no_divergence(head):
    model, (inputs, labels, wanted) = lora(make(dtype=torch.float32), **HEADS[head]), batch()
    start = StartingPolicy(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with start.active():
            _, states = reference_log_probs(model, inputs, labels=labels, wanted=wanted)
        statistics = selected_statistics(model, inputs, labels=labels, wanted=wanted, reference=states)
    assert not statistics.kl.any()
    largest = max(grad.abs().max().item() for grad in gradients(model, statistics.kl).values())
    assert largest <= (0.0 if head == "plain" else 1e-5)  # autograd's own rounding in the second


def test_without_statistics_it_is_selected_log_probs():
    model, (inputs, labels, wanted) = make(dtype=torch.float32), batch()
    statistics = selected_statistics(model, inputs, labels=labels, wanted=wanted)
    assert torch.equal(statistics.logps, selected_log_probs(model, inputs, labels=labels, wanted=wanted))
    assert statistics.kl is None
    assert statistics.log_sum_p2 is None
    assert statistics.weights is None


@pytest.mark.parametrize("trains", ["all", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_computed_from_the_states_that_the_model_returns(family, trains):
    model, (inputs, labels, wanted) = make(family), batch()
    if trains == "lora":
        model = lora(model, fan_in_fan_out=family == "GPT2")
    seen = []

    def weigh(states):
        seen.append(states)
        assert not states.requires_grad
        return states.square().sum(-1)

    statistics = selected_statistics(model, inputs, labels=labels, wanted=wanted, with_p2=True, weigh=weigh)
    states = model(**inputs, use_cache=False, output_hidden_states=True).hidden_states[-1][:, :-1]
    torch.testing.assert_close(seen, [states[wanted]], rtol=1e-9, atol=1e-9)
    expected = states.square().sum(-1).where(wanted, 0.0)
    torch.testing.assert_close(statistics.weights, expected, rtol=1e-9, atol=1e-9)
    assert not statistics.weights.requires_grad
    without = selected_statistics(model, inputs, labels=labels, wanted=wanted)
    assert torch.equal(statistics.logps, without.logps)
    result, target = gradients(model, statistics.logps), gradients(model, without.logps)
    assert all(torch.equal(result[name], target[name]) for name in target)


def test_weights_have_their_own_dtype_and_follow_their_rows():
    model, (inputs, labels, wanted) = make(), batch()

    def weigh(states):
        return torch.arange(1.0, 1.0 + len(states), dtype=torch.float32)

    statistics = selected_statistics(model, inputs, labels=labels, wanted=wanted, weigh=weigh)
    assert statistics.logps.dtype == torch.float64
    assert statistics.weights.dtype == torch.float32
    assert statistics.weights[wanted].tolist() == list(range(1, 1 + int(wanted.sum())))
    assert torch.equal(statistics.of([1, 0]).weights, statistics.weights[[1, 0]])


def test_the_head_runs_once():
    model, (inputs, labels, wanted) = make(), batch()
    seen = []
    model.lm_head.register_forward_hook(lambda head, arguments, output: seen.append(output.numel()))
    _, states = reference_log_probs(model, inputs, labels=labels, wanted=wanted)
    selected_statistics(model, inputs, labels=labels, wanted=wanted, reference=states, with_p2=True)
    assert len(seen) == 2  # the reference's pass and the policy's
    assert seen[1] == 2 * wanted.sum()  # the model returns log-probabilities and KL; p^2 carries no gradient
