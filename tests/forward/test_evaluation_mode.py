"""A forward pass without dropout does not change the training of the policy."""

import bitsandbytes as bnb
import torch

from sepo.forward.evaluation_mode import in_evaluation_mode


def test_modules_return_to_their_previous_mode():
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
    model[2].eval()
    ones = torch.ones(3, 4)
    with in_evaluation_mode(model):
        assert torch.equal(model(ones), model[1](ones))
    assert [module.training for module in model] == [True, True, False]


def test_a_quantized_layer_still_has_a_gradient_afterwards():
    """bitsandbytes repacks 4-bit weights in evaluation mode on a CPU with AVX512-BF16; simulated here on any CPU."""
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").to("cpu")
    layer.support_avx512bf16_for_cpu = True
    layer.train()
    x = torch.randn(2, 64, requires_grad=True)
    layer(x).sum().backward()
    before, weight = x.grad.clone(), layer.weight.data.clone()
    with torch.no_grad(), in_evaluation_mode(layer):
        layer(x.detach())
    assert torch.equal(layer.weight.data, weight)
    x.grad = None
    layer(x).sum().backward()
    assert torch.equal(x.grad, before)
