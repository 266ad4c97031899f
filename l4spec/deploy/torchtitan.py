"""A plan of training as a torchtitan configuration (TOML) with its torchrun commands.

torchtitan takes expert parallelism out of the data-parallel ranks (torchtitan/distributed/parallel_dims.py,
sparse mesh pp x dp_replicate x efsdp x ep x etp): with expert_tensor_parallel_degree = tp that is the plan's mesh,
whose data-parallel ranks for everything but experts are dp x ep. Its main branch dropped Llama 4 after 0.2.2.
"""

from dataclasses import dataclass

from l4spec.deploy.launch import HEAD, Command, Emission, FlagTable, LaunchRequest, refuse, servers
from l4spec.graph.layer_graph import LayerGraph

PORT = 29500
CONFIG = "l4spec.toml"
TABLE = FlagTable(
    engine="torchtitan",
    version="0.2.2",
    source="torchtitan/config/job_config.py of tag v0.2.2",
    flags={
        "model.name": "family",
        "model.flavor": "shape",
        "model.hf_assets_path": "tokenizer",
        "model.converters": "fp8",
        "optimizer.name": "optimizer",
        "training.local_batch_size": "sequences of a data-parallel rank in one forward pass",
        "training.global_batch_size": "batch",
        "training.seq_len": "context",
        "training.steps": "tokens of the run over those of a step",
        "training.dtype": "format of the kept weights",
        "training.mixed_precision_param": "format of computation",
        "training.mixed_precision_reduce": "format of gradients",
        "parallelism.data_parallel_replicate_degree": "dp x ep of ZeRO 0",
        "parallelism.data_parallel_shard_degree": "dp x ep of ZeRO 2 and 3",
        "parallelism.fsdp_reshard_after_forward": "ZeRO 2 or 3",
        "parallelism.tensor_parallel_degree": "tp",
        "parallelism.pipeline_parallel_degree": "pp",
        "parallelism.pipeline_parallel_schedule": "one forward, one backward",
        "parallelism.pipeline_parallel_microbatch_size": "micro-batch",
        "parallelism.context_parallel_degree": "none planned",
        "parallelism.expert_parallel_degree": "ep",
        "parallelism.expert_tensor_parallel_degree": "tp inside an expert",
        "activation_checkpoint.mode": "activation checkpointing",
        "quantize.linear.float8.filter_fqns": "what stays in bf16",
        "quantize.grouped_mm.float8.fqns": "experts in fp8",
    },
)
_DTYPES = {"adamw": "float32", "adamw-bf16": "bfloat16"}
"""Weight dtype of torchtitan, and so of AdamW's moments: float32 is the plan's master copy, bfloat16 has none."""


@dataclass(frozen=True, slots=True)
class Flavor:
    """A model that torchtitan ships: name, flavor, and the sizes that identify it."""

    name: str
    flavor: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    dense_size: int | None
    num_experts: int
    num_moe_layers: int


FLAVORS = (
    Flavor("llama4", "17bx16e_irope", 5120, 48, 40, 8, None, 16, 48),
    Flavor("llama4", "17bx128e_irope", 5120, 48, 40, 8, 16384, 128, 24),
    Flavor("llama3", "8B", 4096, 32, 32, 8, 14336, 0, 0),
    Flavor("llama3", "70B", 8192, 80, 64, 8, 28672, 0, 0),
    Flavor("llama3", "405B", 16384, 126, 128, 8, 53248, 0, 0),
)
"""torchtitan/models/llama4/__init__.py and llama3/__init__.py of tag v0.2.2."""
_LLAMA4_NOTES = (
    "torchtitan's llama4 is the language model alone, without normed queries and keys or attention temperature",
)


def emit_torchtitan(request: LaunchRequest) -> Emission:
    """The configuration and each host's torchrun. Raises UserError for what torchtitan cannot express."""
    asked = request.plan.deployment
    if asked.mode != "train":
        refuse(TABLE.engine, "it trains, and the plan is of serving", "give --mode train")
    if asked.trainer not in (None, TABLE.engine):
        refuse(TABLE.engine, f"the plan is of {asked.trainer}", f"give --trainer {TABLE.engine}")
    if asked.lora_rank is not None:
        which = f"rank {asked.lora_rank} on {', '.join(asked.lora_targets or ())}"
        refuse(
            TABLE.engine, f"it trains whole weights, and the plan is of adapters of {which}", "leave out --lora-rank"
        )
    flavor = _flavor(request)
    settings = _settings(request, flavor)
    assert settings.keys() <= TABLE.flags.keys(), "a setting is not in the table"
    hosts = servers(request, TABLE.engine, 1, PORT)[0].hosts
    notes = _notes(request, flavor, len(hosts))
    return Emission(TABLE, _commands(request, hosts), notes, ((CONFIG, to_toml(settings)),))


