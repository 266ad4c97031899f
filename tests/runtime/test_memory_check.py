"""A model that does not fit is refused before it is allocated, and the refusal names one that fits."""

import re
import resource
from fractions import Fraction
from pathlib import Path

import pytest

import l4spec
from l4spec.runtime import cache, memory_check
from l4spec.runtime.memory_check import free_bytes, require_memory, weight_bytes
from l4spec.spec.scale import parse_scale, scale_spec

GIB = 2**30


def refused_with(monkeypatch: pytest.MonkeyPatch, name: str, free: int, extra: int = 0) -> str:
    """The message with which a spec in bf16 is refused when `free` bytes are left."""
    monkeypatch.setattr(memory_check, "free_bytes", lambda device: free)
    spec = l4spec.load(name)
    with pytest.raises(l4spec.UserError) as refusal:
        require_memory(spec, l4spec.compile(spec), "cpu", "bf16", extra)
    return str(refusal.value)


def test_the_weights_of_scout_are_counted_to_the_byte() -> None:
    assert weight_bytes(l4spec.compile(l4spec.load("scout")), "bf16") == 217_283_587_072


@pytest.mark.parametrize("name", ["scout", "maverick", "behemoth", "compare/deepseek-v3"])
@pytest.mark.parametrize("free", [2 * GIB, 24 * GIB])
def test_what_a_refusal_suggests_fits_and_the_next_larger_does_not(
    monkeypatch: pytest.MonkeyPatch, name: str, free: int
) -> None:
    message, spec = refused_with(monkeypatch, name, free), l4spec.load(name)
    room = int(free * Fraction(95, 100))

    def fits(**kind: object) -> bool:
        return weight_bytes(l4spec.compile(scale_spec(spec, **kind)), "bf16") <= room  # type: ignore[arg-type]

    layers = re.search(r"--layers (\d+)", message)
    scale = re.search(r"--scale (1/\d+)", message)
    assert scale is not None
    ratio = parse_scale(scale[1])
    assert isinstance(ratio, Fraction)
    assert fits(scale=ratio)
    assert ratio == Fraction(1, 2) or not fits(scale=ratio * 2)
    if layers is None:
        assert not fits(num_layers=1)
    else:
        assert fits(num_layers=int(layers[1]))
        assert not fits(num_layers=int(layers[1]) + 1)


def test_caches_that_do_not_fit_are_refused_before_they_are_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = l4spec.compile(l4spec.load("tiny/scout"))
    model = l4spec.build(graph, seed=None)
    allocated = model.new_cache(2, 1000).num_bytes
    assert cache.cache_bytes(graph.nodes, 2, 1000, model.dtype) == allocated
    monkeypatch.setattr(cache, "free_bytes", lambda device: allocated - 1)
    with pytest.raises(l4spec.UserError, match=r"caches of 2 x 1,000 tokens need .* on cpu"):
        model.new_cache(2, 1000)


def test_a_refusal_names_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused_with(monkeypatch, "scout", 24 * GIB)
    assert "202.36 GiB" in message
    assert "24.00 GiB are free" in message


def test_what_fits_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_check, "free_bytes", lambda device: GIB)
    spec = l4spec.load("tiny/scout")
    require_memory(spec, l4spec.compile(spec), "cpu", "fp32")
    require_memory(l4spec.load("behemoth"), l4spec.compile(l4spec.load("behemoth")), "meta", "fp32")


def test_caches_and_activations_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "needs 1.0" in refused_with(monkeypatch, "tiny/scout", GIB, extra=GIB)


def test_a_system_that_does_not_say_what_is_free_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_check, "free_bytes", lambda device: None)
    spec = l4spec.load("scout")
    require_memory(spec, l4spec.compile(spec), "cpu", "bf16")


def test_this_machine_has_some_memory() -> None:
    free = free_bytes("cpu")
    assert free is not None
    assert free > 2**20


def lay_out(root: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A system in a folder: /proc and /sys/fs/cgroup with these files."""
    for name, text in {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  8388608 kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(memory_check, "_PROC", root / "proc")
    monkeypatch.setattr(memory_check, "_CGROUP", root / "cgroup")


def test_without_limits_the_available_memory_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, {"proc/self/cgroup": "0::/\n", "cgroup/memory.max": "max\n"}, monkeypatch)
    assert free_bytes("cpu") == 8 * GIB


def test_a_containers_limit_counts_and_droppable_page_cache_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b\n",
        "cgroup/a/b/memory.max": "max\n",
        "cgroup/a/memory.max": f"{4 * GIB}\n",
        "cgroup/a/memory.current": f"{3 * GIB}\n",
        "cgroup/a/memory.stat": f"anon 1\ninactive_file {GIB}\n",
    }
    lay_out(tmp_path, files, monkeypatch)
    assert free_bytes("cpu") == 2 * GIB


def test_limits_of_the_first_cgroup_version_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "proc/self/cgroup": "5:cpu,cpuacct:/x\n3:memory:/x\n",
        "cgroup/memory/x/memory.limit_in_bytes": f"{GIB}\n",
        "cgroup/memory/x/memory.usage_in_bytes": f"{GIB // 4}\n",
        "cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "cgroup/memory/memory.usage_in_bytes": "1\n",
    }
    lay_out(tmp_path, files, monkeypatch)
    assert free_bytes("cpu") == GIB * 3 // 4


@pytest.mark.parametrize(("which", "line"), [("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")])
def test_the_shells_limits_count(which: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, {"proc/self/status": f"Name:\tpython\n{line}:\t 1048576 kB\n"}, monkeypatch)
    infinite = resource.RLIM_INFINITY
    limits = {getattr(resource, which): (3 * GIB, infinite)}
    monkeypatch.setattr(resource, "getrlimit", lambda limit: limits.get(limit, (infinite, infinite)))
    assert free_bytes("cpu") == 2 * GIB
