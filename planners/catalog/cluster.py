"""A cluster as people write it: `8xH100`, `2x8xH100`, `8 × h100`, `h100*8`, `1x./my-gpu.yaml`."""

import re
from dataclasses import dataclass, field, replace

from l4spec.catalog.registry import looks_like_path
from l4spec.errors import UserError
from l4spec.units import ceil_div
from planners.catalog import Hardware, hardware
from planners.catalog.loader import find_shipped, unknown
from planners.catalog.user_catalog import find_own

MAX_GPUS = 1_000_000
_EXAMPLES = "write it like 8xH100, or 2x8xH100 for two hosts of eight"
_COUNT = r"([0-9]+)\s*[x×*]\s*"
_LEADING = re.compile(rf"(?:{_COUNT})?{_COUNT}(.*)\Z", re.IGNORECASE | re.DOTALL)
_TRAILING = re.compile(r"(.*\S)\s*[x×*]\s*([0-9]+)\Z", re.IGNORECASE | re.DOTALL)
_BARE_COUNT = re.compile(r"[-+]?[0-9][0-9.,]*\s*[x×*]?\s*(?:[0-9]+\s*[x×*]?)?\Z", re.IGNORECASE)
_BAD_COUNT = re.compile(r"(?:[-+]\s*[0-9]|[0-9]*[.,][0-9]+\s*[x×*]|0x[0-9])", re.IGNORECASE)
_MIXED = re.compile(r"[+,;&]|\s(?:and|plus)\s", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Cluster:
    """`num_gpus` devices of one kind in `num_hosts` hosts of `gpus_per_host`; the last host may be partly used."""

    hardware: Hardware
    num_hosts: int
    gpus_per_host: int
    num_gpus: int
    written: str = field(default="", compare=False)
    """The hardware as the user named it: a name, an alias or a path."""

    def __str__(self) -> str:
        return f"{self.num_gpus}x{self.hardware.name}"


def parse_cluster(text: str) -> Cluster:
    """The cluster that `text` names: `[HOSTS x] [GPUS x] NAME`, or `NAME*GPUS`; a name alone is one GPU.

    NAME is a catalogue name or alias, a path to a YAML file, or `this` for a file `this.yaml` here or on the user's
    shelf. More GPUs than a host holds become several hosts. Raises UserError for anything else.
    """
    written = text.strip()
    if not written:
        raise UserError("no cluster is named", hint=_EXAMPLES)
    counts, name = _split(written)
    _check_name(written, name)
    device = hardware(name)
    return replace(_in_hosts(written, device, counts), written=name)


def resized(cluster: Cluster, num_gpus: int) -> Cluster:
    """As `parse_cluster` of that many GPUs of the same hardware, without reading the catalogue."""
    counted = _in_hosts(f"{num_gpus}x{cluster.written}", cluster.hardware, (str(num_gpus),))
    return replace(counted, written=cluster.written)


def _split(written: str) -> tuple[tuple[str, ...], str]:
    """Counts in the order of hosts and GPUs, and the hardware's name."""
    match = _LEADING.match(written)
    counted = match is not None and find_shipped("hardware", match[3].strip()) is not None  # no file is looked for
    if not counted and not looks_like_path(written) and _is_known(written):
        return (), written
    if match is not None:
        counts = tuple(count for count in (match[1], match[2]) if count is not None)
        return counts, match[3].strip()
    if (match := _TRAILING.match(written)) and _is_known(match[1].strip()):
        return (match[2],), match[1].strip()
    return (), written


def _is_known(name: str) -> bool:
    return find_shipped("hardware", name) is not None or find_own("hardware", name) is not None


def _check_name(written: str, name: str) -> None:
    """Explain an invalid name before the catalogue reports it as unknown."""
    if name and _is_known(name):
        return
    if not name or _BARE_COUNT.match(written):
        raise UserError(f"{_quoted(written)} names no hardware", hint=_EXAMPLES)
    if _BAD_COUNT.match(written):
        raise UserError(f"the number of GPUs in {_quoted(written)} is not a positive whole number", hint=_EXAMPLES)
    if re.match(r"[x×*]", name, re.IGNORECASE) and _is_known(name[1:].strip()):
        raise UserError(f"the number of GPUs is missing in {_quoted(written)}", hint=_EXAMPLES)
    if looks_like_path(name):
        return
    if _MIXED.search(name):
        hint = "plan each kind of hardware as a cluster of its own"
        raise UserError(f"mixed hardware is not planned: {_quoted(written)}", hint=hint)
    raise unknown("hardware", name)


def _in_hosts(written: str, device: Hardware, counts: tuple[str, ...]) -> Cluster:
    numbers = [_number(written, count) for count in counts]
    num_gpus = 1
    for number in numbers:
        num_gpus *= number
    if num_gpus > MAX_GPUS:
        raise UserError(f"{_quoted(written)} is more than {MAX_GPUS:,} GPUs", hint=_EXAMPLES)
    room = device.gpus_per_host.value if device.gpus_per_host is not None else num_gpus
    if len(numbers) == 2:
        hosts, each = numbers
        if each > room:
            hint = f"write {num_gpus}x{device.name} to spread them over hosts of {room}"
            raise UserError(f"a host holds at most {room} {device.name}, not {each}", hint=hint)
        return Cluster(device, hosts, each, num_gpus)
    each = min(room, num_gpus)
    return Cluster(device, ceil_div(num_gpus, each), each, num_gpus)


def _number(written: str, digits: str) -> int:
    number = int(digits) if len(digits.lstrip("0")) <= len(str(MAX_GPUS)) else MAX_GPUS + 1
    if number == 0:
        raise UserError(f"a cluster has at least one GPU: {_quoted(written)}", hint=_EXAMPLES)
    return number


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "…")
