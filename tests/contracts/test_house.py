"""The house rules: small files, small functions, the same rooms in every layer folder, no machine's paths."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHON_FOLDERS = ("l4spec", "planners", "tests", "examples", "benchmarks", "website")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50

LARGER_FOR_A_REASON: dict[str, str] = {
    "l4spec/cli/measure.py:measure_command": "its options, one parameter each, as typer reads them",
    "l4spec/cli/train.py:train_command": "its options, one parameter each, as typer reads them",
    "l4spec/cli/run.py:run_command": "its options, one parameter each, as typer reads them",
}
"""`path.py` or `path.py:function` → why it may exceed its budget. An entry that is no longer needed fails."""

MACHINE_PATH = re.compile(r"(?<![\w.~*-])/(?:work|opt|root|home|Users)/[\w.-]+|\.\./shared/")
"""An absolute path into somebody's machine. URLs do not match: there a host name comes before the slash."""


def python_files() -> list[Path]:
    """Every Python file of the project, in a stable order."""
    return sorted(path for folder in PYTHON_FOLDERS for path in (ROOT / folder).rglob("*.py"))


def over_budget() -> Iterator[tuple[str, int]]:
    """(place, lines) of every file and function above its budget, decorators and docstring included."""
    for path in python_files():
        name = path.relative_to(ROOT).as_posix()
        source = path.read_text(encoding="utf-8")
        if (num_lines := len(source.splitlines())) > MAX_FILE_LINES:
            yield name, num_lines
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                if (num_lines := (node.end_lineno or first) - first + 1) > MAX_FUNCTION_LINES:
                    yield f"{name}:{node.name}", num_lines


def tracked_files() -> list[Path]:
    """What is committed, or about to be; everything but hidden folders where the project is no git checkout."""
    if (ROOT / ".git").exists():
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]
    visible = [
        path for path in ROOT.rglob("*") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]
    return [path for path in visible if path.is_file() and path.suffix != ".pyc"]


def test_files_and_functions_keep_their_budget_or_give_a_reason() -> None:
    too_large = dict(over_budget())
    without_reason = {place: lines for place, lines in too_large.items() if place not in LARGER_FOR_A_REASON}
    assert not without_reason, f"more than {MAX_FILE_LINES} lines a file or {MAX_FUNCTION_LINES} a function"


def test_every_excuse_for_a_larger_file_is_still_needed() -> None:
    assert set(LARGER_FOR_A_REASON) <= dict(over_budget()).keys()
    assert all(len(reason) > len("because") for reason in LARGER_FOR_A_REASON.values())


def test_the_budget_is_checked_on_real_files() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in python_files()}
    assert {"l4spec/errors.py", "tests/contracts/test_house.py"} <= names


DECISION_PARTS, FIRST_WHOLE_DECISION = ("Context", "Decision", "Alternatives"), 50
"""What every decision says, and the first one that does."""


def test_every_layer_kind_has_the_same_rooms() -> None:
    kinds = sorted(init.parent for init in (ROOT / "l4spec" / "layers").glob("*/__init__.py"))
    kinds = [kind for kind in kinds if kind.name not in ("attention", "common", "recurrent")]  # what kinds share
    rooms = {"__init__.py", "spec.py", "cost.py"} | ({"module.py"} if (ROOT / "l4spec" / "runtime").is_dir() else set())
    missing = {kind.name: sorted(rooms - {file.name for file in kind.iterdir()}) for kind in kinds}
    assert len(kinds) >= 10
    assert not {name: files for name, files in missing.items() if files}


def test_no_committed_text_names_a_machine_path() -> None:
    mentions = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        mentions += [f"{path.relative_to(ROOT)}: {match.group()}" for match in MACHINE_PATH.finditer(text)]
    assert not mentions


NAMES_THAT_SAY_NOTHING = {"found", "wanted", "told", "held", "said", "behind", "herd"}
"""A variable is named by what it is (`latency`, `expected`, `shards`), not by how it was come by."""
PRIVATE_WORDS = {"told", "wanted", "herd"}
"""No function's or class's name has one of these among its words."""


