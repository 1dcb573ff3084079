import pytest
import torch

from anomdino.detector.mmdet_parts import BiMultiHeadAttention
from anomdino.detector.text_fusion import LeanBiAttention


@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_mmdets_attention_and_its_gradients(tokens, masked):
    stock = BiMultiHeadAttention(16, 12, 64, 4, dropout=0.0)
    for bias in (p for name, p in stock.named_parameters() if name.endswith("bias")):
        torch.nn.init.normal_(bias)
    lean = LeanBiAttention.like(stock)
    lean.load_state_dict(stock.state_dict())
    vision, lang = torch.randn(2, 30, 16), torch.randn(2, tokens, 12)
    mask_v = torch.arange(30) >= torch.tensor([[30], [21]]) if masked else None
    mask_l = torch.zeros(2, tokens, dtype=torch.bool)
    results = []
    for module in (stock, lean):
        inputs = vision.clone().requires_grad_(), lang.clone().requires_grad_()
        outputs = module(*inputs, mask_v, mask_l)
        (outputs[0].square().sum() + outputs[1].square().sum()).backward()
        gradients = {name: p.grad for name, p in module.named_parameters()}
        results.append((*outputs, *(i.grad for i in inputs), gradients))
    for a, b in zip(results[0][:4], results[1][:4], strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    for name, gradient in results[0][4].items():
        torch.testing.assert_close(results[1][4][name], gradient, atol=2e-3, rtol=1e-3)


def test_dropout_keeps_the_mean():
    torch.manual_seed(0)
    stock = BiMultiHeadAttention(8, 8, 64, 2, dropout=0.5)
    lean = LeanBiAttention.like(stock)
    lean.load_state_dict(stock.state_dict())
    vision, lang = torch.randn(1, 20, 8), torch.randn(1, 3, 8)
    for one, other in zip(stock.eval()(vision, lang), lean.eval()(vision, lang), strict=True):
        torch.testing.assert_close(one, other)
    for module in (stock, lean):
        module.train()
    means = [[sum(m(vision, lang)[i] for _ in range(3000)) / 3000 for i in (0, 1)] for m in (stock, lean)]
    for i in (0, 1):
        torch.testing.assert_close(means[0][i], means[1][i], atol=0.05, rtol=0.0)
