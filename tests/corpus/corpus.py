"""The corpus: digests of what the command line printed at the start commit, against what it prints today.

    python tests/corpus/corpus.py freeze FILE     digests of the l4spec that is importable, to FILE
    python tests/corpus/corpus.py compare         today's documents against start.json.gz; exit code 1 if they drift
    python tests/corpus/corpus.py accept          keep today's digests of the sections named in `DEVIATIONS`

`start.json.gz` was made from commit 08344c7 with `PYTHONPATH` pointing to a checkout of it. Documents are compared
after the map below, which docs/compatibility.md publishes: renamed keys and options are written as they were, prose is
left out, floats are rounded to nine digits (the order of a sum may change). What differs for a reason stands in
`DEVIATIONS` with its entry in CHANGELOG.md; `accept` keeps its new digests in `accepted.json.gz`, after which they are
held too.
"""

import argparse
import gzip
import hashlib
import io
import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
START, ACCEPTED = FOLDER / "start.json.gz", FOLDER / "accepted.json.gz"

RENAMED_KEYS: dict[str, str] = {"l4spec_model_table": "l4spec_herd"}
"""Keys of JSON documents: today's name → the name at the start commit."""
ADDED_KEYS: frozenset[str] = frozenset(
    {
        *("plan.request", "deployment.max_context", "deployment.as_published", "deployment.chosen_by"),
        *("layouts.ttft_seconds", "layouts.time_per_output_token_seconds", "layouts.tokens_per_second_per_gpu"),
        *("layouts.step_time_seconds", "memory_per_device.unknown"),
    }
)
"""Keys that have been added since, each with the object that it stands in."""
RENAMED_OPTIONS: dict[str, str] = {}
"""Options: the name at the start commit → today's name."""
RENAMED_VALUES: dict[str, str] = {"max-free-memory": "balanced"}
"""Words in documents that programs read: today's → the one at the start commit."""
PROSE = frozenset(
    (
        *("arithmetic", "capacity_source", "change", "condition", "label", "name", "note", "notes", "policy_explained"),
        *("reason", "reasons", "refusal", "refusals", "section", "source", "sources", "time_note", "what"),
    )
)
"""Keys whose values are sentences or names for people: free to change. Numbers beside them are compared."""
SECTIONS = frozenset({"latency", "communication", "train_traffic", "suggestions"})
"""Parts of a plan with a digest of their own; `rest` is everything else, `exit` the exit code."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """A section that may differ, in documents whose case starts with one of `commands`, and why."""

    section: str
    commands: tuple[str, ...]
    reason: str
    word: str = ""
    """What else the case holds."""


DEVIATIONS: tuple[Deviation, ...] = (
    Deviation("latency", ("plan ", "compare "), "A step's time includes the gather of logits"),
    Deviation(
        "rest",
        ("plan ",),
        "launch in a format that is not the published one names no published checkpoint",
        "fp8 --emit",
    ),
    Deviation("communication", ("plan ", "compare "), "ranks gather logits in bf16, as engines do, not in fp32"),
    Deviation("rest", ("verify ",), "What is timed is what is planned and what ranks count"),
    *(
        Deviation(section, ("plan ",), "of vLLM by its profiling run", "--engine vllm")
        for section in ("rest", "suggestions", "exit")
    ),
    *(
        Deviation(section, ("plan ", "compare "), "It is the default of `plan`, decides what fits", "deepseek-v3")
        for section in ("rest", "suggestions", "exit", "communication")
    ),
    *(
        Deviation(section, ("plan ",), "Device memory is what drivers report", gpus)
        for section in ("rest", "latency", "suggestions", "communication", "train_traffic", "exit")
        for gpus in ("xA100", "xB200", "xMI300X", "xm3-ultra")
    ),
)
"""Defects of the start commit that were repaired; CHANGELOG.md lists each with its old and new number."""

HARDWARE = ("8xH100", "1xH100", "2x8xH100", "8xH200", "16xA100", "8xB200", "8xMI300X", "1xm3-ultra")
SCHEMES = ("bf16", "fp8", "int4-mixed", "w4a16")
ENGINES = ("ideal", "full", "vllm", "vllm-hybrid", "sglang-hybrid", "tensorrt-llm", "llama.cpp")
TARGETS = ("vllm", "sglang", "tensorrt-llm", "torchtitan", "k8s")
LAUNCHED = ("scout", "maverick", "llama-3.1-70b", "qwen3-235b-a22b", "mixtral-8x7b")
FURTHER = (
    "--gpus 8xH100 --tp 4 --ep 2 --batch 16",
    "--gpus 8xH100 --tp 2 --pp 4 --batch 64 --output-tokens 512",
    "--gpus 8xH100 --tp 2 --dp 4 --engine vllm --batch 64 --context 4k --output-tokens 1k",
    "--gpus 8xH100 --cp 2 --context 4k",
    "--gpus 8xH100 --objective max-context --kv-dtype fp8",
    "--gpus 8xH100 --objective min-gpus --memory-fraction 0.8 --prefill-chunk 2048",
    "--gpus 16xH100 --engine vllm --usd-per-gpu-hour 2 --batch 32",
    "--gpus 8xH100 --tiles 3",
    "--gpus 64xH100 --mode train --zero-stage 3 --checkpointing none --tokens 1T --usd-per-gpu-hour 2 --batch 128",
    "--gpus 64xH100 --mode train --precision fp8 --optimizer adamw-bf16 --micro-batch 2 --batch 256",
    "--gpus 64xH100 --mode train --pp 2 --ep 4 --optimizer sgd --zero-stage 2 --batch 64",
    "--tp 8 --context 1000",
)
MEASURED = (
    "tiny/scout",
    "tiny/maverick --train",
    "tiny/deepseek --batch 2",
    "tiny/scout --quantization w4a16",
    "tiny/scout --tp 2",
    "tiny/maverick --tp 2 --ep 2 --train",
)


def cases(specs: tuple[str, ...]) -> Iterator[str]:
    """Every command line of the corpus, with the options of the start commit; `--format json` is added when it runs."""
    for spec, gpus in product(specs, HARDWARE):
        for scheme, engine in product(SCHEMES, ENGINES):
            yield f"plan {spec} --gpus {gpus} --batch 16 --quantization {scheme} --engine {engine}"
        yield f"plan {spec} --gpus {gpus} --batch 16 --mode train"
    for spec in specs:
        yield f"plan {spec}"
        yield f"verify {spec}"
        yield from (f"plan {spec} {options}" for options in FURTHER)
    for gpus in HARDWARE:
        yield f"plan --gpus {gpus}"
        yield f"compare scout maverick behemoth llama-3.1-405b --gpus {gpus}"
    yield f"compare {' '.join(specs)}"
    yield "compare scout maverick --gpus 64xH100 --mode train --batch 64"
    yield from (f"measure {arguments}" for arguments in MEASURED)
    for target, spec, gpus, scheme in product(TARGETS, LAUNCHED, ("8xH100", "2x8xH100", "8xH200"), ("bf16", "fp8")):
        mode = " --mode train" if target == "torchtitan" else f" --quantization {scheme}"
        if target != "torchtitan" or scheme == "bf16":
            yield f"plan {spec} --gpus {gpus} --batch 8{mode} --emit {target}"


Entry = dict[str, Any]


def run(case: str) -> Entry:
    """Digests of a case by section, and of a plan the bounds of its steps, to tell how far a difference goes."""
    words = [RENAMED_OPTIONS.get(word, word) for word in case.split()]
    if words[0] in ("plan", "compare") and words[1][0] != "-" and "--objective" not in words:
        words += ["--objective", "max-free-memory"]  # the default of the start commit
    if "--emit" in words:
        code, text = _in_process(words)
        return {"exit": code, "rest": digest(_commands(text))}
    arguments = [*words, "--format", "json"]
    code, text = _in_new_process(arguments) if words[0] == "measure" else _in_process(arguments)
    if not text.strip():
        return {"exit": code}
    document = json.loads(text)
    entry = {"exit": code} | {name: digest(part) for name, part in sections(document).items()}
    figures = _bounds(document)
    return entry | ({"bounds": figures} if figures else {})


def _in_process(arguments: list[str]) -> tuple[int, str]:
    from l4spec.cli import main

    out, before = io.StringIO(), sys.argv
    sys.argv = ["l4spec", *arguments]
    try:
        with redirect_stdout(out), redirect_stderr(io.StringIO()):
            main()
    except SystemExit as left:
        return (left.code if isinstance(left.code, int) else 0), out.getvalue()
    finally:
        sys.argv = before
    return 0, out.getvalue()


def _in_new_process(arguments: list[str]) -> tuple[int, str]:
    """Ranks are forked, which a process that has computed must not do."""
    line = [sys.executable, "-m", "l4spec", *arguments, "--no-progress"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout


def _commands(text: str) -> list[str]:
    """A launch without its comments, which are prose."""
    return [line for line in text.splitlines() if not line.lstrip().startswith("#")]


def sections(document: Any) -> dict[str, Any]:
    """A document in the words of the start commit, cut into the sections that are compared by themselves."""
    parts: dict[str, list[Any]] = defaultdict(list)
    top = "plan" if isinstance(document, dict) and "l4spec_plan" in document else ""
    parts["rest"] = [_normal(document, parts, top)]
    return {name: part for name, part in parts.items() if any(part)}


def _normal(value: Any, parts: dict[str, list[Any]], parent: str) -> Any:
    if isinstance(value, dict):
        if value.get("unit") == "seconds":  # a measured time
            return None
        kept = {}
        for key, inner in value.items():
            old = RENAMED_KEYS.get(key, key)
            if old in PROSE or f"{parent}.{key}" in ADDED_KEYS:
                continue
            if old in SECTIONS:
                parts[old].append(_normal(inner, parts, key))
            else:
                kept[old] = _normal(inner, parts, key)
        return kept
    if isinstance(value, list):
        return [_normal(inner, parts, parent) for inner in value]
    if isinstance(value, float):
        return f"{value:.9g}"
    if isinstance(value, str):
        if parent == "command":  # bf16 is written out since specs may say how their weights are stored
            value = value.replace(" --quantization bf16", "").replace(" --objective max-free-memory", "")
        words = [RENAMED_VALUES.get(word, word) for word in value.split(" ")]
        return " ".join(sorted(map(_old_option, words)) if parent == "command" else words)
    return value


def _old_option(word: str) -> str:
    return next((old for old, new in RENAMED_OPTIONS.items() if new == word), word)


def digest(part: Any) -> str:
    """Eight hexadecimal digits of the canonical JSON."""
    text = json.dumps(part, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _bounds(document: Any) -> list[str]:
    """Lower bounds of the seconds of a prefill, a decode step and a training step, to five digits."""
    latency = document.get("latency") if isinstance(document, dict) else None
    steps = [latency.get(name) for name in ("prefill", "decode", "train")] if latency else []
    return [f"{step['bound_seconds']:.5g}" for step in steps if step]


def freeze(chosen: Iterable[str]) -> dict[str, Entry]:
    """Every case with its digests; equal specs are compiled once."""
    import l4spec

    lower, known = l4spec.compile, defaultdict[str, list[tuple[Any, Any]]](list)

    def compiled(spec: Any) -> Any:
        graphs = known[spec.name]
        graph = next((graph for other, graph in graphs if other == spec), None)
        if graph is None:
            graph = lower(spec)
            graphs.append((spec, graph))
        return graph

    l4spec.compile = compiled
    try:
        return {case: run(case) for case in chosen}
    finally:
        l4spec.compile = lower


def read(path: Path) -> dict[str, Entry]:
    """A file of digests."""
    if not path.exists():
        return {}
    entries: dict[str, Entry] = json.loads(gzip.decompress(path.read_bytes()))
    return entries


def write(path: Path, entries: dict[str, Entry]) -> None:
    """A file of digests, the same bytes for the same entries."""
    text = json.dumps(entries, separators=(",", ":")).encode()
    path.write_bytes(gzip.compress(text, 9, mtime=0))


@dataclass(frozen=True, slots=True)
class Drift:
    """A section of a case that is neither what it was nor what was accepted."""

    case: str
    section: str
    before: Entry
    today: Entry


def deviation_of(case: str, section: str) -> Deviation | None:
    """The deviation that lets a section of a case differ from the start commit."""
    of_section = (d for d in DEVIATIONS if d.section == section and case.startswith(d.commands))
    return next((deviation for deviation in of_section if deviation.word in case), None)


def drifts(today: dict[str, Entry]) -> Iterator[Drift]:
    """What differs from the start commit without a deviation, or from what was accepted for one."""
    start, accepted = read(START), read(ACCEPTED)
    for case, entry in today.items():
        before = start[case]
        for section in sorted((before.keys() | entry.keys()) - {"bounds"}):
            value = entry.get(section)
            if value == before.get(section):
                continue
            kept = accepted.get(case, {}).get(section, value)
            if deviation_of(case, section) is None or value != kept:
                yield Drift(case, section, before, entry)


def main() -> int:
    """Freeze, compare or accept; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=("freeze", "compare", "accept"))
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each Nth case only")
    options = parser.parse_args()
    if options.action == "freeze":
        from l4spec.library import shipped_specs

        write(options.file, freeze(list(cases(tuple(shipped_specs())))[:: options.every]))
        return 0
    today = freeze(list(read(START))[:: options.every])
    if options.action == "accept":
        write(ACCEPTED, dict(_accepted(today)))
        return 0
    return report(today)


