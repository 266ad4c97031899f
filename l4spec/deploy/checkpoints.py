"""Checkpoint of a launch, and the flags that describe how its weights are stored."""

import re
from collections.abc import Container
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from l4spec.deploy.launch import LaunchRequest, refuse
from l4spec.errors import Problem, UserError
from l4spec.quantization.published import UNQUANTIZED, published_name
from planners.catalog.engine_formats import WeightFormats

_PLAIN = ("bf16", "fp16", "fp32")
_LONGEST_ID = 1000
_HUGGING_FACE_ID = re.compile(r"Hugging Face ([\w.-]+/[\w.-]+)")
_FILE = Path(__file__).with_name("checkpoints.yaml")


@dataclass(frozen=True, slots=True)
class KnownCheckpoint:
    """A published checkpoint: how it is stored, by our schemes' names, and the longest sequence that it takes."""

    id: str
    scheme: str
    max_tokens: int
    source: str


@cache
def known_checkpoints() -> dict[tuple[str, int], tuple[KnownCheckpoint, ...]]:
    """Every one that we know, by the model's name and its number of parameters."""
    models = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return {
        (model["model"], model["parameters"]): tuple(KnownCheckpoint(**each) for each in model["checkpoints"])
        for model in models
    }


def _of_model(request: LaunchRequest) -> tuple[KnownCheckpoint, ...]:
    return known_checkpoints().get((request.graph.name, request.plan.params.total), ())


def known_checkpoint(request: LaunchRequest, scheme: str) -> KnownCheckpoint | None:
    """The published checkpoint of the planned model and length in a scheme; None if none is known, or one named."""
    if request.model is not None or request.changed:
        return None
    each = (each for each in _of_model(request) if each.scheme == scheme and each.max_tokens >= request.tokens)
    return next(each, None)


def checkpoint(request: LaunchRequest, packs_itself: Container[str] = ()) -> tuple[str, tuple[str, ...]]:
    """The model to load, and notes on the source of its name, which is never chosen silently.

    `packs_itself`: schemes that the engine makes of unquantized weights while it loads them. If the plan's weights are
    neither those nor as published, no published checkpoint is named, because it would differ from the plan.
    """
    changed = ("the spec was changed, so no published checkpoint has its shape: --model names yours",)
    if request.model is not None:
        _require_checkpoint(request.model, "--model")
        return request.model, ()
    if request.changed:
        name = _placeholder(request.graph.name)
        return name, (*changed, f"{name} is a placeholder")
    asked, published = request.plan.deployment, published_name(request.graph.model.spec)
    unquantized = published == UNQUANTIZED and (asked.quantization in packs_itself or asked.quantization in _PLAIN)
    for scheme in (asked.quantization, *([UNQUANTIZED] if unquantized else [])):
        if known := known_checkpoint(request, scheme):
            what = f"{known.id} is the published one in {known.scheme}, for up to {known.max_tokens:,} tokens"
            return known.id, (f"the checkpoint {what}; --model changes it", *_stored_otherwise(request))
    if not asked.as_published and not unquantized:
        name = _placeholder(f"{request.graph.name}-{asked.quantization}")
        note = f"the published weights are in {published}: {name} stands for a checkpoint in {asked.quantization}"
        return name, (f"{note}, give --model",)
    if too_short := [each for each in _of_model(request) if each.max_tokens < request.tokens]:
        longest = max(each.max_tokens for each in too_short)
        note = f"published checkpoints take at most {longest:,} tokens, {request.tokens:,} were planned"
        name = _placeholder(request.graph.name)
        return name, (f"{note}: {name} is a placeholder, give --model",)
    for source in request.graph.model.spec.sources:
        if match := _HUGGING_FACE_ID.search(source):
            _require_checkpoint(match[1], "sources")
            return match[1], (f"the checkpoint {match[1]} is the one that the spec's sources name; --model changes it",)
    name = _placeholder(request.graph.name)
    return name, (f"the spec's sources name no Hugging Face checkpoint: {name} is a placeholder, give --model",)


def _placeholder(name: str) -> str:
    """Placeholder for a checkpoint without a known publication: a path, which is not a valid id of the hub."""
    return f"path/to/{name}"


def _stored_otherwise(request: LaunchRequest) -> tuple[str, ...]:
    """Notes on an fp8 plan of bf16 weights although an fp8 checkpoint is published: its name and its scheme."""
    scheme = request.plan.deployment.quantization
    if not scheme.startswith("fp8") or known_checkpoint(request, scheme):
        return ()
    others = [each for each in _of_model(request) if each.scheme.startswith("fp8")]
    return tuple(f"{each.id} is published in {each.scheme}: plan with -q {each.scheme} to load it" for each in others)


def _require_checkpoint(name: str, path: str) -> None:
    """Raise UserError for a name that an engine would take for an option, or that is not one printable word."""
    if not name or name.startswith("-") or not name.isprintable() or len(name) > _LONGEST_ID:
        raise UserError([Problem(f"{name[:80]!r} names no checkpoint", path=path)])


def weight_flags(
    formats: WeightFormats, engine: str, request: LaunchRequest, notes: list[str]
) -> tuple[str, str | None]:
    """The engine's dtype and quantization method for a plan's weights; adds requirements on the checkpoint to `notes`.

    A checkpoint that is packed as published names its method in its own config, which a flag could only contradict.
    Raises UserError for a scheme that the engine does not read.
    """
    asked, scheme = request.plan.deployment, request.plan.deployment.quantization
    if scheme not in _PLAIN and (asked.as_published or known_checkpoint(request, scheme)):
        notes.append(f"the published checkpoint is stored as planned ({scheme}), and its config says how")
        return "float16" if scheme == "awq" else "bfloat16", None
    if scheme in ("bf16", *formats.plain):
        return formats.plain.get(scheme, "bfloat16"), None
    if scheme in formats.online:
        once = f"{engine} packs {scheme} while it loads a bf16 checkpoint"
        notes.append(f"{once}; without --quantization it loads one that is already packed")
        return "bfloat16", formats.online[scheme]
    if scheme in formats.packed:
        method = formats.packed[scheme]
        notes.append(f"the checkpoint has to be packed as {scheme} already ({method or 'its config says how'})")
        return "float16" if scheme == "awq" else "bfloat16", method
    return refuse(engine, f"it reads no weights packed as {scheme}", f"it reads {', '.join(formats.schemes)}")
