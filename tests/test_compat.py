"""Pyro's module paths, `import pyro` that finds sumprod, and unmodified scripts.

What needs a process in which the real Pyro was never imported runs in one of its own.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import sumprod.compat
from sumprod import _aliases, handlers, run, runtime
from sumprod._aliases import AliasFinder


@pytest.fixture(autouse=True)
def aliases() -> None:
    _aliases.install()


# Aliases.


def test_poutine_is_handlers() -> None:
    import sumprod.poutine.runtime

    import sumprod.poutine
    from sumprod.poutine import trace_messenger

    assert sumprod.poutine is handlers
    assert sumprod.poutine.runtime is runtime
    assert trace_messenger is sys.modules["sumprod.handlers.trace"]
    assert trace_messenger.TraceMessenger is handlers.TraceMessenger
    assert trace_messenger.__name__ == trace_messenger.__spec__.name == "sumprod.handlers.trace"


@pytest.mark.parametrize("alias", sorted(_aliases.ALIASES))
def test_every_alias(alias: str) -> None:
    real = _aliases.ALIASES[alias]
    try:
        module = importlib.import_module(real)
    except ModuleNotFoundError:
        with pytest.raises(ModuleNotFoundError, match=f"No module named '{alias}'"):
            importlib.import_module(alias)
    else:
        assert importlib.import_module(alias) is module


def test_classes_of_pyros_handler_modules() -> None:
    for path, name in (
        ("block_messenger", "BlockMessenger"),
        ("broadcast_messenger", "BroadcastMessenger"),
        ("condition_messenger", "ConditionMessenger"),
        ("do_messenger", "DoMessenger"),
        ("escape_messenger", "EscapeMessenger"),
        ("handlers", "trace"),
        ("indep_messenger", "CondIndepStackFrame"),
        ("infer_config_messenger", "InferConfigMessenger"),
        ("lift_messenger", "LiftMessenger"),
        ("markov_messenger", "MarkovMessenger"),
        ("mask_messenger", "MaskMessenger"),
        ("messenger", "Messenger"),
        ("plate_messenger", "PlateMessenger"),
        ("replay_messenger", "ReplayMessenger"),
        ("runtime", "NonlocalExit"),
        ("scale_messenger", "ScaleMessenger"),
        ("seed_messenger", "SeedMessenger"),
        ("substitute_messenger", "SubstituteMessenger"),
        ("trace_messenger", "TraceHandler"),
        ("trace_struct", "Trace"),
        ("uncondition_messenger", "UnconditionMessenger"),
        ("util", "site_is_subsample"),
    ):
        module = importlib.import_module(f"sumprod.poutine.{path}")
        found = getattr(module, name)
        if hasattr(handlers, name):
            assert found is getattr(handlers, name)


def test_functions_are_not_hidden_by_modules() -> None:
    """`handlers.trace` is the handler, although a module of that name was imported by another path."""
    importlib.import_module("sumprod.poutine.trace")
    importlib.import_module("sumprod.poutine.block_messenger")
    assert callable(handlers.trace)
    assert callable(handlers.block)
    assert sys.modules["sumprod.poutine.trace"] is sys.modules["sumprod.handlers.trace"]


def test_unknown_modules_are_missing() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'sumprod\.poutine\.nothing'"):
        importlib.import_module("sumprod.poutine.nothing")


@pytest.mark.parametrize("name", sorted(_aliases.OUT_OF_SCOPE))
def test_out_of_scope(name: str) -> None:
    for path in (name, f"{name}.deeper"):
        with pytest.raises(ImportError, match=rf"^{name} is not part of sumprod: ") as caught:
            importlib.import_module(path)
        assert type(caught.value) is ImportError
    with pytest.raises(ImportError, match="is not part of sumprod"):
        exec(f"from sumprod.contrib import {name.rpartition('.')[2]}")


def test_vectorized_markov_has_a_pointer() -> None:
    with pytest.raises(ImportError, match=r"`vectorized_markov` is sumprod\.vectorized_markov"):
        importlib.import_module("sumprod.contrib.funsor")


def test_finder_by_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an alias does not list leads below its target; the table wins over that."""
    real, deep, other = ModuleType("tests_real"), ModuleType("tests_real.deep"), ModuleType("tests_other")
    real.__path__ = []
    for module in (real, deep, other):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    table = {"tests_alias": "tests_real", "tests_alias.special": "tests_other"}
    finder = AliasFinder("tests_alias", table, {"tests_alias.no": "because"})
    assert finder.target("tests_alias.deep") == "tests_real.deep"
    assert finder.target("tests_alias.special") == "tests_other"
    assert finder.target("tests_alias.special.x.y") == "tests_other.x.y"
    assert finder.target("unrelated.deep") is None
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    monkeypatch.setitem(sys.modules, "tests_alias", real)
    assert importlib.import_module("tests_alias.deep") is deep
    assert importlib.import_module("tests_alias.special") is other
    with pytest.raises(ImportError, match=r"^tests_alias\.no is not part of sumprod: because$"):
        importlib.import_module("tests_alias.no")
    for name in ("tests_alias.deep", "tests_alias.special"):
        monkeypatch.delitem(sys.modules, name)


