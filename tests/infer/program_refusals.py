"""Which described programs TraceEnum_ELBO refuses."""

import math
from dataclasses import replace

import pytest

from sumprod.errors import SupportError
from tests.oracles.program import log_weight, touched

SEQUENTIAL = {"enumerate": "sequential"}
SCALES = "Expected all enumerated sample sites to share a common poutine.scale"
GLOBAL = "Expected model enumeration to be no more global than guide enumeration"


def several_scales(program, known=()):
    return len({program.scale_of(site) for site in touched(program, known)}) > 1


def too_global(program, guide):
    """Whether a guide's site in a plate meets sites that the model sums out and that are not all in it."""
    known = {site.name for site in guide.sites}
    hidden = {site.name for site in program.latent} - known
    for group in components(program, known):
        common = {plate for plate in program.plates if all(plate in site.plates for site in group)}
        for site in group:
            for name in {site.name, *site.parents} - hidden:
                if name in known and not set(program[name].plates) <= common:
                    return True
    return False


def perhaps_too_global(program, guide, in_guide):
    """The same, of sequential sites, on which anything may depend that shares their plates."""
    known = [site.name for site in guide.sites]
    for group in components(program, known):
        common = {plate for plate in program.plates if all(plate in site.plates for site in group)}
        reach = {plate for site in group for plate in site.plates}
        for site in guide.sites:
            if in_guide[site.name] is SEQUENTIAL and common < common | set(site.plates) <= reach:
                return True
    return False


def components(program, known):
    """Groups of sites that hang together through sites that the model sums out."""
    hidden = {site.name for site in program.latent} - set(known)
    groups = []
    for site in touched(program, known):
        names = hidden & {site.name, *site.parents}
        joined = [group for group in groups if group[1] & names]
        groups = [group for group in groups if group not in joined]
        groups.append(
            ([*(one for group in joined for one in group[0]), site], names.union(*(g[1] for g in joined)))
        )
    return [group[0] for group in groups]


def refused(program, method):
    """Whether a program without a guide is refused or impossible, after checking that it is."""
    if several_scales(program):
        with pytest.raises(ValueError, match=SCALES):
            method()
        return True
    if not log_weight(program) > -math.inf:
        if touched(program, ()) and evidence_of_rest(program) > -math.inf:
            with pytest.raises(SupportError):
                method()
        return True
    return False


def evidence_of_rest(program):
    """log-density of the sites that depend on nothing latent."""
    rest = [site for site in program.sites if site not in touched(program, ())]
    return log_weight(replace(program, sites=tuple(rest)))
