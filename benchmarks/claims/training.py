"""Training of stacked models: SFT on the world, and preference optimization with sepo's objectives.

Every model of a stack has its own rows, learning rate and method. AdamW without weight decay, gradients clipped to norm
1 per model, 10 % linear warmup, then linear decay to 0, as transformers' trainer has them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from claims.stacked import Shape, initial, pair_log_probs, sampled, sequence_log_probs, stacked_pairs
from claims.world import Pairs, World, paired
from sepo.errors import SepoError
from sepo.objectives import Method, preference_loss, select
from sepo.selection import SIDES
from sepo.selection.ties import tie_order

CLIP = 1.0
SAMPLED_AT_ONCE = 256


@dataclass(frozen=True)
class Run:
    """One model of a stack in preference optimization.

    Args:
        pairs: the training pairs, N.
        method: the resolved method; None for the chosen responses' likelihood alone (SFT).
        rate: the peak learning rate.
        seed: of the order of the pairs.
        scores: [N, 2, T] stored token scores, if the method selects by them.
        rewards: [N, 2, T] T-REG's token rewards, if the method has them.
        reference: [N, 2, T] log-probabilities of the reference; None for those of the model at the start.
        chosen_nll_weight: weight of the mean negative log-likelihood of the chosen responses (``pref_ftx``).
    """

    pairs: Pairs
    method: Method | None
    rate: float
    seed: int
    scores: Tensor | None = None
    rewards: Tensor | None = None
    reference: Tensor | None = None
    chosen_nll_weight: float = 0.0


class _Optimizer:
    """AdamW without weight decay over [K, P], with a rate, a schedule and a clipped norm per model."""

    def __init__(self, parameters: Tensor, rates: Tensor, steps: int) -> None:
        self.parameters, self.rates, self.steps, self.done = parameters, rates[:, None], steps, 0
        self.first, self.second = torch.zeros_like(parameters), torch.zeros_like(parameters)

    def step(self, gradient: Tensor) -> None:
        warmup = max(1, self.steps // 10)
        rising = self.done < warmup
        factor = self.done / warmup if rising else (self.steps - self.done) / max(1, self.steps - warmup)
        self.done += 1
        gradient = gradient * (CLIP / (gradient.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1)
        self.first.lerp_(gradient, 1 - 0.9)
        self.second.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
        scale = (self.second / (1 - 0.999**self.done)).sqrt_().add_(1e-8)
        with torch.no_grad():
            self.parameters.sub_(self.rates * factor / (1 - 0.9**self.done) * self.first / scale)


def pretrained(
    world: World, shape: Shape, seeds: Sequence[int], *, steps: int, batch: int = 32, rate: float = 3e-3,
    on_step: Callable[[], object] = lambda: None,
) -> Tensor:  # fmt: skip
    """Return the models of the seeds after SFT on the world, [K, P]."""
    parameters = initial(shape, list(seeds)).requires_grad_()
    optimizer = _Optimizer(parameters, torch.full((len(seeds),), rate), steps)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for _ in range(steps):
        questions = [world.questions(batch, each) for each in generators]
        responses = [world.sft_responses(*each) for each in zip(questions, generators, strict=True)]
        logps = sequence_log_probs(shape, parameters, world.prompts(torch.stack(questions)), torch.stack(responses))
        (gradient,) = torch.autograd.grad(-logps.mean((1, 2)).sum(), parameters)
        optimizer.step(gradient)
        on_step()
    return parameters.detach()


def batches(count: int, *, batch: int, steps: int, seed: int) -> Tensor:
    """Return the rows of every step, int64 [steps, batch]: shuffled epochs without their incomplete last batches."""
    generator, per_epoch = torch.Generator().manual_seed(seed), count // batch
    epochs = -(-steps // per_epoch)
    orders = [torch.randperm(count, generator=generator)[: per_epoch * batch] for _ in range(epochs)]
    return torch.cat(orders).view(-1, batch)[:steps]


def stacked_losses(runs: Sequence[Run], logps: Tensor, reference: Tensor, rows: Tensor) -> Tensor:
    """Return the loss of every model, [K], as ``sepo.training.preference_step`` computes it for one.

    Args:
        runs: the K models.
        logps: [K, B, 2, T] log-probabilities of the policies; carries the gradient.
        reference: [K, B, 2, T] those of the references.
        rows: int64 [K, B] the rows of the batch among each model's pairs.
    """
    losses = torch.zeros(len(runs))
    for method in dict.fromkeys(run.method for run in runs):
        members = [place for place, run in enumerate(runs) if run.method == method]
        if method is not None:
            found = _preference_losses(method, runs, members, logps, reference, rows)
            losses = losses.index_add(0, torch.tensor(members), found.view(len(members), -1).mean(1))
    weights = torch.tensor([run.chosen_nll_weight for run in runs])
    return losses - weights * logps[:, :, 0].mean((1, 2)) if bool(weights.any()) else losses


def _preference_losses(
    method: Method, runs: Sequence[Run], members: list[int], logps: Tensor, reference: Tensor, rows: Tensor
) -> Tensor:
    """Return the losses of the pairs of the models with one method, [members * B]: the pairs of all are one batch."""
    if method.token_weight is not None or method.needs_kl or method.needs_log_sum_p2:
        raise SepoError(f"{method.name} needs more than log-probabilities; expected a method without token weights.")

    def flat(tensor: Tensor) -> tuple[Tensor, Tensor]:
        together = tensor[members].flatten(0, 1)
        return together[:, 0], together[:, 1]

    def stored(name: str) -> tuple[Tensor, Tensor]:
        found = torch.stack([getattr(runs[place], name)[rows[place]] for place in members]).flatten(0, 1)
        return found[:, 0], found[:, 1]

    inputs = {"policy": flat(logps), "ref": flat(reference)}
    named = {
        f"{who}_{side}_logps": each for who, both in inputs.items() for side, each in zip(SIDES, both, strict=True)
    }
    mask = torch.ones_like(inputs["policy"][0], dtype=torch.bool)
    scores = {}
    if method.needs_scores:
        scores = dict(zip(("chosen_scores", "rejected_scores"), stored("scores"), strict=True))
    elif method.token_scorer.live:  # as the step: equal live scores have an order without preference for a position
        ids = torch.stack([runs[place].pairs.responses[rows[place]] for place in members]).flatten(0, 1)
        scores = {f"{side}_ties": tie_order(ids[:, number], mask) for number, side in enumerate(SIDES)}
    chosen, rejected = select(method, chosen_mask=mask, rejected_mask=mask, **scores, **named)
    rewards = {}
    if method.needs_token_rewards:
        rewards = dict(zip(("chosen_token_rewards", "rejected_token_rewards"), stored("rewards"), strict=True))
    return preference_loss(
        method, **named, **rewards, chosen_selection=chosen, rejected_selection=rejected, chosen_mask=mask,
        rejected_mask=mask,
    ).losses  # fmt: skip


def trained(
    shape: Shape,
    start: Tensor,
    runs: Sequence[Run],
    *,
    steps: int,
    batch: int = 32,
    checkpoints: Iterable[int] = (),
    on_step: Callable[[], object] = lambda: None,
    watch: Callable[[Tensor, Tensor], object] = lambda logps, rows: None,
) -> tuple[Tensor, dict[int, Tensor]]:
    """Train a stack by preference optimization.

    Args:
        shape: sizes of the models.
        start: [K, P], the parameters before; also the references of runs without one.
        runs: the K models; their pairs are equally many.
        steps: optimizer steps.
        batch: pairs per step and model.
        checkpoints: numbers of steps after which the parameters are kept.
        on_step: called after each step.
        watch: called in each step with the policies' log-probabilities before it, [K, B, 2, T], detached, and the rows
            of the batch, int64 [K, B].

    Returns:
        The parameters after the last step, [K, P], and those after the checkpoints.
    """
    wanted, kept = set(checkpoints), {}
    prompts, responses = stacked_pairs([run.pairs for run in runs])
    count = prompts.shape[1]
    order = torch.stack([batches(count, batch=batch, steps=steps, seed=run.seed) for run in runs], 1)
    given = [run.reference for run in runs]
    if any(each is None for each in given):
        own = log_probs(shape, start, [run.pairs for run in runs])
        given = [each if each is not None else own[place] for place, each in enumerate(given)]
    reference = torch.stack(given)
    parameters = start.clone().requires_grad_()
    optimizer = _Optimizer(parameters, torch.tensor([run.rate for run in runs]), steps)
    models = torch.arange(len(runs))[:, None]
    for step, rows in enumerate(order, 1):
        logps = pair_log_probs(shape, parameters, prompts[models, rows], responses[models, rows])
        watch(logps.detach(), rows)
        (gradient,) = torch.autograd.grad(stacked_losses(runs, logps, reference[models, rows], rows).sum(), parameters)
        optimizer.step(gradient)
        if step in wanted:
            kept[step] = parameters.detach().clone()
        on_step()
    return parameters.detach(), kept


@torch.no_grad()
def log_probs(shape: Shape, parameters: Tensor, pairs: Sequence[Pairs], at_once: int = 128) -> Tensor:
    """Return log pi of the tokens of each model's pairs, [K, N, 2, T]."""
    prompts, responses = stacked_pairs(list(pairs))
    parts = zip(prompts.split(at_once, 1), responses.split(at_once, 1), strict=True)
    return torch.cat([pair_log_probs(shape, parameters, *each) for each in parts], 1)


