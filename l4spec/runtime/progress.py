"""How long work tells how far it is: a function of (done, all), in whatever it counts."""

from collections.abc import Callable

Report = Callable[[int, int], None]
