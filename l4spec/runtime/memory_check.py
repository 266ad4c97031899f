"""Is there room? Asked before anything is allocated, so that a model too large is refused instead of being killed."""

import os
import resource
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from l4spec.errors import Problem, UserError
from l4spec.graph.build import build_graph
from l4spec.graph.layer_graph import LayerGraph
from l4spec.quantization.scheme import Quantization
from l4spec.quantization.tensors import scheme_of, stored_tensors
from l4spec.spec.model import ModelSpec
from l4spec.spec.resolve import resolve
from l4spec.spec.scale import scale_spec
from l4spec.units import gib

ITEM_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}
_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
_KEPT_FREE = Fraction(5, 100)
"""Share of the free memory that is left to the system and to allocators' rounding."""
_UNLIMITED = 1 << 60
"""cgroup v1 writes a number near 2**63 where there is no limit."""
_SCALES = tuple(Fraction(1, 2**k) for k in range(1, 11))


def weight_bytes(graph: LayerGraph, dtype: str, table: Quantization | None = None) -> int:
    """Bytes of all tensors of a model in one number format, buffers included, tied ones once.

    With a quantization scheme: bytes of the packed weights, and of the largest layer in the format it is packed from.
    """
    item = ITEM_BYTES[dtype]
    if table is not None:
        stored = stored_tensors(graph, scheme_of(table))
        layers = (sum(p.num_bytes(item) for p in group.declaration.parameters) for group in graph.groups)
        return sum(each.count * each.size.total_bytes for each in stored) + max(layers, default=0)
    return sum(parameter.num_bytes(item) for _, parameter in graph.parameters())


def free_bytes(device: str) -> int | None:
    """Bytes that can be allocated on `cpu` or a `cuda` device now; None if the system does not report them."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    limits = [bytes_left for bytes_left in (_available(), *_cgroup_left(), *_rlimits_left()) if bytes_left is not None]
    return min(limits, default=None)


def require_memory(
    spec: ModelSpec,
    graph: LayerGraph,
    device: str,
    dtype: str,
    extra_bytes: int = 0,
    table: Quantization | None = None,
) -> None:
    """Refuse a model whose weights and `extra_bytes` (caches, activations) exceed the free memory of `device`.

    With a quantization `table` it is packed layer by layer. Raises UserError with both numbers and with the most
    layers, or the largest scale, that would fit unquantized.
    """
    if device == "meta":
        return
    needed, free = weight_bytes(graph, dtype, table) + extra_bytes, free_bytes(device)
    if free is None or needed <= free * (1 - _KEPT_FREE):
        return
    stored = table.name if table else dtype
    message = f"{graph.name} in {stored} needs {gib(needed)} on {device}, where {gib(free)} are free"
    raise UserError([Problem(message, hint=_what_fits(spec, dtype, int(free * (1 - _KEPT_FREE)) - extra_bytes))])


def _what_fits(spec: ModelSpec, dtype: str, room: int) -> str:
    options = [option for option in (_most_layers(spec, dtype, room), _largest_scale(spec, dtype, room)) if option]
    return f"{' or '.join(options)} fits" if options else "try --scale tiny"


def _most_layers(spec: ModelSpec, dtype: str, room: int) -> str:
    low, high = 0, spec.text.num_layers - 1
    while low < high:
        middle = (low + high + 1) // 2
        fits = _bytes_of(scale_spec(spec, num_layers=middle), dtype) <= room
        low, high = (middle, high) if fits else (low, middle - 1)
    return f"--layers {low}" if low else ""


def _largest_scale(spec: ModelSpec, dtype: str, room: int) -> str:
    fitting = (scale for scale in _SCALES if _bytes_of(scale_spec(spec, scale), dtype) <= room)
    scale = next(fitting, None)
    return f"--scale {scale}" if scale else ""


def _bytes_of(spec: ModelSpec, dtype: str) -> int:
    return weight_bytes(build_graph(resolve(spec)), dtype)


def _available() -> int | None:
    """Memory that the kernel reports as available, or else the free pages, in bytes."""
    for line in _read(_PROC / "meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def _cgroup_left() -> Iterator[int]:
    """Bytes that each control group of this process still allows; page cache that can be dropped counts as free."""
    for line in _read(_PROC / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        root = _CGROUP if not controllers else _CGROUP / "memory"
        names = (
            ("memory.max", "memory.current") if not controllers else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        if controllers and "memory" not in controllers.split(","):
            continue
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            limit, used = (_number(group / name) for name in names)
            if limit is not None and used is not None and limit < _UNLIMITED:
                yield max(0, limit - used + _droppable(group))
            if group == root:
                break


def _rlimits_left() -> Iterator[int]:
    """Bytes that the shell's limits (`ulimit -v`, `ulimit -d`) allow beyond the memory already mapped."""
    mapped = dict(line.partition(":")[::2] for line in _read(_PROC / "self" / "status").splitlines())
    for which, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        limit, used = resource.getrlimit(which)[0], mapped.get(name, "").split()
        if limit != resource.RLIM_INFINITY and used and used[0].isdigit():
            yield max(0, limit - int(used[0]) * 1024)


def _droppable(group: Path) -> int:
    for line in _read(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
