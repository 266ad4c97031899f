"""Type of progress callbacks: a function of (done, total) in any unit."""

from collections.abc import Callable

Report = Callable[[int, int], None]
