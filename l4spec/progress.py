"""Types of progress callbacks, which functions of long work take as `progress`."""

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (done, total), in any unit."""
StageProgress: TypeAlias = Callable[[str], None]
"""Called with a description of each stage as it begins."""
