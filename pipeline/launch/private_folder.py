"""A folder for what libraries keep between runs, which no other user of the machine can have prepared."""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import tempfile
from pathlib import Path

# Libraries' variables, and the folder that each gets. Whoever can write there lets code run as this user: settings of
# git and matplotlib name programs and modules, the other folders hold compiled code.
ALWAYS = {"TORCHINDUCTOR_CACHE_DIR": "torchinductor"}  # torch's own choice is a name that anybody can guess
IN_CONTAINERS = {  # where the home folder is the clone, which should stay as it is
    "XDG_CACHE_HOME": "cache",
    "XDG_CONFIG_HOME": "config",
    "MPLCONFIGDIR": "matplotlib",
    "TRITON_CACHE_DIR": "triton",
    "HF_DATASETS_CACHE": "datasets",
    "HF_MODULES_CACHE": "modules",
}


def set_folders(in_container: bool) -> None:
    """Name this user's own folders in the environment, where it does not name others."""
    missing = {**ALWAYS, **(IN_CONTAINERS if in_container else {})}
    missing = {variable: name for variable, name in missing.items() if variable not in os.environ}
    if missing:
        folder = private_folder()
        os.environ |= {variable: str(folder / name) for variable, name in missing.items()}


def private_folder() -> Path:
    """``unlearn-<uid>`` beside other temporary files, if it is this user's alone; else a new one for this process.

    Where it was there already, made by somebody else or open to others, nothing in it is looked at.
    """
    folder = Path(tempfile.gettempdir(), f"unlearn-{os.geteuid()}")
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError:
        return _new_folder()
    found = folder.lstat()  # of a link, not of what it leads to
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077
    return folder if private else _new_folder()


def _new_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="unlearn-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
