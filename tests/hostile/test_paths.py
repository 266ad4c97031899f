"""Whatever stands at a path that is read or written: one line, and nothing replaced that is no regular file."""

import os
import shutil
import socket
import stat
from pathlib import Path
from random import Random

import pytest
from hypothesis import given

from tests.hostile.draws import RANDOMS, draws
from tests.hostile.server import Server

SIMULATED = ("simulate", "tiny/scout", "--gpus", "1xH100")
LOAD = ("--rate", "4/s", "--prompt-tokens", "9", "--output-tokens", "9", "--requests", "9")
READERS = (
    ("validate", "{}"), ("plan", "{}"), ("show", "{}"), ("verify", "{}"), ("graph", "{}"),
    ("compare", "{}", "tiny/scout"),
    ("import", "{}"), ("accuracy", "--rows", "{}"), ("plan", "tiny/scout", "--gpus", "1x{}"),
    ("plan", "tiny/scout", "--gpus", "1xH100", "--routing", "{}"), ("plan", "tiny/scout", "-q", "{}"),
    ("plan", "tiny/scout", "--gpus", "1xH100", "--engine", "{}"), ("export", "{}"),
    ("plan", "tiny/scout", "--set", "x={}"), ("report", "{}"), ("search", "{}"), ("simulate", "{}"), ("train", "{}"),
    ("transfer", "{}"), ("graph", "{}", "--format", "svg"), (*SIMULATED, "--trace", "{}"), (*SIMULATED, "--fit", "{}"),
    (*SIMULATED, *LOAD, "--factors", "{}"), (*SIMULATED, *LOAD, "--routing", "{}"), ("verify", "{}", "-v"),
    ("train", "recipes/collapse", "--set", "data.sources.x={{kind: file, path: {}}}"),
)  # fmt: skip
WRITERS = (
    ("plan", "tiny/scout"),
    ("graph", "tiny/scout"),
    ("schema",),
    ("export", "tiny/scout"),
    ("compare", "tiny/scout"),
    ("report", "tiny/scout"),
    ("graph", "tiny/scout", "--format", "svg"),
    (*SIMULATED, *LOAD),
)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of everything that a path can lead to."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "file").write_text("before")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "socket"))
    listening.close()
    for name, target in (("to-file", "file"), ("to-nothing", "nothing"), ("to-folder", "folder"), ("to-pipe", "pipe")):
        (folder / name).symlink_to(target)
    (folder / "loop").symlink_to("loop")
    (folder / "to-null").symlink_to("/dev/null")
    (folder / "empty").write_text("")
    (folder / "binary").write_bytes(bytes(range(256)) * 9)
    with (folder / "huge").open("wb") as file:
        file.truncate(1 << 40)
    return folder


def drawn_path(random: Random, places: Path) -> str:
    """A path of one of many kinds."""
    names = [path.name for path in places.iterdir()]
    odd = [
        "", ".", "..", "/", "//", "new", "new/", "folder/", "file/", "file/x", "a\0b", "n" * 300, "d/" * 3000 + "x",
        "\udcff", "é" * 130, "\n", "/dev/null", "/dev/zero", "/dev/full", "/dev/stdin", "/dev/tty", "/proc/self/mem",
        "/proc/1/environ", "/nothing/there", "-", "~", "%s", "{x}", "con\tx",
    ]  # fmt: skip
    name = random.choice([*names, *odd])
    return name if random.random() < 0.3 or name.startswith("/") else str(places / name) if name else name


def looks(folder: Path) -> dict[str, tuple[int, str]]:
    """What stands where: the kind of each entry, and where links lead."""
    return {
        path.name: (stat.S_IFMT(path.lstat().st_mode), os.readlink(path) if path.is_symlink() else "")
        for path in folder.iterdir()
    }


@draws(200)
@given(RANDOMS)
def test_what_is_no_file_to_read_is_refused_in_one_line(server: Server, places: Path, random: Random) -> None:
    path = drawn_path(random, places)
    if "\0" in path:  # no argument of a process can hold it
        return
    arguments = [word.format(path) if "{" in word else word for word in random.choice(READERS)]
    answer = server.run(*arguments, cwd=places)
    assert answer.is_clean, (arguments, answer)
    assert answer.cpu_seconds < 5, (arguments, answer)


@draws(200)
@given(RANDOMS)
def test_only_regular_files_are_written_and_links_stay(server: Server, places: Path, random: Random) -> None:
    path = drawn_path(random, places)
    if "\0" in path:
        return
    force = random.choice([(), ("--force",)])
    before, nulls = looks(places), os.stat("/dev/null").st_rdev
    (places / "file").write_text("before")
    answer = server.run(*random.choice(WRITERS), "--out", path, *force, cwd=places)
    assert answer.is_clean, (path, force, answer)
    assert (os.stat("/dev/null").st_rdev, stat.S_ISCHR(os.stat("/dev/zero").st_mode)) == (nulls, True)
    after = looks(places)
    assert {name: after.get(name) for name in before} == before, (path, force, answer)
    written = set(after) - set(before)
    assert bool(written) <= (answer.code in (0, 3)), (path, force, answer)
    assert not force or "to-nothing" in path or (places / "file").exists()
    if not force:
        assert (places / "file").read_text() == "before"
    for name in written:
        assert stat.S_ISREG((places / name).lstat().st_mode), name
        (places / name).unlink()


def test_a_link_is_written_through(server: Server, tmp_path: Path) -> None:
    (tmp_path / "real").write_text("before")
    (tmp_path / "link").symlink_to("real")
    assert server.run("schema", "--out", "link", cwd=tmp_path).code == 2
    assert server.run("schema", "--out", "link", "--force", cwd=tmp_path).code == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text().startswith("{")


def test_a_name_that_ends_like_a_folder_names_no_file(server: Server, tmp_path: Path) -> None:
    answer = server.run("schema", "--out", "new/", cwd=tmp_path)
    assert answer.code == 2
    assert "names a folder" in answer.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_deleted_under_a_command_is_reported(server: Server, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    answer = server.run("validate", "x.yaml", cwd=here, gone=True)
    assert answer.is_clean, answer
    assert answer.code == 2
    shutil.rmtree(here, ignore_errors=True)
