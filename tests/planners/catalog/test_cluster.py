"""Clusters as people write them."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4spec.errors import UserError
from planners.catalog.cluster import MAX_GPUS, Cluster, parse_cluster

COUNT_AND_NAME = st.tuples(
    st.integers(1, MAX_GPUS), st.sampled_from(["h100", "RTX4090", "mi300x", "gb200", "m3-ultra"])
)


@pytest.mark.parametrize(
    ("text", "name", "hosts", "each", "total"),
    [
        ("8xH100", "h100-sxm", 1, 8, 8),
        ("8 x h100", "h100-sxm", 1, 8, 8),
        ("8×H100", "h100-sxm", 1, 8, 8),
        ("8XH100", "h100-sxm", 1, 8, 8),
        ("H100", "h100-sxm", 1, 1, 1),
        ("h100*8", "h100-sxm", 1, 8, 8),
        ("h100 x 8", "h100-sxm", 1, 8, 8),
        ("h100x8", "h100-sxm", 1, 8, 8),
        ("2x8xH100", "h100-sxm", 2, 8, 16),
        ("2 x 4 x H100", "h100-sxm", 2, 4, 8),
        ("1xH100-80GB", "h100-sxm", 1, 1, 1),
        ("8xH200-141GB", "h200", 1, 8, 8),
        ("8x H100 SXM", "h100-sxm", 1, 8, 8),
        ("2xH100_NVL", "h100-nvl", 1, 2, 2),
        ("32768xH100", "h100-sxm", 4096, 8, 32768),
        ("12xH100", "h100-sxm", 2, 8, 12),
        ("72xGB200", "gb200", 1, 72, 72),
        ("144xGB200", "gb200", 2, 72, 144),
        ("2xM3-Ultra", "m3-ultra", 2, 1, 2),
        ("8x4090", "rtx-4090", 1, 8, 8),
        ("4090", "rtx-4090", 1, 1, 1),
        ("2x rtx 4090", "rtx-4090", 1, 2, 2),
        ("MI300X", "mi300x", 1, 1, 1),
        ("mi300x*8", "mi300x", 1, 8, 8),
    ],
)
def test_every_usual_spelling_is_understood(text: str, name: str, hosts: int, each: int, total: int) -> None:
    cluster = parse_cluster(text)
    parsed = (cluster.hardware.name, cluster.num_hosts, cluster.gpus_per_host, cluster.num_gpus)
    assert parsed == (name, hosts, each, total)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no cluster is named"),
        ("  ", "no cluster is named"),
        ("8", "'8' names no hardware"),
        ("8x", "'8x' names no hardware"),
        ("2x8x", "'2x8x' names no hardware"),
        ("xH100", "the number of GPUs is missing"),
        ("0xH100", "at least one GPU"),
        ("0x8xH100", "at least one GPU"),
        ("H100*0", "at least one GPU"),
        ("-8xH100", "not a positive whole number"),
        ("1.5xH100", "not a positive whole number"),
        ("1,000xH100", "not a positive whole number"),
        ("1000001xH100", "more than 1,000,000 GPUs"),
        ("1000x1001xH100", "more than 1,000,000 GPUs"),
        ("9" * 5000 + "xH100", "more than 1,000,000 GPUs"),
        ("4xH100+4xA100", "mixed hardware is not planned"),
        ("4xH100, 4xA100", "mixed hardware is not planned"),
        ("4xH100 and 4xA100", "mixed hardware is not planned"),
        ("2x16xH100", r"a host holds at most 8 h100-sxm, not 16 \(write 32xh100-sxm"),
        ("8xH1000", r"no hardware is called 'H1000' \(did you mean 'h100'\?\)"),
        ("8xH30", r"no hardware is called 'H30' \(one of: a10, a100-40gb"),
        ("8 H100", "did you mean 'h100'"),
        ("eight of them", "one of: a10, a100-40gb"),
        ("1x./missing.yaml", "missing.yaml: cannot read the file: No such file"),
    ],
)
def test_what_is_no_cluster_is_explained(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_cluster(text)


def test_a_hardware_file_works_in_place_of_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    number = "{value: 1 TB/s, source: its box}"
    text = (
        f"name: this\ndescription: mine\nmemory:\n  nominal: {{value: 24 GB, source: its box}}\n  bandwidth: {number}\n"
    )
    (tmp_path / "this.yaml").write_text(text)
    for spelling in ("1x./this.yaml", "1xthis", "this.yaml", "this", f"1x{tmp_path}/this.yaml", "this*1"):
        assert parse_cluster(spelling).hardware.name == "this"
    three = parse_cluster("3xthis")
    assert (three.num_hosts, three.gpus_per_host) == (1, 3), "a file without gpus_per_host describes one host"
    (tmp_path / "box2.yaml").write_text(text.replace("name: this", "name: box2"))
    assert parse_cluster("box2").num_gpus == 1
    assert parse_cluster("4xbox2").num_gpus == 4


@given(COUNT_AND_NAME)
@settings(max_examples=100, deadline=None)
def test_hosts_hold_all_gpus_and_none_is_idle(case: tuple[int, str]) -> None:
    count, name = case
    cluster = parse_cluster(f"{count}x{name}")
    room = cluster.hardware.gpus_per_host
    assert room is not None
    assert cluster.num_gpus == count
    assert cluster.gpus_per_host <= room.value
    assert (cluster.num_hosts - 1) * cluster.gpus_per_host < count <= cluster.num_hosts * cluster.gpus_per_host
    assert parse_cluster(str(cluster)) == cluster


@given(st.text(max_size=60) | st.text(alphabet="0123456789x×*+-. hH100ab/\\", max_size=30))
@settings(max_examples=400, deadline=None)
def test_any_text_is_a_cluster_or_a_user_error(text: str) -> None:
    parsed = _parsed(text)
    if isinstance(parsed, Cluster):
        assert 1 <= parsed.num_gpus <= MAX_GPUS
    else:
        assert 0 < len(str(parsed)) < 2000


def _parsed(text: str) -> Cluster | UserError:
    try:
        return parse_cluster(text)
    except UserError as error:
        return error