def _accepted(today: dict[str, Entry]) -> Iterator[tuple[str, Entry]]:
    start = read(START)
    for case, entry in today.items():
        different = {s: v for s, v in entry.items() if v != start[case].get(s) and deviation_of(case, s)}
        if different:
            yield case, different


def report(today: dict[str, Entry]) -> int:
    """Print how many documents equal the start commit, which differ for a reason, and which have drifted."""
    start = read(START)
    result = list(drifts(today))
    deviating = Counter(
        deviation.reason
        for case, entry in today.items()
        for section, value in entry.items()
        if value != start[case].get(section) and (deviation := deviation_of(case, section))
    )
    drifted = {drift.case for drift in result}
    equal = sum({**e, "bounds": 0} == {**start[case], "bounds": 0} for case, e in today.items())
    print(f"{len(today):,} documents: {equal:,} equal, {len(drifted):,} drifted")
    for reason, count in deviating.items():
        print(f"  {count:,} sections differ: {reason}")
    for name, count in Counter(drift.section for drift in result).items():
        print(f"  {count:,} drifted in {name}")
    for drift in result[:20]:
        print(f"  drift in {drift.section}: l4spec {drift.case}")
        print(f"    {drift.before} -> {drift.today}")
    return 1 if result else 0


if __name__ == "__main__":
    sys.exit(main())
