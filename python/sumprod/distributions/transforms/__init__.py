"""Transforms between supports: all of torch's, under Pyro's import path, and some that Pyro adds."""

from torch.distributions import biject_to, transform_to
from torch.distributions.transforms import (
    AbsTransform,
    AffineTransform,
    CatTransform,
    ComposeTransform,
    CorrCholeskyTransform,
    CumulativeDistributionTransform,
    ExpTransform,
    IndependentTransform,
    LowerCholeskyTransform,
    PositiveDefiniteTransform,
    PowerTransform,
    ReshapeTransform,
    SigmoidTransform,
    SoftmaxTransform,
    SoftplusTransform,
    StackTransform,
    StickBreakingTransform,
    TanhTransform,
    Transform,
    identity_transform,
)

from sumprod.distributions.transforms import registry as registry
from sumprod.distributions.transforms.cholesky import (
    CholeskyTransform,
    CorrLCholeskyTransform,
    CorrMatrixCholeskyTransform,
    LowerCholeskyAffine,
    SoftplusLowerCholeskyTransform,
    UnitLowerCholeskyTransform,
)
from sumprod.distributions.transforms.elementwise import (
    ELUTransform,
    LeakyReLUTransform,
    elu,
    leaky_relu,
)
from sumprod.distributions.transforms.ordered import (
    OrderedTransform,
    SimplexToOrderedTransform,
)
from sumprod.distributions.transforms.vector import (
    Normalize,
    Permute,
    permute,
)

__all__ = [
    "AbsTransform",
    "AffineTransform",
    "CatTransform",
    "CholeskyTransform",
    "ComposeTransform",
    "CorrCholeskyTransform",
    "CorrLCholeskyTransform",
    "CorrMatrixCholeskyTransform",
    "CumulativeDistributionTransform",
    "ELUTransform",
    "ExpTransform",
    "IndependentTransform",
    "LeakyReLUTransform",
    "LowerCholeskyAffine",
    "LowerCholeskyTransform",
    "Normalize",
    "OrderedTransform",
    "Permute",
    "PositiveDefiniteTransform",
    "PowerTransform",
    "ReshapeTransform",
    "SigmoidTransform",
    "SimplexToOrderedTransform",
    "SoftmaxTransform",
    "SoftplusLowerCholeskyTransform",
    "SoftplusTransform",
    "StackTransform",
    "StickBreakingTransform",
    "TanhTransform",
    "Transform",
    "UnitLowerCholeskyTransform",
    "biject_to",
    "elu",
    "identity_transform",
    "leaky_relu",
    "permute",
    "transform_to",
]