def test_errors_inside_an_aliased_module_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests_broken.py").write_text("import missing_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    finder = AliasFinder(
        "tests_alias", {"tests_alias.x": "tests_broken", "tests_alias.y": "tests_absent"}, {}
    )
    with pytest.raises(ModuleNotFoundError, match="'missing_dependency'"):
        finder.find_spec("tests_alias.x", None)
    with pytest.raises(ModuleNotFoundError, match=r"'tests_alias\.y'"):
        finder.find_spec("tests_alias.y", None)


# import pyro.


IMPORTS = """
import sys
import sumprod, sumprod.compat

with sumprod.compat.install_as_pyro() as outer:
    import pyro
    import pyro.distributions as dist
    import pyro.poutine as poutine
    from pyro.infer import SVI, Trace_ELBO
    from pyro.optim import Adam
    from pyro.params.param_store import ParamStoreDict
    import pyro.poutine.trace_messenger
    import pyro.infer.trace_elbo

    assert pyro.__name__ == "pyro" and pyro.__version__ == "1.9.2"
    assert sumprod.__version__ != "1.9.2"
    assert pyro.sample is sumprod.sample and pyro.infer is sumprod.infer
    assert dist is sumprod.distributions and poutine is sumprod.handlers
    assert SVI is sumprod.infer.svi.SVI and Adam is sumprod.optim.Adam
    assert Trace_ELBO is pyro.infer.trace_elbo.Trace_ELBO
    assert ParamStoreDict is sumprod.params.ParamStoreDict
    assert pyro.poutine.trace_messenger.TraceMessenger is sumprod.poutine.TraceMessenger
    assert sumprod.infer.__spec__.name == sumprod.infer.__name__ == "sumprod.infer"
    assert "sample" in dir(pyro) and "infer" in dir(pyro)

    for path in ("pyro.contrib.gp", "pyro.nothing", "pyro.poutine.nothing"):
        try:
            __import__(path)
        except ImportError as error:
            print(type(error).__name__, str(error).partition(":")[0])

    try:
        with sumprod.compat.install_as_pyro("1.8.4"):
            assert pyro.__version__ == "1.8.4"
            raise KeyError("leaves the inner block")
    except KeyError:
        assert pyro.__version__ == "1.9.2"

outer.uninstall()
assert not [name for name in sys.modules if name.split(".")[0] == "pyro"]
assert not [finder for finder in sys.meta_path if "Pyro" in type(finder).__name__]
"""


def test_install_as_pyro() -> None:
    """Same objects, a version of Pyro's, errors that name what was asked for, and nothing left behind."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", IMPORTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "ImportError sumprod.contrib.gp is not part of sumprod",
        "ModuleNotFoundError No module named 'pyro.nothing'",
        "ModuleNotFoundError No module named 'pyro.poutine.nothing'",
    ]


def test_install_as_pyro_refuses_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyro", ModuleType("pyro"))
    with pytest.raises(RuntimeError, match="the real Pyro is already imported"):
        sumprod.compat.install_as_pyro()


# Scripts.

SCRIPT = """
import sys
import torch
import pyro
import pyro.distributions as dist
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from helper import DATA

assert pyro.__version__.startswith("{version}")


def model():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(DATA)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=DATA)


def guide():
    loc = pyro.param("loc", torch.tensor(0.0))
    pyro.sample("z", dist.Normal(loc, 0.5))


if __name__ == "__main__":
    pyro.set_rng_seed(0)
    svi = SVI(model, guide, Adam({{"lr": 0.05}}), loss=Trace_ELBO())
    for _ in range(300):
        svi.step()
    print(sys.argv[1:], abs(pyro.param("loc").item() - DATA.sum() / 5) < 0.3)
    sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("form", ["script", "module"])
def test_trap_60_unmodified_programs_run(form: str, tmp_path: Path) -> None:
    """A program that insists on a version of Pyro, with arguments, an exit code and a module beside it."""
    (tmp_path / "helper.py").write_text("import torch\nDATA = torch.tensor([1.0, 2.0, 1.5, 0.5])\n")
    version = "1.9" if form == "script" else "1.5.1"
    path = tmp_path / "program.py"
    path.write_text(SCRIPT.format(version=version))
    chosen = [str(path)] if form == "script" else ["--pyro-version", "1.5.1", "-m", "program"]
    done = subprocess.run(
        [sys.executable, "-m", "sumprod.run", *chosen, "3", "--option"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.stdout.strip() == "['3', '--option'] tensor(True)", done.stderr
    assert done.returncode == 3


def test_wrong_command_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ((), "a script is missing"),
        ((str(tmp_path / "none.py"),), "there is no file"),
    ):
        with pytest.raises(SystemExit) as caught:
            run.main(arguments)
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
