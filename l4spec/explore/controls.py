"""Controls of the page: the fields of a spec that can be changed, read from the document itself."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from l4spec.spec.model import SLOTS_OF_BLOCKS

MOST_LAYER_CONTROLS = 6
"""Most entries of a pattern with a control for each."""
_OF_PARTS = (
    (("num_experts",), "experts"),
    (("num_experts_per_token",), "experts per token (top-k)"),
    (("mask", "size"), "chunk or window, tokens"),
)
_CHUNKS = tuple(2**power for power in range(9, 21))
_TOP_K = (*range(1, 9), 10, 12, 16)
_EXPERTS = tuple(2**power for power in range(11))
_WIDTH_STEP = 256


@dataclass(frozen=True, slots=True)
class Control:
    """A field of the spec: its path as `--set` takes it, its value, and the stops of its slider in rising order.

    `also` are paths that have to follow: the projector ends at the width of the text.
    """

    path: str
    label: str
    value: int
    stops: tuple[int, ...]
    also: tuple[str, ...] = ()


def controls_of(data: Mapping[str, Any]) -> tuple[Control, ...]:
    """The controls of a model from its document, inherited fields included; a field that it leaves out has none."""
    text = data.get("text")
    if not isinstance(text, dict):
        return ()
    return (*_of_parts(text), *_of_layers(text), *_of_width(text, data.get("vision")))


def _of_parts(text: Mapping[str, Any]) -> Iterator[Control]:
    parts = text.get("parts")
    named = [(name, part) for name, part in parts.items() if isinstance(part, dict)] if isinstance(parts, dict) else []
    for steps, label in _OF_PARTS:
        values = {name: value for name, part in named if (value := _whole(part, steps)) is not None}
        for name, value in values.items():
            shown = label if len(values) == 1 else f"{label}: {name}"
            yield Control(f"text.parts.{name}.{'.'.join(steps)}", shown, value, _stops(steps, value))


def _of_layers(text: Mapping[str, Any]) -> Iterator[Control]:
    layers = text.get("layers")
    if not isinstance(layers, list) or len(layers) > MOST_LAYER_CONTROLS:
        return
    for index, entry in enumerate(layers):
        if isinstance(entry, dict):
            value = entry.get("repeat", 1)
            if _is_whole(value):
                stops = (
                    tuple(range(1, 4 * value + 1)) if value <= 64 else tuple(range(value // 8, 4 * value, value // 8))
                )
                yield Control(f"text.layers[{index}].repeat", f"layers: {_entry(entry)}", value, _with(stops, value))


def _entry(entry: Mapping[str, Any]) -> str:
    """Description of the repeated blocks."""
    blocks = entry.get("blocks")
    if isinstance(blocks, list):
        repeats = [block.get("repeat", 1) if isinstance(block, dict) else 1 for block in blocks]
        return f"times a pattern of {sum(n for n in repeats if _is_whole(n))}"
    names = [str(entry[slot]) for slot in SLOTS_OF_BLOCKS if isinstance(entry.get(slot), str)]
    return f"times {' + '.join(names) or 'a block'}"


def _of_width(text: Mapping[str, Any], vision: object) -> Iterator[Control]:
    value = text.get("hidden_size")
    if not _is_whole(value):
        return
    follows = _whole(vision, ("projector", "output_size")) if isinstance(vision, dict) else None
    least, most = max(_WIDTH_STEP, value // 4), 2 * value
    stops = tuple(range(least - least % _WIDTH_STEP, most + 1, _WIDTH_STEP))
    also = () if follows is None else ("vision.projector.output_size",)
    yield Control("text.hidden_size", "hidden width", value, _with(stops, value), also)


def _stops(steps: tuple[str, ...], value: int) -> tuple[int, ...]:
    known = {"num_experts": _EXPERTS, "num_experts_per_token": _TOP_K}
    return _with(known.get(steps[-1], _CHUNKS), value)


def _with(stops: tuple[int, ...], value: int) -> tuple[int, ...]:
    return tuple(sorted({*stops, value}))


def _whole(data: object, steps: tuple[str, ...]) -> int | None:
    for step in steps:
        data = data.get(step) if isinstance(data, dict) else None
    return data if _is_whole(data) else None


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
