"""A user's own YAML works wherever a name does, and its mistakes are named with file, line and column."""

from pathlib import Path

import pytest

from l4spec.errors import UserError
from planners.catalog import engine, hardware, quantization

GPU = """\
name: my-gpu
description: a machine on a desk
memory:
  nominal: {value: 32 GB, source: its box}
  bandwidth: {value: 1 TB/s, source: its box}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_path_or_a_bare_name_in_the_current_folder_works_in_place_of_a_name(here: Path) -> None:
    (here / "desk.yaml").write_text(GPU)
    for name in ("desk.yaml", "./desk.yaml", str(here / "desk.yaml"), "desk"):
        assert hardware(name).usable.num_bytes == 32 * 10**9


def test_a_shipped_name_wins_over_a_file_of_the_same_name(here: Path) -> None:
    (here / "h100.yaml").write_text(GPU)
    assert hardware("h100").name == "h100-sxm"
    assert hardware("./h100.yaml").name == "my-gpu"


def test_what_a_file_leaves_out_is_an_error_only_when_asked_for(here: Path) -> None:
    (here / "desk.yaml").write_text(GPU)
    desk = hardware("desk")
    assert desk.usable.origin == "datasheet"
    with pytest.raises(UserError, match="no dense bf16 peak is published for my-gpu"):
        desk.peak("bf16")
    with pytest.raises(UserError, match="no bandwidth between hosts is known for my-gpu"):
        desk.inter_host_bandwidth()


@pytest.mark.parametrize(
    ("change", "place", "message", "hint"),
    [
        (("32 GB", "32"), "desk.yaml:4:13", "32 B is no device memory: write it with its unit", ""),
        (("32 GB", "32 Gb"), "desk.yaml:4:13", "'32 Gb'", ""),
        (("memory", "memry"), "desk.yaml:3:1", "not permitted", "did you mean 'memory'?"),
        ((", source: its box}\n  band", "}\n  band"), "desk.yaml:4:3", "required", ""),
        (("1 TB/s", "0 TB/s"), "desk.yaml:5:15", "greater than 0", ""),
    ],
)
def test_a_mistake_is_named_with_its_place(
    here: Path, change: tuple[str, str], place: str, message: str, hint: str
) -> None:
    (here / "desk.yaml").write_text(GPU.replace(*change))
    with pytest.raises(UserError) as caught:
        hardware("desk.yaml")
    problems = [problem for problem in caught.value.problems if str(problem.place) == place]
    assert any(message in problem.message and problem.hint == hint for problem in problems), str(caught.value)


def test_all_mistakes_of_a_file_are_reported_at_once(here: Path) -> None:
    (here / "desk.yaml").write_text(GPU.replace("32 GB", "32").replace("1 TB/s", "fast").replace("name:", "nam:"))
    with pytest.raises(UserError) as caught:
        hardware("desk.yaml")
    assert len(caught.value.problems) >= 4


def test_a_source_that_is_no_key_and_no_phrase_is_refused(here: Path) -> None:
    (here / "desk.yaml").write_text("sources: {box: the box it came in}\n" + GPU.replace("its box", "bxo"))
    with pytest.raises(UserError, match="source 'bxo' is not a key of `sources`, which has: box"):
        hardware("desk.yaml")


@pytest.mark.parametrize("content", [b"", b"- 1\n", b"a: &a [*a]\n", b"\xff\xfe\x00", b"a: 1\na: 2\n", b"{" * 500])
def test_a_file_that_is_no_entry_is_a_clean_error(here: Path, content: bytes) -> None:
    (here / "odd.yaml").write_bytes(content)
    for load in (hardware, quantization, engine):
        with pytest.raises(UserError, match=r"odd\.yaml"):
            load("odd.yaml")


@pytest.mark.parametrize("name", ["missing.yaml", "./", "/dev/zero", "\0.yaml", "a" * 5000 + "/b.yaml"])
def test_a_path_to_nothing_readable_is_a_clean_error(here: Path, name: str) -> None:
    for load in (hardware, quantization, engine):
        with pytest.raises(UserError):
            load(name)


def test_an_own_scheme_and_an_own_engine_work_too(here: Path) -> None:
    (here / "two-bits.yaml").write_text(
        "name: two-bits\ndescription: experts in two bits\nsource: a bold idea\ncompute_dtype: bf16\n"
        "default: {kind: plain, dtype: bf16}\n"
        "rules:\n- parts: [routed_experts]\n  law: {kind: scaled, bits: 2, group: 64, scale_dtype: fp16}\n"
    )
    assert quantization("two-bits").rules[0].law.kind == "scaled"
    (here / "mine.yaml").write_text("name: mine\ndescription: my engine\nsource: my notes\nkv: {kind: full}\n")
    mine = engine("mine")
    assert mine.reserved_for(tp=8) == ()
    with pytest.raises(UserError, match="engine 'mine' has no default share"):
        mine.memory_share()
