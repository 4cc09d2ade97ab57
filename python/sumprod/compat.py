"""Running unmodified programs: `import pyro` that finds sumprod.

    import sumprod.compat
    sumprod.compat.install_as_pyro()
    import pyro                      # a module with sumprod's content
    from pyro.infer import SVI       # the very class sumprod.infer.SVI

`python -m sumprod.run script.py` does the same for a whole script. Under the name `pyro`, `__version__` is a
version of Pyro (1.9.2 unless told otherwise), because many programs insist on one; `sumprod.__version__` is
always our own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType, TracebackType
from typing import Any

import sumprod
from sumprod import _aliases

__all__ = ["Installation", "install_as_pyro"]

PYRO_VERSION = "1.9.2"


class _PyroModule(ModuleType):
    """`sumprod` under the name `pyro`, but with a version of Pyro's."""

    def __init__(self, version: str) -> None:
        super().__init__("pyro", sumprod.__doc__)
        self.__version__ = version
        self.__all__ = [name for name in sumprod.__all__ if name != "__version__"]
        self.__path__: list[str] = []  # a package without files; the finder serves what is below

    def __getattr__(self, name: str) -> Any:
        return getattr(sumprod, name)

    def __dir__(self) -> list[str]:
        return sorted({*vars(self), *dir(sumprod)})


class _PyroFinder(MetaPathFinder):
    """Finds `pyro.anything` as `sumprod.anything`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.startswith("pyro."):
            return _aliases.alias_spec(fullname, "sumprod" + fullname[len("pyro") :])
        return None


class Installation:
    """What `install_as_pyro` did. `uninstall()`, or leaving the `with` block, takes it back."""

    def __init__(self, version: str) -> None:
        before = sys.modules.get("pyro")
        # An outer installation stays in charge of everything but the version.
        self._outer = before if isinstance(before, _PyroModule) else None
        self._finder = _PyroFinder()
        if self._outer is not None:
            self._outer_version = self._outer.__version__
            self._outer.__version__ = version
        else:
            sys.modules["pyro"] = _PyroModule(version)
            sys.meta_path.insert(0, self._finder)
        self._active = True

    def uninstall(self) -> None:
        """Makes `import pyro` mean again what it meant before. Does nothing the second time."""
        if not self._active:
            return
        self._active = False
        if self._outer is not None:
            self._outer.__version__ = self._outer_version
            return
        sys.meta_path.remove(self._finder)
        for name in [name for name in sys.modules if name == "pyro" or name.startswith("pyro.")]:
            del sys.modules[name]

    def __enter__(self) -> Installation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.uninstall()


def install_as_pyro(version: str = PYRO_VERSION) -> Installation:
    """From now on, or inside `with`, `import pyro` and `import pyro.anything` find sumprod.

    `version` is what `pyro.__version__` says. Modules and classes are the same objects under both names.
    Raises RuntimeError when the real Pyro has been imported: programs that hold parts of it would mix both.
    """
    found = sys.modules.get("pyro")
    if found is not None and not isinstance(found, _PyroModule):
        where = getattr(found, "__file__", None) or "an unknown place"
        raise RuntimeError(
            f"the real Pyro is already imported (from {where}); call install_as_pyro() before anything "
            "imports pyro, or run the program with python -m sumprod.run"
        )
    _aliases.install()
    return Installation(version)
