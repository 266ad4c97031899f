"""Numbers, tables and streams that nobody means: one line, an exit code of the help, and nothing started."""

import csv
import io
import json
from pathlib import Path
from random import Random

from hypothesis import given

from planners.evidence.rows import PUBLISHED
from tests.hostile.draws import RANDOMS, draws, size
from tests.hostile.server import Server

NUMBERS = ("", "0", "-1", "1e999", "inf", "-inf", "nan", "1e-400", "9" * 400, "0x10", "1_000", "٣", " ", "1.5", "10**9")
LARGE = ("9" * 19, "1000000000000", "99999999999999999999999999", "-0", "+5", "1e18")
RUN = ("--batch", "--steps", "--timeout", "--learning-rate", "--context", "--seed", "--tp", "--pp", "--save-every")
PLAN = (
    "--batch", "--context", "--tp", "--memory-fraction", "--prefill-chunk", "--tiles", "--usd-per-gpu-hour",
    "--output-tokens", "--gpus",
)  # fmt: skip


SIMULATE = (
    "--rate", "--clients", "--requests", "--replicas", "--dp", "--tp", "--gpus", "--ttft", "--time-limit", "--seed",
    "--prefix-tokens", "--memory-fraction", "--repeats", "--jobs", "--usd-per-gpu-hour", "--think", "--router",
)  # fmt: skip
LOAD = ("--rate", "9/s", "--prompt-tokens", "9", "--output-tokens", "3", "--requests", "5", "--gpus", "1xH100")
SEARCH = (
    "--ttft", "--tpot", "--budget", "--rate", "--concurrency", "--most-gpus", "--prompt-tokens", "--output-tokens",
    "--top", "--max-context", "--memory-fraction",
)  # fmt: skip
SEARCHED = ("--prompt-tokens", "9", "--output-tokens", "3", "--gpus", "H100", "--most-gpus", "8")
COMMANDS = ("run", "plan", "rows", "routing", "streams", "simulate", "search", "train")


def rows(random: Random) -> str:
    """A table of published rows with one cell, line or quote that is odd."""
    table = list(csv.reader(io.StringIO(PUBLISHED.read_text(encoding="utf-8"))))[: 2 + size(random, 20)]
    at = random.randrange(len(table))
    cell = random.choice([*NUMBERS, *LARGE, "x" * size(random, 300_000), "\0", "\u2028", "<b>|", '"', "\n"])
    match random.choice(["cell", "cell", "drop", "double", "short", "raw"]):
        case "cell":
            table[at][random.randrange(len(table[at]))] = cell
        case "drop":
            del table[at]
        case "double":
            table.insert(at, table[at])
        case "short":
            table[at] = table[at][: random.randrange(len(table[at]))]
        case _:
            return '"' * size(random, 3000) + cell
    text = io.StringIO()
    csv.writer(text).writerows(table)
    return text.getvalue()


def routing(random: Random) -> str:
    """A measurement with an odd number of choices, or odd altogether."""
    count = random.choice([10**400, 2**62, 2**63, -1, 0, 1, 1.5, True, None, "1"])
    layer = random.choice(["text.layers.0.ffn", "text.layers.1.ffn", "x", 3, None, "y" * 5000])
    experts = [count] * random.choice([4, 16, size(random, 3000)])
    data = {"expert_load": [{"layer": layer, "choices_per_expert": experts}] * size(random, 30)}
    text = json.dumps(data)
    return random.choice([text, text, text[: size(random, 300)], "[" * size(random, 100_000), "9" * 5000])


@draws(300)
@given(RANDOMS)
def test_what_nobody_means_is_refused_or_answered_in_lines(server: Server, folder: Path, random: Random) -> None:
    streams: dict[str, str | int] = {}
    match random.choice(COMMANDS):
        case "run":  # always with something that cannot be, so that nothing is started
            option, number = random.choice(RUN), random.choice([*NUMBERS, *LARGE])
            command = ["run", "tiny/scout", option, number, "--ids", "1", "--steps", "0"]
        case "simulate":
            command = ["simulate", "tiny/scout", *LOAD, random.choice(SIMULATE), random.choice([*NUMBERS, *LARGE])]
        case "search":
            command = ["search", "tiny/scout", *SEARCHED, random.choice(SEARCH), random.choice([*NUMBERS, *LARGE])]
        case "train":  # of a variant that is not there, so that nothing is started
            option = random.choice(["--seed", "--repeats", "--threads", "--timeout", "--save-every", "--tp", "--dp"])
            command = ["train", "recipes/collapse", "--variant", "x", option, random.choice([*NUMBERS, *LARGE])]
        case "plan":
            command = ["plan", "tiny/scout", random.choice(PLAN), random.choice([*NUMBERS, *LARGE])]
        case "rows":
            (folder / "rows.csv").write_bytes(rows(random).encode("utf-8", "surrogatepass"))
            split = random.choice([[], ["--split", random.choice(["test", "calibrate", "foo", ""])]])
            command = ["accuracy", "--rows", "rows.csv", *split, *random.choice([[], ["-v"], ["--format", "json"]])]
        case "routing":
            (folder / "load.json").write_text(routing(random))
            command = ["plan", "tiny/scout", "--gpus", "1xH100", "--routing", "load.json"]
        case _:
            command = random.choice(
                [
                    ["plan", "tiny/scout"], ["validate", "nothing"], ["ls"], ["--version"],
                    ["report", "tiny/scout"], ["simulate", "tiny/scout", *LOAD], ["graph", "scout", "--format", "svg"],
                ]
            )  # fmt: skip
            streams = random.choice(
                [{"out": "closed"}, {"err": "closed"}, {"out": "/dev/full"}, {"err": "/dev/full"}, {"files": 8}]
            )
    plain = server.run(*command, cwd=folder)
    answer = server.run(*command, cwd=folder, **streams) if streams else plain  # type: ignore[arg-type]
    assert answer.code in (0, 1, 2, 3, 4), (command, streams, answer)
    assert "Traceback" not in answer.err, (command, streams, answer)
    if not streams:
        assert answer.is_clean, (command, answer)
    elif "err" in streams or streams == {"out": "closed"}:  # what cannot be told does not change how it ended
        assert answer.code == plain.code, (command, streams, answer)
