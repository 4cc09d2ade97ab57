"""Makes a virtual environment that sees the packages of .venv, but not its editable install.

    .venv/bin/python scripts/layered_venv.py FOLDER

A wheel or a sanitized build is installed there, without a second copy of torch. The packages come
in through a .pth file; the folder that it names is searched, but .pth files inside that folder,
such as the one of the editable install, are not read.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path


def make(folder: str) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", folder], check=True)
    base = sysconfig.get_path("purelib")
    own = sysconfig.get_path("purelib", vars={"base": folder, "platbase": folder})
    Path(own, "packages_of_the_main_environment.pth").write_text(base + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    make(sys.argv[1])
