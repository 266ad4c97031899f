"""The corpus: digests of what the command line printed at the start commit, against what it prints today.

    python -m tests.corpus.corpus freeze FILE     digests of the start commit's l4spec (PYTHONPATH names its checkout)
    python -m tests.corpus.corpus compare         today's documents against what is expected; exit code 1 if they drift
    python -m tests.corpus.corpus accept          keep today's digests where a deviation in `deviations` explains them

`--only TEXT` takes the cases that hold a text, `--every N` each Nth. `start.json.gz` was made from commit 08344c7.
Documents are compared after a map, which docs/compatibility.md publishes: renamed keys and options are written as they
were, prose is left out, floats are rounded to nine digits (the order of a sum may change). What differs for a reason
stands in `deviations.DEVIATIONS` with its entry in CHANGELOG.md; its new digests are kept in `accepted.json.gz`, and
are expected exactly from then on.
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

from tests.corpus.deviations import (
    ADDED_KEYS,
    PROSE,
    RENAMED_KEYS,
    RENAMED_OPTIONS,
    RENAMED_VALUES,
    SECTIONS,
    SECTIONS_BY_KEY,
    deviation_of,
)

FOLDER = Path(__file__).parent
START, ACCEPTED = FOLDER / "start.json.gz", FOLDER / "accepted.json.gz"

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


def run(case: str, of_start: bool = False) -> Entry:
    """Digests of a case by section; `of_start` for the l4spec of the start commit, whose options a case names."""
    words = case.split()
    if not of_start:
        words = [RENAMED_OPTIONS.get(word, word) for word in words]
        if words[0] in ("plan", "compare") and words[1][0] != "-" and "--objective" not in words:
            words += ["--objective", "simplest"]  # the default of the start commit
    if "--emit" in words:
        code, text = _in_process(words)
        return {"exit": code, "rest": digest(_commands(text))}
    arguments = [*words, "--format", "json"]
    code, text = _in_new_process(arguments) if words[0] == "measure" else _in_process(arguments)
    return {"exit": code} | (digests(json.loads(text)) if text.strip() else {})


def digests(document: Any) -> Entry:
    """The digest of each section of a document."""
    return {name: digest(part) for name, part in sections(document).items()}


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


def _normal(value: Any, parts: dict[str, list[Any]], parent: str, whole: bool = False) -> Any:
    """A value in the words of the start commit; what has a section of its own goes there, unless it stays `whole`."""
    if isinstance(value, dict):
        if value.get("unit") == "seconds":  # a measured time
            return None
        kept = {}
        for key, inner in value.items():
            old = str(RENAMED_KEYS.get(key, key))
            if old in PROSE or f"{parent}.{key}" in ADDED_KEYS:
                continue
            section = old if old in SECTIONS else (SECTIONS_BY_KEY.get(f"{parent}.{old}") or SECTIONS_BY_KEY.get(old))
            if section is None or whole:
                kept[old] = _normal(inner, parts, key, whole)
            else:
                parts[section].append(_normal(inner, parts, key, whole=section != "latency"))
        return kept
    if isinstance(value, list):
        return [_normal(inner, parts, parent, whole) for inner in value]
    if isinstance(value, float):
        return f"{value:.9g}"
    if isinstance(value, str):
        if parent == "command":  # bf16 is written out since specs may say how their weights are stored
            value = value.replace(" --quantization bf16", "").replace(" --objective simplest", "")
        words = [RENAMED_VALUES.get(word, word) for word in value.split(" ")]
        return " ".join(sorted(map(_old_option, words)) if parent == "command" else words)
    return value


def _old_option(word: str) -> str:
    return next((old for old, new in RENAMED_OPTIONS.items() if new == word), word)


def digest(part: Any) -> str:
    """Eight hexadecimal digits of the canonical JSON."""
    text = json.dumps(part, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def freeze(chosen: Iterable[str], of_start: bool = False) -> dict[str, Entry]:
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
        return {case: run(case, of_start) for case in chosen}
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
    """A section of a case that is not what is expected."""

    case: str
    section: str
    expected: str | int | None
    today: str | int | None


def drifts(today: dict[str, Entry]) -> Iterator[Drift]:
    """What differs from what was accepted; of a case without an accepted entry, from the start commit unexplained."""
    start, accepted = read(START), read(ACCEPTED)
    for case, entry in today.items():
        differences = list(_differences(case, start[case] | accepted.get(case, {}), entry))
        changed = {drift.section: drift.today for drift in differences}
        nameless = {section for _, section in unexplained({case: changed})}
        yield from (drift for drift in differences if case in accepted or drift.section in nameless)


def _differences(case: str, expected: Entry, entry: Entry) -> Iterator[Drift]:
    for section in sorted(expected.keys() | entry.keys()):
        if entry.get(section) != expected.get(section):
            yield Drift(case, section, expected.get(section), entry.get(section))


def unexplained(changed: dict[str, Entry]) -> Iterator[tuple[str, str]]:
    """(case, section) of changed sections without a deviation. Another layout, where one is explained, changes all."""
    for case, entry in changed.items():
        if not ("layout" in entry and deviation_of(case, "layout")):
            yield from ((case, section) for section in entry if deviation_of(case, section) is None)


def changes(today: dict[str, Entry]) -> dict[str, Entry]:
    """The sections that differ from the start commit, those that are gone as None."""
    start = read(START)
    differing = {case: {d.section: d.today for d in _differences(case, start[case], e)} for case, e in today.items()}
    return {case: entry for case, entry in differing.items() if entry}


def main() -> int:
    """Freeze, compare or accept; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=("freeze", "compare", "accept"))
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each Nth case only")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases that hold this text only")
    options = parser.parse_args()
    if options.action == "freeze":
        from l4spec.library import shipped_specs

        write(options.file, freeze(list(cases(tuple(shipped_specs())))[:: options.every], of_start=True))
        return 0
    today = freeze([case for case in read(START) if options.only in case][:: options.every])
    return accept(today) if options.action == "accept" else report(today)


def accept(today: dict[str, Entry]) -> int:
    """Expect today's documents from now on, if every change is explained."""
    changed = changes(today)
    if nameless := list(unexplained(changed)):
        print(f"{len(nameless):,} sections differ without a deviation, nothing is accepted:")
        print("\n".join(f"  {section}: l4spec {case}" for case, section in nameless[:20]))
        return 1
    kept = {case: entry for case, entry in read(ACCEPTED).items() if case not in today}
    write(ACCEPTED, {case: (kept | changed)[case] for case in read(START) if case in kept or case in changed})
    return 0


def report(today: dict[str, Entry]) -> int:
    """Print how many documents equal the start commit, which differ for a reason, and which have drifted."""
    changed, result = changes(today), list(drifts(today))
    drifted = {drift.case for drift in result}
    print(
        f"{len(today):,} documents: {len(today) - len(changed):,} equal to the start commit, {len(drifted):,} drifted"
    )
    reasons = Counter(deviation_of(case, section) for case, entry in changed.items() for section in entry)
    for deviation, count in reasons.most_common():
        print(f"  {count:,} sections differ: {deviation.reason if deviation else 'another layout is chosen'}")
    for name, count in Counter(drift.section for drift in result).items():
        print(f"  {count:,} drifted in {name}")
    for drift in result[:20]:
        print(f"  drift in {drift.section}: l4spec {drift.case}\n    {drift.expected} -> {drift.today}")
    return 1 if result else 0


if __name__ == "__main__":
    sys.exit(main())
