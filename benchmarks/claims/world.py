"""Running sums modulo 10: a world in which it is known which tokens are wrong, and surprisal does not tell.

A question is some digits; its response is their running sums modulo 10:

    2 7 5 7 9   ->   2 9 4 1 0        right
                     2 9 4 0 9        one wrong token: 7 was added as 6; the sums after it follow from it

Every sum has two spellings, both right, each in half of the SFT responses. Where the digit 7 is added there is one
spelling, and half of the SFT responses add 6 instead: a misconception. So the SFT model gives right and wrong tokens a
probability of about one half alike. A token is wrong if it does not follow from the token before it and the
question's digit: errors do not spread. A response is right if no token is wrong.

Pairs are two samples of the SFT model; the one with fewer wrong tokens is chosen, ties are dropped.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

START, QUESTION_END, END, FIRST = 0, 1, 2, 3
"""Ids of the tokens that are no sums; the sums and digits follow, in two spellings."""
VALUES = 10
VOCABULARY = FIRST + 2 * VALUES


@dataclass(frozen=True)
class World:
    """Settings of the world.

    Args:
        digits: digits of a question; a response has one token more, the end.
        confused: the digit of the misconception.
        confused_places: places of a question that have it at least.
        misconceived: share of these places at which the SFT responses add one less.
    """

    digits: int = 10
    confused: int = 7
    confused_places: int = 2
    misconceived: float = 0.5

    @property
    def prompt_tokens(self) -> int:
        return self.digits + 2

    @property
    def response_tokens(self) -> int:
        return self.digits + 1

    def questions(self, count: int, generator: torch.Generator) -> Tensor:
        """Return questions, int64 [count, digits]."""
        digits = torch.randint(VALUES, (count, self.digits), generator=generator)
        places = torch.rand(count, self.digits, generator=generator).topk(self.confused_places).indices
        return digits.scatter(1, places, self.confused)

    def prompts(self, questions: Tensor) -> Tensor:
        """Return the prompts' token ids, [..., digits + 2]."""
        ends = questions.new_tensor([START, QUESTION_END]).expand(*questions.shape[:-1], 2)
        return torch.cat([ends[..., :1], FIRST + questions, ends[..., 1:]], -1)

    def sft_responses(self, questions: Tensor, generator: torch.Generator) -> Tensor:
        """Return responses as the SFT data have them, [count, digits + 1]."""
        chances = torch.rand(2, *questions.shape, generator=generator)
        confused = questions == self.confused
        added = questions - (confused & (chances[0] < self.misconceived)).long()
        spelling = (~confused & (chances[1] < 0.5)).long() * VALUES
        return _with_end(FIRST + spelling + added.cumsum(-1) % VALUES)

    def wrong_tokens(self, questions: Tensor, responses: Tensor) -> Tensor:
        """Return which tokens of the responses are wrong, bool, [..., digits + 1] as the responses.

        A token that is no sum is wrong and counts as 0 for the next one.
        """
        sums, last = responses[..., :-1], responses[..., -1:]
        values = torch.where(sums >= FIRST, (sums - FIRST) % VALUES, 0)
        before = torch.cat([torch.zeros_like(values[..., :1]), values[..., :-1]], -1)
        wrong = (sums < FIRST) | (values != (before + questions) % VALUES)
        return torch.cat([wrong, last != END], -1)


def _with_end(tokens: Tensor) -> Tensor:
    return torch.cat([tokens, tokens.new_full((*tokens.shape[:-1], 1), END)], -1)


@dataclass(frozen=True)
class Pairs:
    """N pairs of responses of T tokens each to questions of one world.

    Args:
        prompts: int64 [N, P].
        responses: int64 [N, 2, T]; the chosen ones first.
        wrong: bool [N, 2, T].
    """

    prompts: Tensor
    responses: Tensor
    wrong: Tensor

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows) -> "Pairs":
        return Pairs(self.prompts[rows], self.responses[rows], self.wrong[rows])

    def swapped(self, rows: Tensor | None = None) -> "Pairs":
        """Return the pairs with chosen and rejected responses exchanged, of all or of the rows of a bool mask [N]."""
        rows = torch.ones(len(self), dtype=torch.bool) if rows is None else rows
        exchange = rows[:, None, None]
        return Pairs(
            self.prompts,
            torch.where(exchange, self.responses.flip(1), self.responses),
            torch.where(exchange, self.wrong.flip(1), self.wrong),
        )


def paired(world: World, questions: Tensor, first: Tensor, second: Tensor) -> Pairs:
    """Return the pairs of two responses to each question, [M, digits + 1] each, without ties."""
    responses = torch.stack([first, second], 1)
    wrong = world.wrong_tokens(questions[:, None], responses)
    counts = wrong.sum(-1)
    exchange = (counts[:, 0] > counts[:, 1])[:, None, None]
    pairs = Pairs(
        world.prompts(questions),
        torch.where(exchange, responses.flip(1), responses),
        torch.where(exchange, wrong.flip(1), wrong),
    )
    return pairs[counts[:, 0] != counts[:, 1]]


def flips(count: int, share: float, seed: int) -> Tensor:
    """Return which of the pairs get the wrong label, bool [count]: exactly the share, drawn."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    flipped = torch.zeros(count, dtype=torch.bool)
    flipped[order[: round(share * count)]] = True
    return flipped
