"""`sumprod.handlers` under the name that Pyro's users know. At run time it is the same module."""

from sumprod.handlers import *  # noqa: F403
