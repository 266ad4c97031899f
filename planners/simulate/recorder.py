"""Recorder of a simulation: gaps between tokens, and the state of every server over time."""

from array import array


class Recorder:
    """Compact columns of integers; a run of steps is one row."""

    def __init__(self) -> None:
        self.gaps = (array("q"), array("q"), array("q"), array("q"))
        self.states = (array("q"), array("q"), array("q"), array("q"), array("q"))

    def gap(self, first: int, growth: int, steps: int, requests: int) -> None:
        """Note that `requests` requests waited `first`, `first + growth`, … nanoseconds for `steps` tokens each."""
        if requests:
            for column, value in zip(self.gaps, (first, growth, steps, requests), strict=True):
                column.append(value)

    def state(self, now: int, server: int, running: int, waiting: int, used: int) -> None:
        """Record a server's state from `now` on."""
        for column, value in zip(self.states, (now, server, running, waiting, used), strict=True):
            column.append(value)
