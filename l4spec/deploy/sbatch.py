"""A plan as a Slurm batch script: vLLM's servers, or torchtitan's training run, on the nodes that Slurm gives.

Slurm's nodes take the place of `host-0`, `host-1`, … in the order of the allocation; every command of a launch is one
step of the job, on its own node (slurm.schedmd.com, sbatch and srun).
"""

import re
import shlex

from l4spec.deploy.launch import Command, FlagTable, LaunchRequest, heading
from l4spec.deploy.torchtitan import emit_torchtitan
from l4spec.deploy.vllm import emit_vllm

TABLE = FlagTable(
    engine="Slurm",
    version="24.05",
    source="slurm.schedmd.com, sbatch and srun",
    flags={
        "--job-name": "the model",
        "--nodes": "hosts",
        "--gpus-per-node": "GPUs of a host",
        "--ntasks-per-node": "one process a node starts the others",
        "--exclusive": "no other job on these hosts",
        "--nodelist": "the host of a command",
        "--overlap": "several commands on one host",
    },
)
_HOST = re.compile(r"host-([0-9]+)")
_HOSTS_ONLY = re.compile(r"host-[0-9]+(:[0-9]+)?(,host-[0-9]+(:[0-9]+)?)*")
_YOURS = "partition, account and time limit are your cluster's: add them, or give them to sbatch"


def to_sbatch(request: LaunchRequest) -> str:
    """The script. Raises UserError for what vLLM, or torchtitan in training, cannot express."""
    emission = (emit_vllm if request.plan.deployment.mode == "serve" else emit_torchtitan)(request)
    notes = tuple(
        note for note in emission.notes if "addresses" not in note and "address of the first host" not in note
    )
    comments = heading(emission.table, request, (*notes, _YOURS))
    hosts = sorted({command.host for command in emission.commands}, key=lambda host: int(host.rpartition("-")[2]))
    options = {
        "--job-name": re.sub(r"[^A-Za-z0-9._-]+", "-", request.graph.name)[:60],
        "--nodes": len(hosts),
        "--ntasks-per-node": 1,
        "--gpus-per-node": min(request.cluster.gpus_per_host, request.cluster.num_gpus),
    }
    lines = ["#!/bin/bash", *(f"#SBATCH {name}={value}" for name, value in options.items()), "#SBATCH --exclusive"]
    lines += [*comments, "set -euo pipefail", 'hosts=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))']
    for name, text in emission.files:
        lines += [f"cat > {shlex.quote(name)} <<'EOF'", text.rstrip("\n"), "EOF"]
    for command in emission.commands:
        lines += ["", f"{_step(command, request.model)} &"]
    serving = request.plan.deployment.mode == "serve"
    end = (
        "wait -n  # when one server ends, so does the job"
        if serving
        else 'for step in $(jobs -p); do wait "$step"; done'
    )
    return "\n".join([*lines, "", end, ""])


def _step(command: Command, model: str | None) -> str:
    node = _word(command.host)
    start = f"srun --nodes=1 --ntasks=1 --overlap --nodelist={node}"
    env = ["env", *(f"{name}={value}" for name, value in command.env)] if command.env else []
    rows: list[list[str]] = [[start, *map(_word, env)], []]
    for argument in command.argv:
        if argument.startswith("--"):
            rows.append([])
        rows[-1].append(shlex.quote(argument) if argument == model else _word(argument))
    return " \\\n    ".join(" ".join(row) for row in rows if row)


def _word(argument: str) -> str:
    """An argument as bash reads it, with Slurm's nodes instead of our hosts."""
    if _HOSTS_ONLY.fullmatch(argument):
        return '"' + _HOST.sub(_node, argument) + '"'
    return shlex.quote(argument)


def _node(match: re.Match[str]) -> str:
    return f"${{hosts[{match[1]}]}}"
