"""What a killed process leaves behind, removed by the next one: temporary folders and half files.

A temporary folder says in OWNER which process made it. It is removed when that process, of this
user and this machine, is gone; nothing else is ever touched.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

from scaling.storage import files

PREFIX, OWNER = "scaling-", "owner.json"


def make() -> Path:
    """A new folder in the system's temporary folder, which only this user can enter.

    Those of dead processes are removed.
    """
    _sweep_temporary()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    sign(folder)
    return folder


def tidy(folder: Path) -> None:
    """Remove what killed processes left in the temporary folder, and in one whose lock is held."""
    _sweep_temporary()
    drop_half_files(folder)


def _sweep_temporary() -> None:
    sweep(Path(tempfile.gettempdir()), f"{PREFIX}*")


def sign(folder: Path) -> None:
    """Say that this process made a folder, which means nothing to others."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / OWNER, json.dumps(files.process()))


def sweep(parent: Path, pattern: str = "*") -> None:
    """Remove the folders there that dead processes of this user and this machine made."""
    for folder in parent.glob(pattern):
        if _deserted(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _deserted(folder: Path) -> bool:
    try:
        about = os.lstat(folder)
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
            return False
        return files.gone(files.read_json(folder / OWNER, dict))
    except (OSError, ValueError):
        return False


def drop_half_files(folder: Path) -> None:
    """Remove what writes of this host (`files.unfinished`) left in a folder whose lock is held."""
    if not Path("/proc/self").exists():
        return
    host, half_name = re.escape(os.uname().nodename), re.escape(files.HALF)
    for half in folder.glob(f".*{files.HALF}*"):
        writer = re.fullmatch(rf"\..+\.{host}-(\d+){half_name}(\.\w+)?", half.name)
        if writer and not Path(f"/proc/{writer[1]}").exists():
            half.unlink(missing_ok=True)
