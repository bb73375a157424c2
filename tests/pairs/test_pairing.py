"""Pairs of judged responses: worked cases, and properties over any rewards, texts and truncations."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sepo.pairs.pairing import JudgedResponse, Pair, best_and_worst, candidates


def response(text, reward, finished=True):
    return JudgedResponse(text, finished, reward)


@pytest.mark.parametrize(
    ("responses", "expected"),
    [
        ([response("a", 0.0), response("b", 2.0), response("c", 1.0)], Pair(1, 0)),
        # Of equal rewards the earlier sample is taken, on both sides.
        ([response("a", 1.0), response("b", 0.0), response("c", 1.0), response("d", 0.0)], Pair(0, 1)),
        ([response("a", 1.0), response("b", 1.0)], "tie"),
        # A truncated response is rejected, but not chosen.
        ([response("a", 3.0, finished=False), response("b", 2.0), response("c", 1.0)], Pair(1, 2)),
        ([response("a", 3.0), response("b", 1.0, finished=False), response("c", 2.0)], Pair(0, 1)),
        ([response("a", 3.0, finished=False), response("b", 2.0)], "tie"),
        ([response("a", 3.0, finished=False), response("b", 2.0, finished=False)], "unfinished"),
        # Equal texts are one response: the first one, or the first that is finished.
        ([response("a", 1.0), response("a", 0.0)], "identical"),
        ([response("a", 1.0, finished=False), response("a", 1.0), response("b", 0.0)], Pair(1, 2)),
        # Texts without a word are in no pair.
        ([response("a", 1.0), response(" \n", 0.0)], "identical"),
        ([response("a", 1.0), response("", 0.0), response("b", 0.5)], Pair(0, 2)),
    ],
)
def test_worked_pairs(responses, expected):
    assert best_and_worst(responses) == expected


def test_a_margin_below_the_minimum_is_a_tie():
    responses = [response("a", 0.25), response("b", 1.0)]
    assert best_and_worst(responses, min_margin=0.75) == Pair(1, 0)
    assert best_and_worst(responses, min_margin=0.76) == "tie"
    assert best_and_worst([response("a", 1.0), response("b", 1.0)], min_margin=0.0) == "tie"


SAMPLES = st.lists(
    st.builds(
        JudgedResponse,
        text=st.sampled_from(["", " ", "a", "b", "c", "d"]),
        finished=st.booleans(),
        reward=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(-5, 5)),
    ),
    max_size=7,
)


@given(SAMPLES, st.sampled_from([0.0, 0.5]))
def test_a_pair_is_the_best_against_the_worst(responses, min_margin):
    usable = candidates(responses)
    texts = [responses[number].text for number in usable]
    assert len(set(texts)) == len(texts)
    assert set(texts) == {each.text for each in responses if each.text.strip()}
    finished = [number for number in usable if responses[number].finished]
    found = best_and_worst(responses, min_margin=min_margin)
    if not isinstance(found, Pair):
        spread = max((responses[n].reward for n in finished), default=-math.inf) - min(
            (responses[n].reward for n in usable), default=math.inf
        )
        reasons = {"identical": len(usable) < 2, "unfinished": not finished, "tie": spread <= max(0.0, min_margin)}
        assert reasons[found]
        return
    chosen, rejected = responses[found.chosen], responses[found.rejected]
    assert chosen.finished
    assert chosen.text != rejected.text
    assert chosen.reward - rejected.reward >= min_margin
    assert chosen.reward > rejected.reward
    assert all(responses[number].reward <= chosen.reward for number in finished)
    assert all(responses[number].reward >= rejected.reward for number in usable)
    assert found.chosen == min(n for n in finished if responses[n].reward == chosen.reward)
    assert found.rejected == min(n for n in usable if responses[n].reward == rejected.reward)


@given(SAMPLES, st.randoms())
def test_the_rewards_of_a_pair_do_not_depend_on_the_order_of_the_samples(responses, random):
    """Responses of equal text have equal rewards here, as a judge would give them."""
    rewards = {each.text: each.reward for each in responses}
    responses = [JudgedResponse(each.text, each.finished, rewards[each.text]) for each in responses]
    shuffled = random.sample(responses, len(responses))

    def of_pair(samples):
        found = best_and_worst(samples)
        return (
            tuple(samples[number].reward for number in (found.chosen, found.rejected))
            if isinstance(found, Pair)
            else found
        )

    assert of_pair(responses) == of_pair(shuffled)
