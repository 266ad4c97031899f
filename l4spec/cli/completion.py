"""Shell completion: names of specs, hardware, schemes and engines, looked up on demand."""

import os
from collections.abc import Callable, Iterator


def specs(incomplete: str) -> list[str]:
    """Shipped specs by name; files are the shell's own to offer."""
    from l4spec.library import shipped_documents

    return _starting(incomplete, (name.removeprefix("compare/") for name in shipped_documents()))


def gpus(incomplete: str) -> list[str]:
    """Hardware after the number that is typed already: `8xh1` becomes `8xh100`."""
    from planners.catalog import known_names

    number, times, name = incomplete.rpartition("x")
    head = f"{number}{times}" if number.replace("x", "").isdigit() else ""
    return [f"{head}{known}" for known in _starting(name if head else incomplete, known_names("hardware"))]


def quantization(incomplete: str) -> list[str]:
    """Quantization schemes."""
    from planners.catalog import known_names

    return _starting(incomplete, known_names("quantization"))


def engine(incomplete: str) -> list[str]:
    """Engines."""
    from planners.catalog import known_names

    return _starting(incomplete, known_names("engines"))


def _starting(text: str, names: "Iterator[str] | tuple[str, ...]") -> list[str]:
    return [name for name in names if name.startswith(text.lower())]


OF_OPTIONS: dict[str, Callable[[str], list[str]]] = {"gpus": gpus, "quantization": quantization, "engine": engine}
"""By the field of an options model."""


def accept_either_order() -> None:
    """Let `_L4SPEC_COMPLETE` name shell and instruction in click's order (`bash_source`) as in typer's."""
    shell, _, instruction = os.environ.get("_L4SPEC_COMPLETE", "").rpartition("_")
    if shell and instruction in ("source", "complete"):
        os.environ["_L4SPEC_COMPLETE"] = f"{instruction}_{shell}"
