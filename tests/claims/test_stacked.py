"""benchmarks/claims: the stacked models against transformers' and against `preference_step`."""

import contextlib

import pytest
import torch
from claims.stacked import Shape, flattened, forward, initial, pair_log_probs, sampled, sequence_log_probs, unstacked
from claims.training import Run, batches, log_probs, right_share, stacked_losses, trained
from claims.world import World, paired
from transformers import get_linear_schedule_with_warmup

from sepo.objectives import resolve_method
from sepo.training import PairCollator, preference_step, score_rows

WORLD, SHAPE = World(digits=4), Shape(hidden=32, intermediate=48, heads=2)
SEEDS = (3, 4)


def pairs_of(seed, count):
    generator = torch.Generator().manual_seed(seed)
    questions = WORLD.questions(20 * count, generator)
    return paired(WORLD, questions, *(WORLD.sft_responses(questions, generator) for _ in range(2)))[:count]


def rows_of(pairs):
    """Return the pairs as rows of ``sepo.training``."""
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [
        dict(zip(names, (prompt, *both), strict=True))
        for prompt, both in zip(pairs.prompts.tolist(), pairs.responses.tolist(), strict=True)
    ]


@pytest.fixture(scope="module")
def stack():
    """Two models whose parameters differ enough from the first ones to have opinions."""
    first = initial(SHAPE, list(SEEDS))
    return first + 0.05 * torch.randn(first.shape, generator=torch.Generator().manual_seed(0))


def test_logits_are_those_of_transformers(stack):
    ids = torch.randint(SHAPE.vocabulary, (2, 3, 9), generator=torch.Generator().manual_seed(1))
    found = forward(SHAPE, stack, ids, positions=torch.arange(9), attends=torch.ones(9, 9, dtype=torch.bool).tril())
    for place in range(2):
        with torch.no_grad():
            expected = unstacked(SHAPE, stack[place])(ids[place]).logits
        torch.testing.assert_close(found[place], expected, atol=1e-5, rtol=1e-5)


def test_a_prompt_that_runs_once_gives_the_log_probabilities_of_two_sequences(stack):
    pairs = [pairs_of(seed, 5) for seed in (7, 8)]
    prompts, responses = (torch.stack([getattr(each, name) for each in pairs]) for name in ("prompts", "responses"))
    both = pair_log_probs(SHAPE, stack, prompts, responses)
    for side in range(2):
        alone = sequence_log_probs(SHAPE, stack, prompts, responses[:, :, side])
        torch.testing.assert_close(both[:, :, side], alone, atol=1e-5, rtol=1e-5)


def test_sampling_follows_the_distribution_and_not_the_stack(stack):
    count = 4000
    prompts = WORLD.prompts(WORLD.questions(1, torch.Generator().manual_seed(2))).expand(2, count, -1)
    chances = torch.rand(1, count, WORLD.response_tokens, generator=torch.Generator().manual_seed(3)).expand(2, -1, -1)
    found = sampled(SHAPE, stack, prompts, chances)
    assert torch.equal(found[1:], sampled(SHAPE, stack[1:], prompts[1:], chances[1:]))
    with torch.no_grad():
        expected = unstacked(SHAPE, stack[0])(prompts[0, :1]).logits[0, -1].softmax(-1)
    shares = found[0, :, 0].bincount(minlength=SHAPE.vocabulary) / count
    assert float((shares - expected).abs().max()) < 4 * 0.5 / count**0.5
    likely = sequence_log_probs(SHAPE, stack[:1], prompts[:1], found[:1])  # later tokens: the mean is minus the entropy
    with torch.no_grad():
        logps = unstacked(SHAPE, stack[0])(torch.cat([prompts[0], found[0, :, :-1]], -1)).logits.log_softmax(-1)
    entropy = -(logps.exp() * logps).sum(-1)[:, prompts.shape[-1] - 1 :]
    assert float(likely.mean()) == pytest.approx(-float(entropy.mean()), abs=0.03)


