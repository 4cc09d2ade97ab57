"""The default of `validate_args`: the setting `validate_distributions_pyro`, not torch's switch.

torch turns its own switch off for the whole process as soon as anything is compiled (a compiled graph
cannot stop at a bad value). Checks of ours stay on then, except inside the compiled code.
"""

from __future__ import annotations

from torch.compiler import is_dynamo_compiling

from sumprod.settings import state

__all__ = ["ValidateArgs"]


class ValidateArgs:
    """What `d._validate_args` says unless the constructor was given `validate_args`."""

    def __get__(self, instance: object, owner: type) -> bool:
        return state.validate_distributions_pyro and not is_dynamo_compiling()
