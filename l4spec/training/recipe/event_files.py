"""The rows of a run's log once more, as event files that TensorBoard shows."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

EVENTS = "tensorboard"
"""The folder of event files in that of a run."""
EXTRA = "pip install 'l4spec[tensorboard]'"
_ABOUT = ("phase", "event", "message")
"""Text fields of a row."""


def is_tensorboard_there() -> bool:
    """True if the package that writes event files is installed."""
    return find_spec("tensorboard") is not None


def scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every number of a row by its path, as `train/loss` or `evaluation/routing/text.layers.0.ffn/max_over_mean`."""
    kept = {name: value for name, value in row.items() if name not in _ABOUT}
    yield from _numbers(str(row.get("event", "train")), kept)


def _numbers(path: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _numbers(f"{path}/{name}", part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, float(value)


class EventFiles:
    """Event files of one run. A run that continues hides the steps after `first_step` that an earlier one wrote."""

    def __init__(self, folder: Path, first_step: int) -> None:
        writer = import_module("torch.utils.tensorboard").SummaryWriter
        self._writer: Any = writer(str(folder / EVENTS), purge_step=first_step + 1)

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """The numbers of a row of a step; a warning as text."""
        for path, value in scalars(row):
            self._writer.add_scalar(path, value, step)
        if "message" in row:
            self._writer.add_text(str(row.get("event", "message")), str(row["message"]), step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()
