"""A batch in parts: loss, gradients and metrics equal those of the whole for every budget."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from accelerate.parallelism_config import ParallelismConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from sepo.errors import SepoError
from sepo.objectives import resolve_method
from sepo.training import preference_step
from sepo.training.batch_parts import Parts, part_of
from sepo.training.split_backward import SplitsBatches
from tests.support.steps import collate, make_pairs

PAIRS = make_pairs(5, seed=4)
METHODS = {
    "sepo": {},
    "selective_dpo": {"beta": 0.5},
    "minor_dpo": {},
    "tdpo2": {},
    "wpo": {},
    "otpo": {"beta": 0.5, "reg": 0.1},
    "confpo": {},
    "tgdpo": {"beta": 0.5},
    "ld_dpo": {"alpha": 0.0},
}


@pytest.fixture(scope="module")
def models(world):
    return [LlamaForCausalLM.from_pretrained(world / name, dtype=torch.float64).eval() for name in ("policy", "base")]


def gradients_of(model, loss):
    """Return the gradients after the backward pass of the last part."""
    loss.backward()
    made = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return made


def step(models, name, *, parts=None, share=True, pairs=PAIRS, changed=dict, counted=None):
    policy, reference = models
    method = resolve_method(name, **METHODS[name])
    output = preference_step(
        policy,
        changed(collate(pairs, method)),
        method=method,
        reference=lambda: contextlib.nullcontext(reference),
        chosen_nll_weight=0.3,
        share_prompts=share,
        parts=parts,
        counted=counted,
    )
    return output.loss.item(), gradients_of(policy, output.loss), output.metrics


def run_backward(compute):
    loss = compute()
    loss.backward()
    return loss.detach()


def assert_same(result, target):
    assert result[0] == pytest.approx(target[0], rel=1e-11)
    torch.testing.assert_close(result[1], target[1], rtol=1e-10, atol=1e-11)
    assert list(result[2]) == list(target[2])
    assert result[2] == pytest.approx(target[2], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("share", [True, False], ids=["shared prompts", "padded"])
@pytest.mark.parametrize("name", METHODS)
def test_parts_add_up_to_the_whole(models, name, share):
    whole = step(models, name, share=share)
    for budget in (1, 30, 10_000):
        assert_same(step(models, name, parts=Parts(budget, backward=run_backward), share=share), whole)
    assert_same(step(models, name, parts=Parts(1), share=share), whole)


def with_positions(batch):
    """Return a batch with an input of the model that does not belong to rows of pairs alone, as images do not."""
    return {**batch, "position_ids": torch.arange(batch["input_ids"].shape[1])[None]}


@pytest.mark.parametrize("changed", [dict, with_positions], ids=["text", "other inputs"])
@pytest.mark.parametrize("name", METHODS)
def test_pairs_that_fill_a_batch_do_not_count(models, name, changed):
    expected = step(models, name, pairs=PAIRS[:2], counted=2)
    assert expected[0] == step(models, name, pairs=PAIRS[:2])[0]
    for parts in (None, Parts(30, backward=run_backward)):
        assert_same(step(models, name, parts=parts, changed=changed, counted=2), expected)


def padded_on_the_left(batch):
    """Return a batch with the padding of each row moved to its beginning."""
    shifts = (1 - batch["attention_mask"]).sum(-1).tolist()
    return {name: torch.stack([r.roll(s) for r, s in zip(x, shifts, strict=True)]) for name, x in batch.items()}


@pytest.mark.parametrize("name", METHODS)
def test_padding_on_the_left_changes_nothing(models, name):
    """Prompts are not shared then; a model with relative positions (in float32) gives what it gives for the right."""
    whole = step(models, name, changed=padded_on_the_left)
    assert whole[0] == pytest.approx(step(models, name)[0], rel=1e-6)
    for budget in (1, 30, 10_000):
        assert_same(step(models, name, parts=Parts(budget, backward=run_backward), changed=padded_on_the_left), whole)


def test_parts_of_a_batch_that_is_padded_on_the_left_keep_their_positions():
    """GPT-2 adds a vector to each position: a part without the padding would be another input."""
    torch.manual_seed(0)
    vocabulary = 1 + max(max(pair["chosen_input_ids"] + pair["rejected_input_ids"]) for pair in PAIRS)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_positions=64, n_embd=16, n_layer=2, n_head=2)).double()
    whole, split = (
        step((model.eval(), model), "sepo", parts=parts, changed=padded_on_the_left)
        for parts in (None, Parts(1, backward=run_backward))
    )
    assert_same(split, whole)


@settings(max_examples=15)
@given(st.integers(1, 80), st.integers(1, 8), st.booleans())
def test_other_processes_may_need_more_parts(models, budget, most, share):
    seen = []

    def backward(compute):
        seen.append(1)
        return run_backward(compute)

    def agree(parts):
        seen.append(-max(parts, most))
        return max(parts, most)

    whole = step(models, "sepo", share=share)
    assert_same(step(models, "sepo", parts=Parts(budget, backward=backward, agree=agree), share=share), whole)
    assert sum(seen) == -1  # the last part's backward pass is the trainer's


def test_parts_are_as_narrow_as_their_rows():
    batch = collate(PAIRS, resolve_method("simpo"), extra=4)
    part = part_of(batch, [3, 1])
    lengths = [len(PAIRS[index][f"{side}_input_ids"]) for side in ("chosen", "rejected") for index in (3, 1)]
    assert part["attention_mask"].sum(-1).tolist() == lengths
    assert part["input_ids"].shape == (4, max(lengths))
    row = PAIRS[1]["rejected_input_ids"]
    assert part["input_ids"][3, : len(row)].tolist() == row


def test_evaluation_needs_no_backward_pass(models):
    def refused(compute):
        raise AssertionError("a backward pass without gradients")

    policy, _ = models
    method = resolve_method("simpo")
    with torch.no_grad():
        parts = Parts(1, backward=refused)
        split = preference_step(policy, collate(PAIRS, method), method=method, parts=parts)
        whole = preference_step(policy, collate(PAIRS, method), method=method)
    assert split.loss.item() == pytest.approx(whole.loss.item(), rel=1e-12)


def test_optimizers_that_step_in_the_backward_pass_raise():
    class Trainer(SplitsBatches):
        args = type("Arguments", (), {"optim": "adalomo"})
        batch_tokens = 10

    with pytest.raises(SepoError, match="batch_tokens is 10 and optim is adalomo"):
        Trainer().check_batch_tokens()


def test_sharded_rows_have_no_layout(monkeypatch):
    """With the parallelism configuration of accelerate; some versions have only one of the two kinds."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    trainer = SplitsBatches()
    trainer.args = SimpleNamespace(neftune_noise_alpha=None)
    for sizes, sharded in (({"cp_size": 2}, True), ({"dp_replicate_size": 2}, False)):
        trainer.accelerator = SimpleNamespace(parallelism_config=ParallelismConfig(**sizes))
        assert trainer.shards_rows() is sharded
        assert trainer.shares_prompts() is not sharded
