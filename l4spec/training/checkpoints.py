"""Checkpoint folders by step (`step-00000040`): published atomically, unfinished ones are removed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from l4spec.errors import UserError
from l4spec.runtime.checkpoints.write import remove_unfinished
from l4spec.runtime.parallel.checkpoints import load_sharded, save_sharded
from l4spec.runtime.parallel.checkpoints.rank_coordination import on_first
from l4spec.runtime.parallel.checkpoints.sharded import RUN, RunState, read_state
from l4spec.runtime.parallel.model import RankModel
from l4spec.training.step_folders import STEP


def folder_of(parent: Path, step: int) -> Path:
    """Folder of the state after a number of steps."""
    return parent / f"{STEP}{step:08d}"


def latest_step(parent: Path | None) -> Path | None:
    """The folder of the most steps, the same on every rank; None if there is none yet."""
    newest = on_first(lambda: _latest(parent))
    return None if newest is None else Path(newest)


def _latest(parent: Path | None) -> str | None:
    if parent is None or not parent.is_dir():
        return None
    remove_unfinished(parent, f"{STEP}*")
    steps = {int(path.name.removeprefix(STEP)): path for path in parent.glob(f"{STEP}*") if _is_step(path)}
    return str(steps[max(steps)]) if steps else None


def _is_step(path: Path) -> bool:
    return path.name.removeprefix(STEP).isdecimal() and (path / RUN).is_file()


def save_step(
    parent: Path, step: int, model: RankModel, optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]
) -> Path:
    """Write the state after `step` steps; one that is there already stays. All ranks must call it."""
    folder = folder_of(parent, step)
    if not on_first(lambda: _is_step(folder)):
        save_sharded(model, folder, optimizer, state=RunState(step, settings))
    return folder


def load_step(
    folder: Path,
    model: RankModel,
    optimizer: torch.optim.Optimizer | None,
    settings: Mapping[str, Any],
    *,
    verify: bool = True,
) -> int:
    """Fill model and optimizer; the number of steps that are done. Raises UserError for another run's folder.

    `verify` compares the digests that were stored with the tensors.
    """
    state = read_state(folder)
    there = state.settings or {}
    different = [
        f"{name} is {value} here and {there[name]} there"
        for name, value in settings.items()
        if name in there and there[name] != value
    ]
    if different:
        raise UserError(f"{folder.parent} is of another run: {', '.join(different)}"[:2000])
    load_sharded(model, folder, optimizer, verify=verify)
    return state.step
