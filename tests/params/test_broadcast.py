"""Parameters of several processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
import torch
import torch.distributed as distributed
from torch.distributions import constraints
from sumprod.params import ParamStoreDict

rank, rendezvous = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
store = ParamStoreDict()
store.setdefault("scale", torch.tensor([2.0 + rank]), constraints.positive)
store["loc"] = torch.full((2,), float(rank))
leaf = store["loc"]
store.broadcast()
assert store["loc"] is leaf
print(store["loc"].tolist(), round(store["scale"].item(), 4))
if rank == 1:
    store["more"] = torch.zeros(1)
try:
    store.broadcast()
except RuntimeError as error:
    print("differ" in str(error) and "'more'" in str(error))
distributed.barrier()
distributed.destroy_process_group()
"""


def test_broadcast(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path / "rendezvous")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        answers = [process.communicate(timeout=40) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for out, err in answers:
        assert out.split("\n") == ["[0.0, 0.0] 2.0", "True", ""], err