def vague_names() -> Iterator[str]:
    """`file:line name` of every variable and parameter whose name says nothing."""
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.arg) or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)):
                name = node.arg if isinstance(node, ast.arg) else node.id
                if name in NAMES_THAT_SAY_NOTHING:
                    yield f"{path.relative_to(ROOT).as_posix()}:{node.lineno} {name}"
            elif isinstance(node, ast.FunctionDef | ast.ClassDef) and is_private_english(node.name):
                yield f"{path.relative_to(ROOT).as_posix()}:{node.lineno} {node.name}"


def is_private_english(name: str) -> bool:
    """Whether a word of a function's or class's name is one that a reader has to guess."""
    return bool(PRIVATE_WORDS & set(name.lower().split("_")))


VAGUE_PHRASES = re.compile(r"\b(?:told|wanted|herd|held against)\b", re.IGNORECASE)
"""Words for comparing, asking and reporting that a reader has to guess: compared with, needed, reported say it."""


def vague_docstrings() -> Iterator[str]:
    """`file:line phrase` of every string that stands alone as documentation and uses a private word."""
    for path in python_files():
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(("l4spec/", "planners/")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    for match in VAGUE_PHRASES.finditer(str(node.value.value)):
                        yield f"{name}:{node.lineno} {match.group()}"


def public_classes() -> dict[str, list[str]]:
    """The files that define each public class name of the packages."""
    places: dict[str, list[str]] = {}
    for path in python_files():
        if path.relative_to(ROOT).parts[0] in ("l4spec", "planners"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places.setdefault(node.name, []).append(path.relative_to(ROOT).as_posix())
    return places


def test_variables_are_named_by_what_they_are() -> None:
    assert not list(vague_names())


def test_docstrings_use_the_words_that_others_use() -> None:
    assert not list(vague_docstrings())


def test_a_public_class_name_stands_once_in_the_project() -> None:
    classes = public_classes()
    assert len(classes) >= 200
    assert not {name: files for name, files in classes.items() if len(files) > 1}


def test_the_architecture_page_names_every_room_and_only_rooms_that_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `((?:l4spec|planners)/[a-z_]+)/` \|", page, re.MULTILINE))
    rooms = {init.parent for package in ("l4spec", "planners") for init in (ROOT / package).glob("*/__init__.py")}
    assert named == {room.relative_to(ROOT).as_posix() for room in rooms}


def test_decisions_stand_newest_first_and_are_numbered_without_a_gap() -> None:
    text = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    entries = [re.match(r"(\d+) · (\d{4}-\d\d-\d\d) · (.+)", heading) for heading in headings]
    assert len(entries) >= 60
    assert [entry and int(entry[1]) for entry in entries] == list(range(len(entries), 0, -1)), "one number each"
    dates = [entry[2] for entry in entries if entry]
    assert dates == sorted(dates, reverse=True)


def test_decisions_have_context_decision_and_alternatives() -> None:
    text = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    entries = re.split(r"^## (?=\d)", text, flags=re.MULTILINE)[1:]
    recent = [entry for entry in entries if int(entry.split(" ")[0]) >= FIRST_WHOLE_DECISION]
    assert not [
        entry.splitlines()[0] for entry in recent if not all(f"**{part}.**" in entry for part in DECISION_PARTS)
    ]


def test_every_package_says_that_it_is_typed() -> None:
    assert all((ROOT / package / "py.typed").is_file() for package in ("l4spec", "planners"))


def test_every_page_opens_with_who_needs_it() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("README.md")]
    assert len(pages) >= 35
    openings = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8").split("\n\n")[1] for page in pages}
    assert sorted(page for page, opening in openings.items() if not opening.startswith("For anyone")) == []


def test_every_page_stands_in_the_site() -> None:
    places = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert len(pages) >= 30
    assert pages - places - {"README.md"} == set(), "add it to `nav` in mkdocs.yml, under the task it is for"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site name them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.+)$", text, flags=re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in plain}


def test_every_link_to_a_heading_leads_to_one() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("README.md")]
    links = [
        (page, target, anchor)
        for page in pages
        for target, anchor in re.findall(r"\]\(([^)#:\s]*\.md)?#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) >= 10
    lost = [(p.name, t, a) for p, t, a in links if a not in anchors(p.parent / t if t else p)]
    assert lost == []
