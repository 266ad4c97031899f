"""What `l4spec import` writes, `l4spec validate` reads; whatever else is refused in lines, in time."""

import json
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import given

from tests.hostile.draws import RANDOMS, draws, size
from tests.hostile.server import Server
from tests.huggingface.releases import RELEASES

TEXTS = (
    "5e5", "on", "~", "1_0", "0x10", "1:30", "2001-01-01", "\u2028", "\x00", "\x85", "\ufeff", "\ud800", "a: b", "# x",
    "- a",
    "'", '"', "%", "@", "`", "|", ">", "{", "[", "*a", "&a", "!t", "\n", "\t", " x ", "é", "🙂", "x" * 5000, "<<",
)  # fmt: skip


def value(random: Random, depth: int = 0) -> Any:
    """A value that JSON can hold."""
    kind = random.choice(["text", "text", "number", "list", "mapping"] if depth < 6 else ["text", "number"])
    if kind == "text":
        return random.choice(TEXTS)
    if kind == "number":
        return random.choice([0, -1, 2**63 - 1, 2**63, 10**400, 1e308, 1.5, True, None])
    items = [value(random, depth + 1) for _ in range(random.randint(0, 3))]
    return items if kind == "list" else {random.choice(TEXTS): item for item in items}


def deep(random: Random) -> Any:
    """Levels upon levels."""
    nested: Any = 1
    for _ in range(size(random, 900)):
        nested = [nested] if random.random() < 0.5 else {"a": nested}
    return nested


def config(random: Random) -> str:
    """A published config with fields that are carried, unknown or damaged."""
    data = json.loads(json.dumps(RELEASES[random.choice(sorted(RELEASES))]))
    carried = (
        "architectures",
        "transformers_version",
        "bos_token_id",
        "eos_token_id",
        "torch_dtype",
        "initializer_range",
    )
    match random.choice(["carried", "carried", "deep", "many", "large", "keys"]):
        case "carried":
            data[random.choice(carried)] = value(random)
        case "deep":
            data[random.choice((*carried, "x"))] = deep(random)
        case "many":
            data |= {f"unknown_{i}": i for i in range(size(random, 60_000))}
        case "large":
            data[random.choice(carried)] = random.choice(TEXTS) * size(random, 400_000)
        case _:
            data[random.choice(TEXTS)] = value(random)
    return json.dumps(data, ensure_ascii=random.random() < 0.5)


@draws(200)
@given(RANDOMS)
def test_what_is_imported_is_valid_and_the_rest_refused(server: Server, folder: Path, random: Random) -> None:
    (folder / "config.json").write_bytes(config(random).encode("utf-8", "surrogatepass"))
    answer = server.run("import", "config.json", "--out", "out.yaml", "--force", "--name", "x", cwd=folder)
    assert answer.is_clean, answer
    assert server.answers_within(2, answer), answer
    if answer.code == 0:
        again = server.run("validate", "out.yaml", cwd=folder)
        assert again.code == 0, again
