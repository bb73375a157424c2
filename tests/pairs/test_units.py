"""Work units: every sample once, within the budget, as a function of the data alone."""

from hypothesis import given
from hypothesis import strategies as st

from sepo.pairs.units import work_units


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 5), st.integers(1, 20), st.integers(1, 200)
)
def test_every_sample_is_in_one_unit_within_the_budget(lengths, samples, new, budget):
    units = work_units(lengths, samples=samples, max_new_tokens=new, batch_tokens=budget)
    assert [unit.index for unit in units] == list(range(len(units)))
    found = [sample for unit in units for sample in unit.samples]
    assert sorted(found) == [(prompt, number) for prompt in range(len(lengths)) for number in range(samples)]
    for unit in units:
        longest = max(lengths[prompt] for prompt, _ in unit.samples) + new
        assert longest * len(unit.samples) <= budget or len(unit.samples) == 1
    longest = [max(lengths[prompt] for prompt, _ in unit.samples) for unit in units]
    assert longest == sorted(longest, reverse=True)
    of_prompt = {prompt: [number for other, number in found if other == prompt] for prompt in range(len(lengths))}
    assert all(numbers == sorted(numbers) for numbers in of_prompt.values())
