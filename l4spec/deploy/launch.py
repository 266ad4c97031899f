"""Common parts of every engine's launch: its inputs, and commands as quoted text, one flag per line."""

import shlex
from dataclasses import dataclass
from typing import NoReturn

from l4spec.errors import Problem, UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.units import ceil_div
from planners.catalog.cluster import parse_cluster
from planners.catalog.hardware import Hardware
from planners.plan_types import ClusterInfo, Plan

HEAD = "host-0"


@dataclass(frozen=True, slots=True)
class FlagTable:
    """The flags that an emitter may write, each with its meaning; checked in `version` of the engine's `source`."""

    engine: str
    version: str
    source: str
    flags: dict[str, str]

    def written(self, values: dict[str, object]) -> tuple[str, ...]:
        """Flags with their values as arguments: True is a flag without a value, None and False leave a flag out."""
        arguments: list[str] = []
        for flag, value in values.items():
            assert flag in self.flags, f"{flag} is not in the table of {self.engine}"
            if value is True:
                arguments.append(flag)
            elif value is not None and value is not False:
                arguments += [flag, str(value)]
        return tuple(arguments)


@dataclass(frozen=True, slots=True)
class Command:
    """Command line of one process; `host` names its node, from `host-0`."""

    host: str
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Emission:
    """A launch of one engine: files that its commands read, commands, and notes on settings it cannot express."""

    table: FlagTable
    commands: tuple[Command, ...]
    notes: tuple[str, ...]
    files: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """A plan to launch, with the checkpoint and the images of a prompt, which the plan lacks.

    `changed`: the model differs from the shipped one (`--set`), so that no published checkpoint has its shape.
    """

    plan: Plan
    graph: LayerGraph
    model: str | None = None
    images: int = 0
    changed: bool = False

    @property
    def cluster(self) -> ClusterInfo:
        """The GPUs of the plan; the command line refuses a plan without."""
        assert self.plan.cluster is not None, "asked before"
        return self.plan.cluster

    @property
    def hardware(self) -> Hardware:
        """The catalogue's entry of the GPUs, or the user's own."""
        return parse_cluster(self.cluster.text).hardware

    @property
    def tokens(self) -> int:
        """Tokens of the longest sequence that the engine is to take."""
        asked = self.plan.deployment
        return asked.max_context or asked.context

    @property
    def num_experts(self) -> int:
        """Routed experts of the widest mixture; 0 in a dense model."""
        return self.graph.num_experts

    @property
    def sequences(self) -> int | None:
        """Most sequences in a step of a data-parallel rank: `--max-num-seqs`, or as many as it has of the load.

        None, for the engine's own limit, where requests arrive at a rate or no load was given.
        """
        plan, given = self.plan, self.plan.request.get("max_num_seqs")
        if given is not None:
            return int(given)
        if plan.request.get("rate") is not None or plan.deployment.batch_origin == "default":
            return None
        return ceil_div(plan.deployment.batch, plan.layout.dp * plan.layout.ep)

    @property
    def load_notes(self) -> tuple[str, ...]:
        """Notes on the limit of sequences, where it is the engine's own."""
        if self.sequences is not None:
            return ()
        why = "no load was planned" if self.plan.request.get("rate") is None else "requests arrive at a rate"
        return (f"{why}: the engine keeps its own limit of sequences; --max-num-seqs changes it",)

    @property
    def memory_fraction(self) -> float | None:
        """The planned share of device memory; None if the whole device was planned, which no engine takes."""
        share = self.plan.deployment.memory_fraction
        return None if share >= 1 else share


def refuse(engine: str, reason: str, hint: str = "") -> NoReturn:
    """Raise UserError: the engine cannot run this plan, and why."""
    raise UserError([Problem(f"{engine} cannot express this plan: {reason}", path="--emit", hint=hint)])


@dataclass(frozen=True, slots=True)
class LaunchedServer:
    """One copy of the model: which hosts it spans, and on a shared host which of its GPUs and which port."""

    hosts: tuple[str, ...]
    devices: tuple[int, ...] = ()
    port: int = 8000

    @property
    def env(self) -> tuple[tuple[str, str], ...]:
        """The GPUs of a shared host, where there are several servers on it."""
        return (("CUDA_VISIBLE_DEVICES", ",".join(map(str, self.devices))),) if self.devices else ()


def servers(request: LaunchRequest, engine: str, num_servers: int, port: int) -> tuple[LaunchedServer, ...]:
    """Equal servers over the plan's hosts in rank order; refuses GPUs that do not divide into whole hosts or shares."""
    cluster, room = request.cluster, request.cluster.gpus_per_host
    size = cluster.num_gpus // num_servers
    if size >= room:
        if size % room:
            hint = f"plan on hosts of an equal number of GPUs, as {ceil_div(size, room)}x…"
            refuse(engine, f"a server of {size} GPUs does not fill whole hosts of {room}", hint)
        span = size // room
        return tuple(
            LaunchedServer(tuple(f"host-{number}" for number in range(first * span, (first + 1) * span)), port=port)
            for first in range(num_servers)
        )
    if room % size:
        refuse(engine, f"servers of {size} GPUs do not divide hosts of {room}")
    each = room // size
    return tuple(
        LaunchedServer(
            (f"host-{number // each}",),
            tuple(range(number % each * size, (number % each + 1) * size)),
            port + number % each,
        )
        for number in range(num_servers)
    )


def dp_note(request: LaunchRequest) -> tuple[str, ...]:
    """Note on the load balancer in front of independent replicas."""
    if request.plan.layout.dp == 1:
        return ()
    return (f"dp{request.plan.layout.dp} is that many servers of their own: put a load balancer in front of them",)


def heading(table: FlagTable, request: LaunchRequest, notes: tuple[str, ...]) -> list[str]:
    """Comments on the plan, the source of the flags, and differences of the engine from the plan."""
    plan, asked = request.plan, request.plan.deployment
    lines = (
        f"{plan.model}: {plan.layout} on {request.cluster.text}, {asked.context} tokens, batch {asked.batch}, "
        f"planned as engine {asked.engine}",
        f"{table.engine} {table.version}, checked against {table.source}",
        *(f"note: {note}" for note in notes),
    )
    return [f"# {' '.join(line.split())}" for line in lines]  # a name with a line break must not become a command


def to_shell(emission: Emission, request: LaunchRequest) -> str:
    """A shell script: comments with the plan and the notes, the files, then each node's command."""
    lines = heading(emission.table, request, emission.notes)
    for name, text in emission.files:
        lines += [f"cat > {shlex.quote(name)} <<'EOF'", text.rstrip("\n"), "EOF"]
    for command in emission.commands:
        lines += ["", f"# on {command.host}", written(command)]
    return "\n".join(lines) + "\n"


def written(command: Command) -> str:
    """A command as a shell reads it, each flag with its value on a line of its own."""
    rows: list[list[str]] = [[f"{name}={shlex.quote(value)}" for name, value in command.env]]
    for argument in command.argv:
        if argument.startswith("--"):
            rows.append([])
        rows[-1].append(shlex.quote(argument))
    return " \\\n    ".join(" ".join(row) for row in rows)
