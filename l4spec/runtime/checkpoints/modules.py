"""Modules of multi-token prediction in checkpoints: read from a folder, and named beside the tensors of their model."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from l4spec.errors import Place, Problem, UserError
from l4spec.graph.build import MTP_SHARED, mtp_graph
from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.huggingface.families import FAMILIES
from l4spec.huggingface.naming import LAYER, MODULE, ModuleNaming
from l4spec.layers.declaration import Parameter
from l4spec.progress import Progress
from l4spec.runtime.checkpoints.digests import Unchanged, require_undamaged
from l4spec.runtime.checkpoints.headers import read_headers
from l4spec.runtime.checkpoints.hub_names import NATIVE, hub_groups
from l4spec.runtime.checkpoints.layout import CheckpointLayout, StoredGroup, StoredTensor, whole
from l4spec.runtime.checkpoints.load import Read, checked_folder, copy_stored, mapped_files, model_type_of
from l4spec.runtime.checkpoints.match import hub_layout_of, require_match
from l4spec.runtime.module_inventory import module_tensors
from l4spec.runtime.mtp import MTPModule, build_mtp

if TYPE_CHECKING:
    from l4spec.runtime.model import Model

_NATIVE_NAMING = ModuleNaming({}, prefix=MODULE, block="", after_layers=False)


def open_mtp(
    model: "Model", directory: Path | str, *, verify: bool = True, progress: Progress | None = None
) -> tuple[MTPModule, ...]:
    """The modules that the model's spec declares, with their weights from a folder of safetensors.

    They are cast to the model's number format. A table that the checkpoint stores again (`copy`) must equal the
    model's, which the modules share. Raises UserError naming every missing, extra and misshapen tensor, for a family
    whose modules have no known names, for a quantized model, and for a model that declares no modules. `verify` as in
    `load_checkpoint`.
    """
    if model.quantization is not None:
        raise UserError("modules of multi-token prediction are read for plain weights only", hint="open it unquantized")
    modules = build_mtp(model, seed=None)
    folder = checked_folder(directory)
    before, headers = Unchanged.of(folder), read_headers(folder)
    family = hub_layout_of(model.graph, frozenset(headers), model_type_of(folder)).name
    stored = require_match(module_layout(model.graph, family), {(0, name): entry for name, entry in headers.items()})
    if verify:
        require_undamaged(folder)
    targets, copies = tensors_of_modules(model, modules, family)
    with ExitStack() as files:
        opened = mapped_files(headers, files)

        def read(one: StoredTensor) -> Tensor:
            return opened.tensor(headers[one.name].file, one.name)

        again = [one for one in stored if one.pieces[0].tensor in copies]
        _require_equal(again, read, copies, {name: headers[name].file.name for name in headers})
        copy_stored([one for one in stored if one not in again], read, targets, progress)
    before.require()
    return modules


def _require_equal(
    again: Sequence[StoredTensor], read: Read, copies: Mapping[str, Tensor], files: Mapping[str, str]
) -> None:
    """Raise UserError for a table that is stored again with other values than the model's."""
    message = "differs from the table of the model, which modules use: one of its own is not modelled"
    problems = []
    for one in again:
        table = copies[one.pieces[0].tensor].detach()
        if not read(one).to(table.device, table.dtype).equal(table):
            problems.append(Problem(message, one.name, Place(files[one.name])))
    if problems:
        raise UserError(problems)


def module_layout(graph: LayerGraph, family: str) -> CheckpointLayout:
    """Layout of the declared modules beside the model, in `family` or our own format.

    Tensors are `mtp.layers.{index}.{layer}.{parameter}` of ours, without the block's index. Raises UserError for a
    family whose modules have no known names.
    """
    where = _naming(family)
    own = re.compile("^" + re.escape(where.prefix).replace(r"\#", r"\d+"))
    first, count = where.first_index(graph.num_layers), _num_modules(graph)
    named = list(_declared(graph, first, count))
    groups: tuple[StoredGroup, ...] | None
    if family == NATIVE:
        groups = tuple(StoredGroup(((whole(full, full, parameter),),)) for full, _, parameter in named)
    else:
        naming = FAMILIES[family].naming.of_modules()
        assert naming is not None
        groups = hub_groups(named, naming)
    if groups is None:
        raise _unknown(family)
    return CheckpointLayout(family, groups, partial(_is_others, own, first))


def _is_others(own: re.Pattern[str], first: int, name: str) -> bool:
    """True if a stored tensor belongs to no module: it is the model's, or a buffer that older versions wrote."""
    layer = LAYER.search(name)
    return own.match(name) is None or (layer is not None and int(layer[1]) < first) or name.endswith(".inv_freq")


def _naming(family: str) -> ModuleNaming:
    naming = _NATIVE_NAMING if family == NATIVE else FAMILIES[family].naming.modules
    if naming is None:
        raise _unknown(family)
    return naming


def _unknown(family: str) -> UserError:
    message = f"how checkpoints of {family} name modules of multi-token prediction is not known"
    return UserError(message, hint="save the modules in l4spec's own layout, or leave text.mtp out")


def _num_modules(graph: LayerGraph) -> int:
    declared = graph.model.text.mtp
    return 0 if declared is None else declared.num_modules


def _declared(graph: LayerGraph, first: int, count: int) -> Iterator[tuple[str, str, Parameter]]:
    """(our name, kind of the layer, declaration) of every tensor that a checkpoint stores of the modules."""
    module = mtp_graph(graph)
    assert module is not None, "asked for with modules only"
    for index in range(first, first + count):
        for node, parameter in module.parameters():
            if not parameter.tied_to and (node.role not in MTP_SHARED or _is_copied(graph, node)):
                yield f"{_place(index, node)}.{parameter.name}", node.kind, parameter


def _is_copied(graph: LayerGraph, node: LayerNode) -> bool:
    declared = graph.model.text.mtp
    assert declared is not None
    return declared.copies_embedding if node.role == "embedding" else declared.copies_head


def _place(index: int, node: LayerNode) -> str:
    return MODULE.replace("#", str(index)) + node.id.removeprefix("text.").removeprefix("layers.0.")


def tensors_of_modules(
    model: "Model", modules: Sequence[MTPModule], family: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors by the names of `module_layout`: those of the modules, and the model's that are stored again.

    Raises UserError for modules that are not those that the model's spec declares.
    """
    count = _num_modules(model.graph)
    if len(modules) != count:
        raise UserError(f"{model.graph.name} declares {count} modules of multi-token prediction, found {len(modules)}")
    first = _naming(family).first_index(model.graph.num_layers)
    own: dict[str, Tensor] = {}
    copies: dict[str, Tensor] = {}
    for index, module in enumerate(modules, start=first):
        for node in module.graph.nodes:
            into = copies if node.role in MTP_SHARED else own
            into |= {f"{_place(index, node)}.{name}": t for name, t in module_tensors(module.layer(node.id)).items()}
    return own, copies