def responses_to(shape: Shape, parameters: Tensor, prompts: Tensor, seeds: Sequence[int], tokens: int) -> Tensor:
    """Sample a response of each model to each prompt at temperature 1, [K, R, T], from prompts [K, R, P]."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    chances = torch.stack([torch.rand(prompts.shape[1], tokens, generator=each) for each in generators])
    parts = zip(prompts.split(SAMPLED_AT_ONCE, 1), chances.split(SAMPLED_AT_ONCE, 1), strict=True)
    return torch.cat([sampled(shape, parameters, *each) for each in parts], 1)


def right_share(world: World, shape: Shape, parameters: Tensor, *, count: int, seed: int) -> Tensor:
    """Return each model's share of right sampled responses to the questions of a seed, [K]."""
    questions = world.questions(count, torch.Generator().manual_seed(seed)).expand(len(parameters), -1, -1)
    found = responses_to(shape, parameters, world.prompts(questions), [seed] * len(parameters), world.response_tokens)
    return 1 - world.wrong_tokens(questions, found).any(-1).double().mean(1)


def own_pairs(world: World, shape: Shape, parameters: Tensor, *, count: int, seed: int) -> Pairs:
    """Return pairs of samples of one model [P], drawn with a seed."""
    generator, found, have, drawn = torch.Generator().manual_seed(seed), [], 0, 0
    while have < count:
        questions = world.questions(SAMPLED_AT_ONCE, generator)
        prompts = world.prompts(questions).expand(2, -1, -1)
        both = responses_to(shape, parameters.expand(2, -1), prompts, [_mixed(seed, drawn), _mixed(seed, drawn + 1)],
                            world.response_tokens)  # fmt: skip
        found.append(paired(world, questions, *both))
        have, drawn = have + len(found[-1]), drawn + 2
    return Pairs(
        *(torch.cat([getattr(each, name) for each in found])[:count] for name in ("prompts", "responses", "wrong"))
    )


def _mixed(seed: int, number: int) -> int:
    return seed * 100_003 + number
