"""What a user wrote stands in launches, Markdown and HTML as what it is, and starts nothing."""

import re
import shlex
from dataclasses import replace
from random import Random

import yaml
from hypothesis import given

import l4spec
from l4spec.deploy.checkpoints import checkpoint
from l4spec.deploy.k8s import emit_k8s
from l4spec.deploy.launch import LaunchRequest
from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.report.page import Facts, Lines, Section, Table, to_markdown
from planners.plan import plan
from tests.hostile.draws import RANDOMS, draws

PIECES = (
    "$(reboot)", "$(HOME)", "${HOME}", "`id`", "; rm x", "&& x", "| x", "--port", "-x", "'", '"', "\\", "\n", "\x00",
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
    changed = LayerGraph(replace(model, spec=spec), GRAPH.nodes, GRAPH.edges)
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
