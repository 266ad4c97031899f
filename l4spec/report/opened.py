"""A number with its formula, source and error, shown when a reader opens it."""

from l4spec.report.page import Block, Details, Facts


def opened(label: str, value: str, formula: str, source: str, error: str, *more: Block) -> Details:
    """A number with its formula, its source and how far it may be off, and tables that the formula speaks of."""
    return Details(label, value, (Facts((("formula", formula), ("source", source), ("error", error))), *more))
