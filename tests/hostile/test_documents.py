"""Every document within the limits of a file is answered in 2 s of CPU time and 200 MB, whatever stands in it."""

from pathlib import Path
from random import Random

import pytest
from hypothesis import given

from l4spec.spec.files import MAX_BYTES
from tests.hostile.draws import RANDOMS, draws, size
from tests.hostile.server import Server

SECONDS, PEAK_BYTES = 2.0, 200_000_000
COMMANDS = (
    ("validate",), ("plan", "--gpus", "8xH100"), ("show",), ("verify",),
    ("graph", "--level", "op"), ("graph", "--level", "op", "--format", "json"), ("graph", "--format", "dot"),
    ("plan", "--gpus", "8xH100", "-q", "fp8", "-v", "--explain"), ("plan", "--format", "json"),
)  # fmt: skip
HEAD = "l4spec: 1\nname: x\n"
PARTS = """    a: {kind: gqa, num_heads: 6, num_kv_heads: 2, head_dim: 4, mask: {kind: causal}, position: {kind: none}}
    f: {kind: mlp, intermediate_size: 56}
"""
NORM = "  norm: {kind: rmsnorm, eps: 1.0e-5}\n"
SIZES = "text:\n  hidden_size: 24\n  vocab_size: 96\n  max_seq_len: 64\n"
LAYERS = "    - {attention: a, ffn: f}\n"


def model(top: str = "", text: str = "", parts: str = "", layers: str = LAYERS) -> str:
    """A small model, with more written at any of its levels."""
    return f"{HEAD}{top}{SIZES}{NORM}{text}  parts:\n{PARTS}{parts}  layers:\n{layers}"


def scalar(random: Random) -> str:
    """One long scalar: digits and what belongs to numbers, in runs that patterns may try to divide in many ways."""
    runs = [
        "0",
        "1",
        "9",
        "_",
        ".",
        ":",
        "+",
        "-",
        "e",
        "e+",
        "x",
        "0x",
        "1:5",
        "1_0",
        "2001-01-01 ",
        "a",
        " b",
        "T1:10",
    ]
    most = random.choice([400, 60_000, 900_000])
    text = "".join(random.choice(runs) * size(random, most // 4) for _ in range(random.randint(1, 4)))[:most]
    return model(
        f"description: {random.choice(['', '0', '1', '-', '+.', '.'])}{text}{random.choice(['', 'e', 'x', '!'])}\n"
    )


def estimates(random: Random) -> str:
    """Paths that lead nowhere."""
    names = [f"text.{random.choice(['parts', 'layers[0]', 'x'])}.{random.random()}" for _ in range(size(random, 9_000))]
    return model(f"estimated: [{', '.join(names)}]\n")


def many_parts(random: Random) -> str:
    """Parts, all used or none, by right or wrong names."""
    count = size(random, 12_000)
    parts = "".join(f"    p{i}: {{kind: mlp, intermediate_size: {random.choice([8, i + 1])}}}\n" for i in range(count))
    used = random.choice(["p", "p", "p", "q"])
    layers = "".join(f"    - {{attention: a, ffn: {used}{i}}}\n" for i in range(count))
    return model(parts=parts, layers=random.choice([LAYERS, layers]))


def unknown_fields(random: Random) -> str:
    """Fields that no schema has, at any level."""
    count = size(random, 60_000)
    lines = {"top": "", "text": "", "parts": "", "layers": ""}
    level, indent, mark = random.choice(
        [("top", "", ""), ("text", "  ", ""), ("parts", "    ", ""), ("layers", "    ", "- ")]
    )
    value = random.choice(["1", "{}", "[]", "{kind: mlp}", "x"])
    lines[level] = "".join(f"{indent}{mark}u{i}: {value}\n" for i in range(count))
    return model(**(lines if level == "layers" else lines | {"layers": LAYERS}))


def deep(random: Random) -> str:
    """Levels upon levels, and lists of lists."""
    opening, closing = random.choice([("[", "]"), ("{a: ", "}"), ("- ", "")])
    depth = size(random, 100_000)
    shape = random.choice([opening * depth + closing * depth, f"[{'[],' * depth}]", f"[{'1,' * depth}]"])
    return in_place_of_a_list(random.choice(LISTS), shape)


LISTS = ("claims", "sources", "estimated", "about", "layers", "blocks")


def in_place_of_a_list(field: str, value: str) -> str:
    """The document with this value where a list of some length is expected."""
    match field:
        case "about":
            return model(f"about: {{evaluations: {value}}}\n")
        case "layers":
            return model(layers=f"    {value}\n")
        case "blocks":
            return model(layers=f"    - {{repeat: 3, blocks: {value}}}\n")
        case _:
            return model(f"{field}: {value}\n")


def aliases(random: Random) -> str:
    """Aliases of aliases, which write out to more than there are atoms, or just to the limit."""
    width, levels = random.randint(1, 12), random.randint(1, 12)
    lines = ["x0: &x0 {kind: mlp, intermediate_size: 8}"]
    lines += [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * width)}]" for i in range(1, levels)]
    return model("\n".join(lines) + "\n")


