"""benchmarks/claims: the world, worked by hand, and its pairs."""

import pytest
import torch
from claims.world import END, FIRST, VALUES, World, flips, paired

WORLD = World(digits=5)
QUESTION = torch.tensor([[2, 7, 5, 7, 9]])


def sums(*values):
    return [FIRST + value for value in values]


def test_wrong_tokens_worked_by_hand():
    answers = {
        (*sums(2, 9, 4, 1, 0), END): [0, 0, 0, 0, 0, 0],
        (*sums(2, 9, 4, 0, 9), END): [0, 0, 0, 1, 0, 0],  # the sums after an error follow from it
        (*sums(12, 9, 14, 1, 10), END): [0, 0, 0, 0, 0, 0],  # the second spelling
        (*sums(2, 9, 4, 1, 0), FIRST): [0, 0, 0, 0, 0, 1],
        (2, END, *sums(4, 1, 0), END): [1, 1, 1, 0, 0, 0],  # no sums; both count as 0 for the next token
    }
    found = WORLD.wrong_tokens(QUESTION.expand(len(answers), -1), torch.tensor(list(answers)))
    assert found.int().tolist() == list(answers.values())


def test_sft_responses_have_both_spellings_and_the_misconception_in_half_of_the_places():
    world, generator = World(), torch.Generator().manual_seed(0)
    questions = world.questions(4000, generator)
    confused = questions == world.confused
    assert int(confused.sum(1).min()) >= world.confused_places
    responses = world.sft_responses(questions, generator)
    wrong = world.wrong_tokens(questions, responses)[:, :-1]
    assert not wrong[~confused].any()
    assert float(wrong[confused].double().mean()) == pytest.approx(0.5, abs=0.02)  # over 4 standard errors
    second = responses[:, :-1] >= FIRST + VALUES
    assert not second[confused].any()
    assert float(second[~confused].double().mean()) == pytest.approx(0.5, abs=0.02)


def test_the_response_with_fewer_wrong_tokens_is_chosen_and_ties_are_dropped():
    right, one, two = ([*sums(*each), END] for each in ((2, 9, 4, 1, 0), (2, 9, 4, 0, 9), (2, 8, 3, 9, 8)))
    questions = QUESTION.expand(3, -1)
    pairs = paired(WORLD, questions, torch.tensor([two, right, one]), torch.tensor([one, one, one]))
    assert pairs.responses.tolist() == [[one, two], [right, one]]
    assert pairs.wrong.sum(-1).tolist() == [[1, 2], [0, 1]]
    assert torch.equal(pairs.prompts, WORLD.prompts(questions[:2]))
    assert pairs.swapped(torch.tensor([True, False])).responses.tolist() == [[two, one], [right, one]]


def test_exactly_the_share_of_labels_is_flipped():
    assert int(flips(128, 1 / 3, seed=5).sum()) == 43
    assert not torch.equal(flips(128, 0.5, seed=1), flips(128, 0.5, seed=2))
