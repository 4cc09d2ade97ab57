"""The examples in README.md and in the package's docstrings do what they show."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import sumprod

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def readme_examples() -> list[doctest.DocTest]:
    """One test per ```python block with prompts, named after the heading above it."""
    parser, heading, found = doctest.DocTestParser(), "README", []
    for match in re.finditer(r"^#+ (?P<heading>[^\n]+)$|^```python\n(?P<code>.*?)^```$", README, re.M | re.S):
        if match["heading"]:
            heading = match["heading"]
        elif ">>>" in match["code"]:
            line = README.count("\n", 0, match.start("code"))
            found.append(parser.get_doctest(match["code"], {}, heading, "README.md", line))
    return found


def docstring_examples() -> list[doctest.DocTest]:
    """One test per docstring of the package that has a prompt."""
    names = [sumprod.__name__]
    for folder in sumprod.__path__:
        # Only Python files: the native operators are loaded, not imported.
        if any(Path(folder).glob("*.py")):
            names += [
                m.name for m in pkgutil.walk_packages([folder], "sumprod.") if not m.name.endswith("._ops")
            ]
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = [importlib.import_module(name) for name in sorted(set(names))]
    return [test for module in modules for test in finder.find(module) if test.examples]


def check(test: doctest.DocTest) -> None:
    report: list[str] = []
    sumprod.clear_param_store()
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


@pytest.mark.parametrize("test", readme_examples(), ids=lambda test: test.name)
def test_readme(test: doctest.DocTest) -> None:
    check(test)


@pytest.mark.parametrize("test", docstring_examples(), ids=lambda test: test.name)
def test_docstring(test: doctest.DocTest) -> None:
    check(test)


def test_readme_has_examples() -> None:
    """Each use that the README promises is among the examples that ran."""
    text = "".join(example.source for test in readme_examples() for example in test.examples)
    for name in ("logsumexp", "hmm_log_normalizer", "hmm_viterbi", "lengths=", "normalize_weights"):
        assert name in text
    for test in readme_examples():
        assert len(test.examples) <= 14, f"{test.name} is longer than a short example"


def test_readme_links() -> None:
    """Files that the README points to exist."""
    root = Path(__file__).resolve().parent.parent
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (root / target).exists(), target