def long_stack(random: Random) -> str:
    """Very many layers, in few words or many."""
    count = size(random, 12_000)
    few = f"    - {{attention: a, ffn: f, repeat: {count}}}\n"
    group = f"    - {{repeat: {size(random, 300)}, blocks: [{', '.join(['{ffn: f}'] * size(random, 300))}]}}\n"
    return model(layers=random.choice([few, LAYERS * count, group]))


def claims(random: Random) -> str:
    """Claims, right and wrong ones."""
    forms = (
        "quantity: total_params, value: 9056, source: x", "quantity: fits, value: true, on: 1xH100, source: x",
        "quantity: fits, value: true, on: 96xH100, context: {0}, source: x", "quantity: fits, value: 1, source: x",
        "quantity: max_context, value: {0}, on: {0}xH100, source: x", "quantity: nothing, value: x", "value: .inf",
    )  # fmt: skip
    form = random.choice(forms)
    return model(
        "claims:\n"
        + "".join(f"  - {{{form.format(i + 1)}}}\n" for i in range(random.choice([128, size(random, 15_000)])))
    )


SHAPES = (scalar, estimates, many_parts, unknown_fields, deep, aliases, long_stack, claims)


def document(random: Random) -> str:
    """A document of at most 1 MiB."""
    return random.choice(SHAPES)(random)[:MAX_BYTES]


@draws(100)
@given(RANDOMS)
def test_a_document_within_the_limits_is_answered_in_time(server: Server, folder: Path, random: Random) -> None:
    path, command = folder / "spec.yaml", random.choice(COMMANDS)
    path.write_text(document(random), encoding="utf-8")
    run = server.run(command[0], str(path), *command[1:])
    assert run.is_clean, (command, run)
    assert run.peak_bytes < PEAK_BYTES, (command, run)
    assert server.answers_within(SECONDS, run), (command, run)


def test_many_unknown_fields_are_each_looked_for_elsewhere_in_time(server: Server, folder: Path) -> None:
    """Drawn at length: the whole document was walked once for each problem."""
    path = folder / "spec.yaml"
    path.write_text(HEAD + "".join(f"u{i}: {{kind: mlp}}\n" for i in range(20_000)), encoding="utf-8")
    run = server.run("validate", str(path))
    assert run.code == 2
    assert server.answers_within(SECONDS, run), run


@pytest.mark.parametrize("field", LISTS)
def test_lists_of_nothing_but_errors_stay_small(server: Server, folder: Path, field: str) -> None:
    """Drawn at length: each error took a kilobyte, and all of them were listed for the first fifty."""
    path = folder / "spec.yaml"
    path.write_text(in_place_of_a_list(field, f"[{'[],' * 95_000}]"), encoding="utf-8")
    run = server.run("validate", str(path))
    assert run.code == 2
    assert run.err.count("expected ") > 20, run.err  # what the server keeps of fifty
    assert run.peak_bytes < PEAK_BYTES, run
    assert server.answers_within(SECONDS, run), run


@draws(60)
@given(RANDOMS)
def test_a_cluster_of_up_to_a_million_gpus_is_answered_in_time(server: Server, folder: Path, random: Random) -> None:
    count = random.choice([size(random, 1_000_000), 720_720, 498_960, 997_920, 5040 * size(random, 198)])
    spec, gpu = (
        random.choice(["scout", "behemoth", "deepseek-v3", "tiny/scout"]),
        random.choice(["H100", "RTX-4090", "B200"]),
    )
    mode = random.choice([(), ("--mode", "train", "--batch", str(count)), ("--context", "10M"), ("-v",)])
    run = server.run("plan", spec, "--gpus", f"{count}x{gpu}", *mode)
    assert run.is_clean, (count, spec, gpu, mode, run)
    assert run.peak_bytes < PEAK_BYTES, (count, spec, gpu, mode, run)
    assert server.answers_within(SECONDS, run), (count, spec, gpu, mode, run)
