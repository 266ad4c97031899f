"""A user's own entries: beside the user, or in a folder of their configuration, where calibration writes."""

import os
from pathlib import Path
from typing import Literal

from l4spec.catalog.registry import find_beside

THIS_MACHINE = "this"
"""Name of the hardware that `l4spec calibrate` writes."""
OwnFolder = Literal["hardware", "engines"]


def user_folder(folder: OwnFolder) -> Path:
    """Folder of a user's own entries: `l4spec/FOLDER` in $XDG_CONFIG_HOME, or in ~/.config without it."""
    return Path(_user_folder(folder))


def _user_folder(folder: OwnFolder) -> str:
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    root = configured if os.path.isabs(configured) else os.path.expanduser("~/.config")
    return os.path.join(root, "l4spec", folder)


def own_files(folder: OwnFolder) -> tuple[Path, ...]:
    """The files in the user's folder, by name; none where there is no such folder."""
    try:
        return tuple(sorted(path for path in user_folder(folder).glob("*.yaml") if path.is_file()))
    except OSError:
        return ()


def find_own(folder: OwnFolder, name: str) -> Path | None:
    """The user's own file of a bare name, in the current folder or in the user's, or None."""
    beside = find_beside(name)
    if beside is not None:
        return beside
    path = os.path.join(_user_folder(folder), f"{name}.yaml")
    is_name = os.path.basename(path) == f"{name}.yaml" and "\0" not in path
    return Path(path) if is_name and os.path.isfile(path) else None
