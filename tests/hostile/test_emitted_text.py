"""What a user wrote stands in launches, Markdown and HTML as what it is, and starts nothing."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from random import Random
from xml.etree import ElementTree

import pytest
import yaml
from hypothesis import given

import l4spec
from l4spec.deploy import emit
from l4spec.deploy.checkpoints import checkpoint
from l4spec.deploy.k8s import emit_k8s
from l4spec.deploy.launch import LaunchRequest
from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.report.drawing import to_svg
from l4spec.report.graph_views import view_of, write_view
from l4spec.report.html import to_html
from l4spec.report.page import Bar, Bars, Code, Details, Facts, Lines, Section, Table, to_markdown
from l4spec.report.picture import picture_of
from planners.plan import plan
from tests.hostile.draws import RANDOMS, draws
from tests.report.test_report_page import Tags

PIECES = (
    "$(reboot)", "$(HOME)", "${HOME}", "`id`", "; rm x", "&& x", "| x", "--port", "-x", "'", '"', "\\", "\n", "\x00",
    "host-0", "EOF", "]]>", "</svg>", "onload=x", "%%", "\x1b[2J",
    "<script>", "<img src=x>", "[a](b)", "![a](b)", "|", "# x", "é", "\u202e", "meta/llama", "a/b", " ", "%s", "{{x}}",
)  # fmt: skip
GRAPH = l4spec.compile(l4spec.load("scout"))
PLAN = plan(GRAPH, gpus="8xH100", engine="vllm")


def text(random: Random) -> str:
    """Some pieces in a row."""
    return "".join(random.choice(PIECES) for _ in range(random.randint(1, 4)))


@draws(300)
@given(RANDOMS)
def test_a_name_of_a_checkpoint_is_one_word_that_nothing_expands(random: Random) -> None:
    name = text(random)
    try:
        (workload, _), notes = emit_k8s(LaunchRequest(PLAN, GRAPH, model=name))
    except UserError:
        assert not name.isprintable() or name.startswith("-")
        return
    (container,) = yaml.safe_load(yaml.safe_dump(workload))["spec"]["template"]["spec"]["containers"]
    words = [word.replace("$$", "$") for word in container["command"]]
    assert name in words
    assert not any(re.search(r"(?<!\$)(\$\$)*\$\(", word) for word in container["command"])
    assert shlex.split(shlex.join(words)) == words
    assert notes


@draws(300)
@given(RANDOMS)
def test_an_id_from_the_sources_gets_the_checks_of_the_option(random: Random) -> None:
    source = f"Hugging Face {random.choice(['-', '--', '', '.'])}{random.choice(['x', 'meta', '-y'])}/{text(random)}"
    model = GRAPH.model
    spec = model.spec.model_copy(update={"sources": (source,)})
    changed = LayerGraph(model._replace(spec=spec), GRAPH.nodes, GRAPH.edges)
    try:
        name, _ = checkpoint(LaunchRequest(PLAN, changed))
    except UserError:
        return
    assert not name.startswith("-")
    assert name.isprintable()


@draws(300)
@given(RANDOMS)
def test_markdown_shows_what_was_written(random: Random) -> None:
    shown, plain = to_markdown(page_of(text(random))), to_markdown(page_of("y"))
    assert not re.search(r"(?<!\\)<", shown)
    assert not re.search(r"(?<!\\)\]\(", shown)
    assert len(shown.splitlines()) == len(plain.splitlines())


def page_of(written: str) -> tuple[Section, ...]:
    """A page with a text in each kind of block."""
    return (Section("x", (Facts((("a", written),)), Lines((written, "end")), Table(("h",), ((written,),), "l"))),)


BASH = shutil.which("bash")
LAUNCHED = ("vllm", "sglang", "trtllm-serve", "torchrun", "python", "python3", "srun", "docker")
FUNCTIONS = "".join(f"{name}() {{ printf '%s\\0' \"$@\" END; }}\n" for name in LAUNCHED)
"""Each prints its words, and END as the last, at once: two at a time do not mix."""
SLURM = 'scontrol() { printf "node-a\\nnode-b\\n"; }\nwait() { builtin wait; }\nSLURM_JOB_NODELIST=node-[a-b]\n'
PLANS = {
    "vllm": PLAN,
    "sbatch": plan(GRAPH, gpus="2x8xH100", engine="vllm"),
    "sglang": plan(GRAPH, gpus="8xH100", engine="sglang"),
    "tensorrt-llm": plan(GRAPH, gpus="8xH100", engine="tensorrt-llm"),
}


def named(name: str) -> LayerGraph:
    """Scout under another name."""
    model = GRAPH.model
    return LayerGraph(model._replace(spec=model.spec.model_copy(update={"name": name})), GRAPH.nodes, GRAPH.edges)


@pytest.mark.skipif(BASH is None, reason="bash reads the scripts")
@draws(150)
@given(RANDOMS)
def test_bash_reads_a_script_as_it_was_meant(folder: Path, random: Random) -> None:
    target, name = random.choice(sorted(PLANS)), text(random)
    try:
        script = emit(target, LaunchRequest(PLANS[target], named(text(random)), model=name))
    except UserError:
        assert not name.isprintable() or name.startswith("-")
        return
    run = subprocess.run(  # without a PATH nothing but these functions can be started
        [BASH or "", "--norc", "-c", FUNCTIONS + SLURM + script],
        env={"PATH": ""}, cwd=folder, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == 0, (script, run)
    assert run.stderr == b"", (script, run)
    started = [line.split(b"\0")[:-1] for line in run.stdout.split(b"END\0") if line]
    assert started, script
    assert all(name.encode() in words for words in started), (name, script, started)


@draws(200)
@given(RANDOMS)
def test_html_and_pictures_have_the_marks_of_a_plain_name(random: Random) -> None:
    name = text(random)
    tags, plain = Tags(to_html(every_block(name))), Tags(to_html(every_block("y")))
    assert tags.names == plain.names
    assert not tags.open
    svg = ElementTree.fromstring(to_svg(picture_of(named(name))))
    known = {element.tag for element in ElementTree.fromstring(to_svg(picture_of(GRAPH))).iter()}
    assert {element.tag for element in svg.iter()} <= known
    assert not [key for element in svg.iter() for key in element.attrib if key.startswith("on")]


@draws(60)
@given(RANDOMS)
def test_graphs_as_text_have_the_lines_of_a_plain_name(random: Random) -> None:
    style = random.choice(["dot", "mermaid", "text"])
    shown, plain = (write_view(view_of(named(name), "block"), style) for name in (text(random), "y"))
    assert len(shown.splitlines()) == len(plain.splitlines())
    quotes = re.compile(r'(?<!\\)(?:\\\\)*"')
    if style == "dot":
        pairs = zip(shown.splitlines(), plain.splitlines(), strict=True)
        assert all(len(quotes.findall(a)) == len(quotes.findall(b)) for a, b in pairs)


def every_block(written: str) -> tuple[Section, ...]:
    """A page with a text in every kind of block that holds text."""
    w, table = written, Table((written, written), ((written, written),))
    bars = Bars((Bar(w, w, 1), Bar(w, w, 3, hollow=True)), 4)
    return (
        Section("", (Lines((w,)),)),
        Section(w, (Facts(((w, w),)), table, bars, Code((w,)), Details(w, w, (table,)))),
    )
