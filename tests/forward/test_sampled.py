"""Log-probabilities and entropies at a temperature, against full logits."""

import pytest
import torch

from sepo.forward.sampled import sampled_tokens
from tests.support.models import model_of


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Cohere"])  # plain; capped; scaled logits
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("chunk", [None, 3])
def test_values_equal_those_of_full_logits(name, temperature, chunk):
    model = model_of(name, dtype=torch.float64)
    ids = torch.randint(3, 97, (3, 9), generator=torch.Generator().manual_seed(1))
    attention = torch.ones_like(ids)
    attention[0, :3], attention[1, -2:] = 0, 0  # padding on either side
    wanted = attention[:, 1:].bool() & (torch.arange(8) >= 4)
    inputs = {"input_ids": ids, "attention_mask": attention}
    found = sampled_tokens(
        model, inputs, labels=ids, wanted=wanted, temperature=temperature, with_entropies=True, chunk_tokens=chunk
    )
    log_probs = torch.log_softmax(model(**inputs).logits[:, :-1].double() / temperature, dim=-1)
    logps = log_probs.gather(-1, ids[:, 1:, None]).squeeze(-1)
    entropies = -(log_probs.exp() * log_probs).sum(-1)
    torch.testing.assert_close(found.logps, logps * wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.entropies, (entropies * wanted).detach(), rtol=1e-6, atol=1e-6)
    parameter = next(model.parameters())
    (mine,) = torch.autograd.grad(found.logps.sum(), parameter)
    (theirs,) = torch.autograd.grad((logps * wanted).sum(), parameter)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_entropies_are_not_computed_unless_requested():
    model = model_of("Llama")
    ids = torch.tensor([[3, 4, 5]])
    found = sampled_tokens(
        model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels=ids,
        wanted=torch.tensor([[False, True]]),
    )  # fmt: skip
    assert found.entropies is None
    assert found.logps[0, 0] == 0
