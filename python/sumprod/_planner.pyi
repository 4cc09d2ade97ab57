from collections.abc import Sequence

class NotTreeStructured(NotImplementedError): ...

_Step = tuple[list[int], list[int], list[int], list[int]]

def build_info() -> dict[str, str]: ...
def isa() -> str: ...
def plan(
    sizes: Sequence[int],
    is_plate: Sequence[bool],
    names: Sequence[str],
    factors: Sequence[Sequence[int]],
    kept: Sequence[int],
    keep_common_plates: bool,
) -> tuple[list[_Step], list[int], float, int]: ...
