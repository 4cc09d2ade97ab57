"""Draws, best values and marginals of the tensors that a contraction was made of.

>>> import torch
>>> from sumprod.ops.contract import einsum
>>> prior, likelihood = torch.tensor([0.5, 0.5]).log(), torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()
>>> require_backward(prior)
>>> (total,) = einsum("z,zx->", prior, likelihood[:, :1], backend="sumprod.ops.einsum.torch_marginal")
>>> total._pyro_backward()
>>> prior._pyro_backward_result.exp()  # 0.5 * 0.9, 0.5 * 0.2
tensor([0.4500, 0.1000])
"""

from sumprod.ops._adjoint import SAMPLE_SYMBOL, Backward, require_backward

__all__ = ["SAMPLE_SYMBOL", "Backward", "require_backward"]
