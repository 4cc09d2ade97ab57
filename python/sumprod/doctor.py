"""`python -m sumprod.doctor`: what is installed, what is used, and whether it computes correctly.

Prints versions, libraries, instruction set, threads, CUDA and optional packages, then a self-test
of every operator against sums over all state sequences in plain Python. The exit code is 1 when
something is wrong: no native library, versions that do not fit together, a wrong result.

It also works when `import sumprod` fails: the package then calls `main` with the error.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import itertools
import math
import platform
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import sumprod

__all__ = ["Row", "main", "requested", "self_test"]

OLDEST_TORCH = (2, 10)
_GUIDE = "install sumprod again: pip install --force-reinstall --no-deps sumprod"


class Row(NamedTuple):
    """One line of the report; `ok` is None for plain information."""

    name: str
    ok: bool | None
    text: str


def requested() -> bool:
    """Whether this process was started as `python -m sumprod.doctor`.

    Python imports the package before it runs this module, so a package that cannot be imported
    has to ask.
    """
    given = sys.orig_argv
    return any(given[k : k + 2] == ["-m", "sumprod.doctor"] for k in range(len(given)))


# ---- what is installed ---------------------------------------------------------------------------


def _torch() -> ModuleType | None:
    try:
        return importlib.import_module("torch")
    except (ImportError, OSError):
        return None


def _package_version() -> str | None:
    try:
        return importlib.metadata.version("sumprod")
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: '2.13.0+cpu' becomes (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def _versions() -> Iterator[Row]:
    own = _package_version()
    yield Row("sumprod", None, own or "not installed with pip: runs from a folder")
    yield Row("python", None, f"{platform.python_version()} ({sys.executable})")
    torch = _torch()
    if torch is None:
        yield Row("torch", False, "cannot be imported; install it: pip install 'torch>=2.10'")
    else:
        fits = _release(torch.__version__) >= OLDEST_TORCH
        text = torch.__version__ if fits else f"{torch.__version__} is too old; 2.10 or newer is needed"
        yield Row("torch", fits, text)
    try:
        yield Row("numpy", None, importlib.metadata.version("numpy"))
    except importlib.metadata.PackageNotFoundError:
        yield Row("numpy", False, "not installed; pip install numpy")


def _native() -> ModuleType | None:
    """sumprod._native if it could be imported. Not imported again: that would only fail again."""
    return sys.modules.get("sumprod._native")


def _libraries(info: dict[str, str]) -> Iterator[Row]:
    native = _native()
    if native is not None:
        yield Row("_ops", True, f"{native.library_path} ({info.get('compiler', 'unknown compiler')})")
    else:
        found = [path for path in (Path(p) / "_ops.so" for p in sumprod.__path__) if path.exists()]
        yield Row("_ops", False, f"{found[0]} does not load" if found else "_ops.so was not found")
    spec = importlib.util.find_spec("sumprod._planner")
    if spec is None or spec.origin is None:
        python = ".".join(platform.python_version_tuple()[:2])
        yield Row("_planner", False, f"there is none for Python {python}; {_GUIDE}")
        return
    try:
        planner = importlib.import_module("sumprod._planner")
        versions = {"_planner": str(planner.build_info()["version"])}
    except Exception as error:
        yield Row("_planner", False, f"{spec.origin}: {error}")
        return
    yield Row("_planner", True, spec.origin)
    if native is not None:
        versions["_ops"] = info["version"]
    package = _package_version()
    if package is not None:
        versions["sumprod"] = package
    same = len(set(versions.values())) == 1
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield Row("one version", same, text if same else f"{text}: these do not belong together; {_GUIDE}")


def _processor(info: dict[str, str]) -> Iterator[Row]:
    if info:
        available = info["isa_available"].replace(",", ", ")
        yield Row("instruction set", None, f"{info['isa']} in use; this processor has {available}")
    torch = _torch()
    if torch is None:
        return
    yield Row("threads", None, str(torch.get_num_threads()))
    reasons = []
    built = info.get("cuda", "no")
    if built == "emulated":
        yield Row("CUDA", False, "this build emulates a GPU, slowly: it is for tests; " + _GUIDE)
        return
    if built == "no":
        reasons.append("sumprod was built without CUDA kernels (nvcc was not found)")
    if torch.version.cuda is None:
        reasons.append("torch was built without CUDA")
    elif not torch.cuda.is_available():
        reasons.append("torch finds no usable CUDA device")
    if reasons:
        kernels = "" if built == "no" else f" (kernels are built: {built})"
        yield Row("CUDA", None, "no: " + " and ".join(reasons) + kernels)
    else:
        devices = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
        yield Row("CUDA", None, f"yes ({built}): " + ", ".join(devices))


def _extras() -> Iterator[Row]:
    groups: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("sumprod") or []:
        found = re.match(r"\s*([A-Za-z0-9._-]+)[^;]*;.*extra\s*==\s*['\"]([^'\"]+)['\"]", line)
        if found is None or found[1] == "sumprod":
            continue
        try:
            text = f"{found[1]} {importlib.metadata.version(found[1])}"
        except importlib.metadata.PackageNotFoundError:
            text = f"{found[1]} (missing)"
        groups.setdefault(found[2], []).append(text)
    for group, packages in sorted(groups.items()):
        yield Row(f"extra {group}", None, ", ".join(packages))


# ---- the self-test -------------------------------------------------------------------------------
# One tiny chain with a forbidden start and a forbidden move. Every answer below is a sum over all
# state sequences in Python's own float64: no recursion, and nothing shared with the kernels.

_ZERO = -math.inf
_INITIAL = [-0.3, -1.4, _ZERO]
_TRANSITION = [[-0.5, -1.0, -2.0], [-1.5, -0.2, _ZERO], [-0.7, -0.9, -1.1]]
_EMISSION = [[0.4, -0.6, 0.1], [-1.2, 0.3, 0.8], [0.5, -2.0, 0.2], [-0.1, 0.7, -1.3]]
_STATES, _STEPS = range(3), range(4)


def _log_sum(values: Sequence[float]) -> float:
    total = math.fsum(math.exp(value) for value in values)
    return math.log(total) if total > 0 else _ZERO


def _paths(steps: int) -> dict[tuple[int, ...], float]:
    """The log weight of every sequence of `steps` states."""
    return {
        path: _INITIAL[path[0]]
        + sum(_EMISSION[t][state] for t, state in enumerate(path))
        + sum(_TRANSITION[i][j] for i, j in itertools.pairwise(path))
        for path in itertools.product(_STATES, repeat=steps)
    }


def _posterior(steps: int, states: dict[int, int]) -> float:
    """Log probability of `states` (time to state), given the first `steps` emissions."""
    weights = _paths(steps)
    chosen = [w for path, w in weights.items() if all(path[t] == s for t, s in states.items())]
    return _log_sum(chosen) - _log_sum(list(weights.values()))


def _close(actual: Any, expected: Any, dtype: Any) -> bool:
    torch = sys.modules["torch"]
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    wanted = torch.tensor(expected, dtype=dtype)
    if actual.dtype != dtype or actual.shape != wanted.shape:
        return False
    return bool(torch.allclose(actual.detach(), wanted, rtol=tolerance, atol=tolerance))


def _chain(dtype: Any) -> tuple[Any, Any, Any]:
    """The potentials above as tensors, in a batch of two: with all four steps and with three."""
    torch = sys.modules["torch"]
    initial, transition = torch.tensor(_INITIAL, dtype=dtype), torch.tensor(_TRANSITION, dtype=dtype)
    return initial, transition, torch.tensor([_EMISSION, _EMISSION], dtype=dtype)


def _test_reductions(dtype: Any) -> Iterator[tuple[str, bool]]:
    torch, ops = sys.modules["torch"], sumprod.ops
    x = torch.tensor(_TRANSITION, dtype=dtype)
    yield "logsumexp", _close(ops.logsumexp(x, 1), [_log_sum(row) for row in _TRANSITION], dtype)
    terms = [[[a[j] + _EMISSION[j][k] for j in _STATES] for k in _STATES] for a in _TRANSITION]
    y = torch.tensor(_EMISSION[:3], dtype=dtype)
    yield "logmatmulexp", _close(ops.logmatmulexp(x, y), [[_log_sum(c) for c in r] for r in terms], dtype)
    best = ops.maxmatmul(x, y)
    where = [[c.index(max(c)) for c in r] for r in terms]
    right = _close(best.values, [[max(c) for c in r] for r in terms], dtype)
    yield "maxmatmul", right and best.indices.tolist() == where
    weights = _TRANSITION[1]
    total = _log_sum(weights)
    normalised = [w - total for w in weights]
    ess = 1 / math.exp(_log_sum([2 * w for w in normalised]))
    expected = (normalised, total - math.log(len(weights)), ess)
    result = ops.normalize_weights(torch.tensor(weights, dtype=dtype))
    yield "normalize_weights", all(_close(*pair, dtype) for pair in zip(result, expected, strict=True))


def _test_chain(dtype: Any) -> Iterator[tuple[str, bool]]:
    torch, ops = sys.modules["torch"], sumprod.ops
    chain, lengths = _chain(dtype), torch.tensor([4, 3])
    totals = [_log_sum(list(_paths(steps).values())) for steps in (4, 3)]
    with torch.enable_grad():
        initial, transition, emission = chain
        leaf = emission.clone().requires_grad_()
        actual = ops.hmm_log_normalizer(initial, transition, leaf, lengths=lengths)
        (gradient,) = torch.autograd.grad(actual.sum(), leaf)
    yield "hmm_log_normalizer", _close(actual, totals, dtype)

    nothing = [_ZERO] * 3
    smoothed = [
        [[_posterior(n, {t: s}) for s in _STATES] if t < n else nothing for t in _STEPS] for n in (4, 3)
    ]
    probabilities = [[[math.exp(p) for p in row] for row in rows] for rows in smoothed]
    yield "its gradient", _close(gradient, probabilities, dtype)
    yield "hmm_marginals", _close(ops.hmm_marginals(*chain, lengths=lengths), smoothed, dtype)

    filtered = [[_posterior(t + 1, {t: s}) for s in _STATES] for t in _STEPS]
    actual = ops.hmm_filter(*chain, lengths=lengths)
    yield "hmm_filter", _close(actual, [filtered, [*filtered[:3], nothing]], dtype)

    pairs = [[[_posterior(4, {t: i, t + 1: j}) for j in _STATES] for i in _STATES] for t in range(3)]
    yield "hmm_pairwise", _close(ops.hmm_pairwise(*chain)[0], pairs, dtype)


def _test_decoding(dtype: Any) -> Iterator[tuple[str, bool]]:
    torch, ops = sys.modules["torch"], sumprod.ops
    initial, transition, emission = _chain(dtype)
    lengths = torch.tensor([4, 3])
    best = [max(_paths(n).items(), key=lambda item: item[1]) for n in (4, 3)]
    path, score = ops.hmm_viterbi(initial, transition, emission, lengths=lengths)
    right = path.tolist() == [list(best[0][0]), [*best[1][0], -1]]
    yield "hmm_viterbi", right and _close(score, [weight for _, weight in best], dtype)

    # Only one sequence left possible: every sample is that one, whatever the random numbers.
    only = [0, 2, 0, 1]
    forced = torch.full((1, 4, 3), _ZERO, dtype=dtype)
    forced[0, range(4), only] = 0.0
    draws = ops.hmm_sample(initial, transition, forced, num_samples=5, generator=torch.Generator())
    yield "hmm_sample", draws.tolist() == [[only]] * 5

    nowhere = torch.full((1, 4, 3), _ZERO, dtype=dtype)
    right = ops.hmm_log_normalizer(initial, transition, nowhere).tolist() == [_ZERO]
    try:
        ops.hmm_viterbi(initial, transition, nowhere)
        right = False
    except sumprod.SupportError as error:
        right = right and error.time == 0
    yield "impossible input", right


def _test_contraction(dtype: Any) -> Iterator[tuple[str, bool]]:
    contraction = importlib.import_module("sumprod.ops.contraction")
    initial, transition, emission = _chain(dtype)
    factors = [initial, transition, transition, transition, *emission[0]]
    dims = [[0], [0, 1], [1, 2], [2, 3], [0], [1], [2], [3]]
    weights = _paths(4)
    [(_, total)] = contraction.contract(factors, dims)
    yield "contract", _close(total, _log_sum(list(weights.values())), dtype)
    best = contraction.sample(factors, dims, maximise=True)
    path = tuple(int(best[t][1]) for t in _STEPS)
    yield "draws of contract", path == max(weights, key=lambda path: weights[path])


def self_test() -> list[Row]:
    """Run every operator on a tiny example in float32 and float64; one row each."""
    torch = sys.modules["torch"]
    outcome: dict[str, list[str]] = {}
    for dtype in (torch.float32, torch.float64):
        for test in (_test_reductions, _test_chain, _test_decoding, _test_contraction):
            name = test.__name__.removeprefix("_test_")
            try:
                for name, right in test(dtype):
                    outcome.setdefault(name, []).extend([] if right else [f"wrong in {dtype}"])
            except Exception as error:
                outcome.setdefault(f"after {name}", []).append(f"{type(error).__name__}: {error}")
    return [Row(name, not wrong, "; ".join(wrong)) for name, wrong in outcome.items()]


# ---- the report ----------------------------------------------------------------------------------


def _print(title: str, rows: Sequence[Row]) -> bool:
    print(f"\n{title}")
    for name, ok, text in rows:
        state = {True: "OK", False: "FAIL", None: ""}[ok]
        print(f"  {name:<20}{state:<6}{text}".rstrip())
    return all(ok is not False for _, ok, _ in rows)


def main(failure: BaseException | None = None) -> int:
    """Print the report and return the exit code; `failure` is why the package cannot be imported."""
    native = _native() if failure is None else None
    info: dict[str, str] = native.build_info() if native is not None else {}
    good = _print("Versions", list(_versions()))
    good &= _print("Native code", [*_libraries(info), *_processor(info)])
    _print("Optional packages", list(_extras()) if _package_version() else [])
    if failure is not None:
        print(f"\nimport sumprod fails:\n{failure}\n\nSomething is wrong: see above.")
        return 1
    start = time.perf_counter()
    rows = self_test()
    good &= _print(f"Self-test ({time.perf_counter() - start:.1f} s)", rows)
    print("\nEverything is fine." if good else "\nSomething is wrong: see the lines with FAIL.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