def _flavor(request: LaunchRequest) -> Flavor:
    shape = shape_of(request.graph)
    for flavor in FLAVORS:
        if shape == (
            flavor.hidden_size,
            flavor.num_layers,
            flavor.num_heads,
            flavor.num_kv_heads,
            flavor.dense_size,
            flavor.num_experts,
            flavor.num_moe_layers,
        ):
            return flavor
    known = ", ".join(f"{flavor.name} {flavor.flavor}" for flavor in FLAVORS)
    return refuse(TABLE.engine, f"no flavor has the shape of {request.graph.name}", f"it has {known}")


def shape_of(graph: LayerGraph) -> tuple[int | None, ...] | None:
    """Width, layers, heads, KV heads, width of dense layers, experts and mixtures; None if layers are unlike."""
    blocks = [node for node in graph.nodes if node.scope == "text" and node.layer is not None]
    attention = (node.declaration for node in blocks if node.role == "attention")
    ffn = [node.declaration for node in blocks if node.role == "ffn"]
    heads = {(layer.units_of("heads"), layer.units_of("kv_heads")) for layer in attention}
    dense = {layer.units_of("ffn") for layer in ffn if layer.routed is None and layer.activation == "silu"}
    mixtures = [(layer.routed, layer.units_of("expert_ffn")) for layer in ffn if layer.routed is not None]
    experts = {(routed.num_experts, routed.num_per_token, width) for routed, width in mixtures}
    if len(heads) != 1 or len(dense) > 1 or len(experts) > 1:
        return None
    (num_heads, num_kv_heads), (num_experts, top_k, width) = heads.pop(), experts.pop() if experts else (0, 1, 8192)
    if (top_k, width) != (1, 8192):
        return None
    size = graph.model.text.stack.width.hidden_size
    return size, graph.num_layers, num_heads, num_kv_heads, dense.pop() if dense else None, num_experts, len(mixtures)