METHODS = {
    "dpo": ("dpo", {"beta": 0.3}),
    "dpo, selected": ("dpo", {"beta": 0.3, "token_scorer": "oracle"}),
    "sepo": ("sepo", {}),
    "ipo": ("ipo", {"beta": 0.5}),
    "minor_dpo": ("minor_dpo", {"beta": 0.3}),
    "simpo": ("simpo", {}),
    "selective_dpo": ("selective_dpo", {"beta": 0.3}),
    "dpo_reg": ("dpo_reg", {"beta": 0.3}),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("nll", [0.0, 0.2])
def test_loss_and_gradient_are_those_of_preference_step(stack, name, nll):
    """Both models of the stack at once, with other pairs each, against one step of each with transformers' model."""
    objective, hyperparameters = METHODS[name]
    method = resolve_method(objective, **hyperparameters)
    references = initial(SHAPE, list(SEEDS))
    pairs = [pairs_of(seed, 6) for seed in (11, 12)]
    rows = [
        score_rows(rows_of(own), oracle=unstacked(SHAPE, stack[1 - place]), base=unstacked(SHAPE, references[place]))
        for place, own in enumerate(pairs)
    ]
    scores = [torch.tensor([[row["chosen_scores"], row["rejected_scores"]] for row in each]) for each in rows]
    runs = [
        Run(own, method, 1e-3, 0, scores=each, rewards=torch.sigmoid(each) - 0.5, chosen_nll_weight=nll)
        for own, each in zip(pairs, scores, strict=True)
    ]
    batch = torch.tensor([[4, 0, 2], [1, 3, 5]])
    parameters = stack.clone().requires_grad_()
    models = torch.arange(2)[:, None]
    prompts, responses = (torch.stack([getattr(each, part) for each in pairs]) for part in ("prompts", "responses"))
    logps = pair_log_probs(SHAPE, parameters, prompts[models, batch], responses[models, batch])
    losses = stacked_losses(runs, logps, log_probs(SHAPE, references, pairs)[models, batch], batch)
    (gradients,) = torch.autograd.grad(losses.sum(), parameters)
    for place in range(2):
        model, reference = unstacked(SHAPE, stack[place]), unstacked(SHAPE, references[place])
        collated = PairCollator(method)([rows[place][row] for row in batch[place].tolist()])
        step = preference_step(
            model, collated, method=method, reference=lambda model=reference: contextlib.nullcontext(model),
            chosen_nll_weight=nll,
        )  # fmt: skip
        step.loss.backward()
        assert float(losses[place].detach()) == pytest.approx(float(step.loss.detach()), abs=1e-5)
        named = dict(model.named_parameters())
        expected = torch.cat([named[part].grad.flatten() for part in SHAPE.layout()])
        assert float(expected.norm()) > 1e-3
        torch.testing.assert_close(gradients[place], expected, atol=1e-5, rtol=1e-4)


def test_training_is_that_of_transformers_optimizer_and_schedule(stack):
    """Ten steps, two models with other rates and methods, against a loop over `preference_step`."""
    methods = [resolve_method("dpo", beta=0.1), resolve_method("simpo")]
    pairs, rates = [pairs_of(seed, 12) for seed in (21, 22)], (1e-3, 3e-3)
    runs = [Run(*each, seed=9) for each in zip(pairs, methods, rates, strict=True)]
    found, kept = trained(SHAPE, stack, runs, steps=10, batch=4, checkpoints=[3])
    order = batches(12, batch=4, steps=10, seed=9)
    for place, run in enumerate(runs):
        model, reference = unstacked(SHAPE, stack[place]), unstacked(SHAPE, stack[place])
        optimizer = torch.optim.AdamW(model.parameters(), lr=run.rate, weight_decay=0.0)
        schedule = get_linear_schedule_with_warmup(optimizer, 1, 10)
        rows = rows_of(run.pairs)
        for number, batch in enumerate(order.tolist(), 1):
            collated = PairCollator(run.method)([rows[row] for row in batch])
            arguments = {"method": run.method, "reference": lambda own=reference: contextlib.nullcontext(own)}
            preference_step(model, collated, **arguments).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if number == 3:
                expected = torch.cat(
                    [dict(model.named_parameters())[part].detach().flatten() for part in SHAPE.layout()]
                )
                torch.testing.assert_close(kept[3][place], expected, atol=1e-4, rtol=1e-3)
        probed = pairs_of(30, 8)
        moved = log_probs(SHAPE, found[place][None], [probed]) - log_probs(SHAPE, stack[place][None], [probed])
        again = flattened(SHAPE, model)[None]
        expected = log_probs(SHAPE, again, [probed]) - log_probs(SHAPE, stack[place][None], [probed])
        assert float(expected.abs().mean()) > 0.05
        torch.testing.assert_close(moved, expected, atol=5e-3, rtol=5e-2)


def test_every_epoch_has_every_pair_once_as_far_as_batches_are_full():
    order = batches(11, batch=5, steps=5, seed=0)
    assert order.shape == (5, 5)
    assert all(len(set(order[start : start + 2].flatten().tolist())) == 10 for start in (0, 2))
    assert not torch.equal(order[0:2], order[2:4])


def test_a_model_that_answers_at_random_is_never_right(stack):
    assert right_share(WORLD, SHAPE, stack, count=50, seed=0).tolist() == [0, 0]
