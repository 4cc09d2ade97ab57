"""Effect handlers: functions that change what a program's statements mean.

Each works in three ways: `h(fn, ...)` wraps a function, `@h(...)` decorates one, and `with h(...)`
applies to a block. `sumprod.poutine` is this package under the name that Pyro's users know.
"""

from sumprod.handlers.block import BlockMessenger, block
from sumprod.handlers.broadcast import BroadcastMessenger, broadcast
from sumprod.handlers.condition import ConditionMessenger, condition
from sumprod.handlers.do import DoMessenger, do
from sumprod.handlers.enumerate import EnumerateMessenger, EnumMessenger, enum
from sumprod.handlers.escape import EscapeMessenger, escape
from sumprod.handlers.indep import CondIndepStackFrame
from sumprod.handlers.infer_config import InferConfigMessenger, infer_config
from sumprod.handlers.lift import LiftMessenger, lift
from sumprod.handlers.markov import MarkovMessenger, markov
from sumprod.handlers.mask import MaskMessenger, mask
from sumprod.handlers.messenger import Messenger, block_messengers, unwrap
from sumprod.handlers.plate import PlateMessenger
from sumprod.handlers.queue import queue
from sumprod.handlers.replay import ReplayMessenger, replay
from sumprod.handlers.scale import ScaleMessenger, scale
from sumprod.handlers.scan import scan
from sumprod.handlers.seed import SeedMessenger, seed
from sumprod.handlers.substitute import SubstituteMessenger, substitute
from sumprod.handlers.trace import TraceHandler, TraceMessenger, trace
from sumprod.handlers.trace_struct import Trace
from sumprod.handlers.uncondition import UnconditionMessenger, uncondition
from sumprod.handlers.util import enable_validation, is_validation_enabled, validation_enabled
from sumprod.handlers.vectorized_markov import VectorizedMarkovMessenger, vectorized_markov
from sumprod.runtime import NonlocalExit, am_i_wrapped, apply_stack, get_mask, get_plates

__all__ = [
    "BlockMessenger",
    "BroadcastMessenger",
    "CondIndepStackFrame",
    "ConditionMessenger",
    "DoMessenger",
    "EnumMessenger",
    "EnumerateMessenger",
    "EscapeMessenger",
    "InferConfigMessenger",
    "LiftMessenger",
    "MarkovMessenger",
    "MaskMessenger",
    "Messenger",
    "NonlocalExit",
    "PlateMessenger",
    "ReplayMessenger",
    "ScaleMessenger",
    "SeedMessenger",
    "SubstituteMessenger",
    "Trace",
    "TraceHandler",
    "TraceMessenger",
    "UnconditionMessenger",
    "VectorizedMarkovMessenger",
    "am_i_wrapped",
    "apply_stack",
    "block",
    "block_messengers",
    "broadcast",
    "condition",
    "do",
    "enable_validation",
    "enum",
    "escape",
    "get_mask",
    "get_plates",
    "infer_config",
    "is_validation_enabled",
    "lift",
    "markov",
    "mask",
    "queue",
    "replay",
    "scale",
    "scan",
    "seed",
    "substitute",
    "trace",
    "uncondition",
    "unwrap",
    "validation_enabled",
    "vectorized_markov",
]