def _settings(request: LaunchRequest, flavor: Flavor) -> dict[str, object]:
    layout, asked = request.plan.layout, request.plan.deployment
    optimizer, ranks = asked.optimizer or "", layout.dp * layout.ep
    if asked.precision not in (None, "bf16", "fp8"):
        refuse(TABLE.engine, f"its settings for {asked.precision} are not written here", "--precision bf16 or fp8")
    if asked.fp8_matmuls not in (None, "fp8"):
        refuse(TABLE.engine, f"its filters do not say what {asked.fp8_matmuls} does", "leave out --fp8-matmuls")
    if optimizer not in _DTYPES:
        refuse(TABLE.engine, f"it has no optimizer {optimizer}", f"--optimizer {' or '.join(_DTYPES)}")
    if asked.gradient_bytes == 2 and _DTYPES[optimizer] == "float32":
        refuse(TABLE.engine, "it keeps gradients of its fp32 weights in fp32", "--gradient-bytes 4")
    if (asked.virtual_stages or 1) > 1:
        refuse(TABLE.engine, "its interleaved schedules cut the layers otherwise", "leave out --virtual-stages")
    if asked.batch % ranks:
        refuse(TABLE.engine, f"a batch of {asked.batch} does not divide among dp x ep = {ranks} ranks")
    replicate, shard, reshard = _zero(request)
    micro = min(asked.micro_batch or 1, asked.batch // ranks)
    settings: dict[str, object] = {
        "model.name": flavor.name,
        "model.flavor": flavor.flavor,
        "model.hf_assets_path": f"./assets/hf/{request.graph.name}",
        "model.converters": _converters(request),
        "optimizer.name": "AdamW",
        "training.local_batch_size": asked.batch // ranks if layout.pp > 1 else micro,
        "training.global_batch_size": asked.batch,
        "training.seq_len": asked.context,
        **_steps(request),
        "training.dtype": _DTYPES[optimizer],
        "training.mixed_precision_param": "bfloat16",
        "training.mixed_precision_reduce": "float32",
        "parallelism.data_parallel_replicate_degree": replicate,
        "parallelism.data_parallel_shard_degree": shard,
        "parallelism.fsdp_reshard_after_forward": reshard,
        "parallelism.tensor_parallel_degree": layout.tp,
        "parallelism.pipeline_parallel_degree": layout.pp,
        "parallelism.pipeline_parallel_schedule": "1F1B",
        "parallelism.pipeline_parallel_microbatch_size": micro,
        "parallelism.context_parallel_degree": layout.cp,
        "parallelism.expert_parallel_degree": layout.ep,
        "parallelism.expert_tensor_parallel_degree": layout.tp if layout.ep > 1 else 1,
        "activation_checkpoint.mode": asked.activation_checkpointing,
    }
    if asked.precision == "fp8":
        settings["quantize.linear.float8.filter_fqns"] = ["output", "router.gate"]
        settings["quantize.grouped_mm.float8.fqns"] = ["experts"] if flavor.num_experts else []
    return settings


def _steps(request: LaunchRequest) -> dict[str, object]:
    """Optimizer steps of the planned tokens; torchtitan's own number where none were planned."""
    asked, tokens = request.plan.deployment, request.plan.request.get("train_tokens")
    return {} if tokens is None else {"training.steps": max(1, round(tokens / (asked.batch * asked.context)))}


def _converters(request: LaunchRequest) -> list[str]:
    if request.plan.deployment.precision != "fp8":
        return []
    moe = ["quantize.grouped_mm.float8"] if request.num_experts else []
    return ["quantize.linear.float8", *moe]


def _zero(request: LaunchRequest) -> tuple[int, int, str]:
    """Ranks that replicate, ranks that shard, and when weights are gathered, for the plan's ZeRO stage."""
    layout, stage = request.plan.layout, request.plan.deployment.zero_stage
    ranks = layout.dp * layout.ep
    if stage == 0 and layout.ep == layout.cp == 1:
        return ranks, 1, "default"
    if stage in (2, 3):
        return 1, ranks, "always" if stage == 3 else "never"
    degrees = " and ".join(f"{axis} {getattr(layout, axis)}" for axis in ("ep", "cp") if getattr(layout, axis) > 1)
    where = f"ZeRO stage {stage}" + (f" with {degrees}" if degrees else "")
    return refuse(TABLE.engine, f"it has no {where}", "--zero-stage 2 or 3 are its FSDP, 0 without ep and cp its DDP")


def _notes(request: LaunchRequest, flavor: Flavor, num_hosts: int) -> tuple[str, ...]:
    notes = [f"model.hf_assets_path has to hold the tokenizer of {request.graph.name}"]
    if flavor.name == "llama4":
        notes += _LLAMA4_NOTES
    if request.plan.request.get("train_tokens") is None:
        notes.append("training.steps is torchtitan's own: --tokens plans a run's")
    if request.plan.layout.tp > 1 and not request.plan.deployment.sequence_parallel:
        notes.append("its tensor parallelism divides norms and residual streams, too, as --sequence-parallel on plans")
    if request.plan.deployment.trainer is None:
        notes.append("memory is planned as l4spec's own runtime uses it: --trainer torchtitan plans torchtitan's")
    if request.plan.layout.pp == 1:
        notes.append("gradients are accumulated until global_batch_size sequences are seen")
    if (request.plan.deployment.zero_stage or 0) >= 2:
        notes.append(
            "FSDP keeps its shards in training.dtype and casts what it gathers, where the plan also keeps bf16 ones"
        )
    if request.plan.deployment.activation_checkpointing == "selective":
        notes.append(
            "its selective checkpointing keeps results of products and of attention alone: less than planned, and it "
            "computes more again"
        )
    if num_hosts > 1:
        notes.append(f"{HEAD} stands for the address of the first host")
    return tuple(notes)


def _commands(request: LaunchRequest, hosts: tuple[str, ...]) -> tuple[Command, ...]:
    start = ("torchrun", "--nproc_per_node", str(request.cluster.num_gpus // len(hosts)))
    run = ("-m", "torchtitan.train", "--job.config_file", CONFIG)
    if len(hosts) == 1:
        return (Command(hosts[0], (*start, "--standalone", *run)),)
    count = str(len(hosts))
    where = ("--rdzv_id", "l4spec", "--rdzv_backend", "c10d", "--rdzv_endpoint", f"{hosts[0]}:{PORT}")
    return tuple(
        Command(host, (*start, "--nnodes", count, "--node_rank", str(rank), *where, *run))
        for rank, host in enumerate(hosts)
    )


def to_toml(settings: dict[str, object]) -> str:
    """Dotted settings as TOML, one table for each section."""
    sections: dict[str, list[str]] = {}
    for name, value in settings.items():
        section, key = name.rsplit(".", 1)
        sections.setdefault(section, []).append(f"{key} = {_value(value)}")
    return "\n\n".join("\n".join((f"[{section}]", *rows)) for section, rows in sections.items()) + "\n"


def _value(value: object) -> str:
    import json

    return json.dumps(value)  # numbers, strings and lists of strings are written alike in JSON and TOML
