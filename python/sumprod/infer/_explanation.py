"""What `explain` found out about a program, and how it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sumprod._tables import Row, collapsed, wrapped
from sumprod.infer._program_plan import ProgramPlan

__all__ = ["EnumeratedVariable", "Explanation", "Factor", "Plate", "Site"]


@dataclass(frozen=True)
class Site:
    """A sample site of the model or of the guide."""

    name: str
    program: str
    """"model" or "guide\""""
    distribution: str
    """class, without expansions, masks and event dims around it"""
    batch_shape: tuple[int, ...]
    batch_dims: tuple[str, ...]
    """the batch dims of size above 1, leftmost first, as `plate=size` or `variable=size`"""
    event_shape: tuple[int, ...]
    role: str
    """where its value comes from, or what becomes of it"""
    plates: tuple[str, ...]
    scale: str
    """empty: 1"""
    mask: str
    """empty: none"""


@dataclass(frozen=True)
class Plate:
    """A plate around some site."""

    name: str
    dim: int | None
    """None: sequential"""
    size: int
    """of the subsample; -1: not known"""
    full_size: int | None


@dataclass(frozen=True)
class EnumeratedVariable:
    """A site whose values lie along a tensor dim."""

    site: str
    program: str
    size: int
    dim: int
    """of tensors while the program runs; variables far apart in a chain share one"""
    id: int
    """tells variables apart; plans name dims by it"""


@dataclass(frozen=True)
class Factor:
    """The log-density of a model site that depends on enumerated variables of the model."""

    site: str
    variables: tuple[str, ...]
    """also those of the guide"""
    plates: tuple[str, ...]
    """of the site, less those that no other factor is in and that are multiplied along beforehand"""
    elements: int


@dataclass(frozen=True, repr=False)
class Explanation:
    """What `explain` returns; `print` shows it, with repeated rows written once.

    Attributes:
        sites: sample sites of the model, then of the guide, each in order.
        plates: all plates.
        variables: what is enumerated.
        factors: which site touches which variable.
        plan: how the model's variables are summed out, and the cost.
        notes: what is costly, what is estimated rather than exact, what would be refused, and warnings.
    """

    sites: tuple[Site, ...]
    plates: tuple[Plate, ...]
    variables: tuple[EnumeratedVariable, ...]
    factors: tuple[Factor, ...]
    plan: ProgramPlan
    notes: tuple[str, ...]

    def table(self, full: bool = False) -> str:
        """As text; `full`: all rows, also those that repeat."""
        blocks = [
            self._sites("model", full),
            self._sites("guide", full),
            _block(
                ("plate", "dim", "size", "of"),
                [
                    Row.of(p.name, (p.name, _dim(p.dim), _size(p.size), _full(p)), named=(0,))
                    for p in self.plates
                ],
                full,
            ),
            _block(
                ("variable", "enumerated in", "size", "dim", "id"), map(_variable_row, self.variables), full
            ),
            _block(("factor", "variables", "plates", "elements"), map(_factor_row, self.factors), full),
            [self.plan.table(full)],
            ["notes", *(wrapped(f"- {note}", "  ") for note in self.notes)] if self.notes else [],
        ]
        return "\n\n".join("\n".join(block) for block in blocks if block)

    def _sites(self, program: str, full: bool) -> list[str]:
        sites = [site for site in self.sites if site.program == program]
        # Columns that say nothing are left out.
        scale, mask = any(site.scale for site in sites), any(site.mask for site in sites)
        head = [f"{program} site", "distribution", "event", "batch", "plates", "role"]
        head += ["scale"] * scale + ["mask"] * mask
        rows = []
        for site in sites:
            cells = [
                site.name,
                site.distribution,
                f"({', '.join(map(str, site.event_shape))})",
                " ".join(site.batch_dims) or "-",
                " ".join(site.plates) or "-",
                site.role,
            ]
            cells += [site.scale or "-"] * scale + [site.mask or "-"] * mask
            rows.append(Row.of(site.name, cells, named=(0, 3, 4)))
        return _block(head, rows, full)

    def __repr__(self) -> str:
        return self.table()


def _block(head: Sequence[str], rows: Iterable[Row], full: bool) -> list[str]:
    rows = list(rows)
    return collapsed(head, rows, full) if rows else []


def _variable_row(variable: EnumeratedVariable) -> Row:
    row = Row.of(variable.site, (variable.site, variable.program, str(variable.size)), named=(0,))
    # Dims and ids differ along a chain, which does not make rows unlike.
    return row._replace(cells=(*row.cells, str(variable.dim), str(variable.id)))


def _factor_row(factor: Factor) -> Row:
    variables, plates = " ".join(factor.variables), " ".join(factor.plates) or "-"
    return Row.of(factor.site, (factor.site, variables, plates, f"{factor.elements:,}"), named=(0, 1, 2))


def _dim(dim: int | None) -> str:
    return "loop" if dim is None else str(dim)


def _size(size: int) -> str:
    return "?" if size == -1 else f"{size:,}"


def _full(plate: Plate) -> str:
    return "-" if plate.full_size in (None, plate.size) else f"{plate.full_size:,}"
