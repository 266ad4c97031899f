"""`ModelSpec`: the document of a model, checked field by field and across fields."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from l4spec.errors import nearest
from l4spec.layers import KINDS
from l4spec.layers.attention.masks import GridWindowMask
from l4spec.layers.attention.positions import Rope2d
from l4spec.layers.base import LARGEST, WIDEST, AsTuple, Count, LayerSize, LayerSpec, PositiveFloat, Size, Slot, Spec
from l4spec.layers.linear.spec import LinearSpec
from l4spec.layers.patch_merger.spec import PatchMergerSpec
from l4spec.layers.pixel_shuffle_mlp.spec import PixelShuffleMLPSpec
from l4spec.layers.residual_streams.spec import Streams
from l4spec.spec.about import About
from l4spec.spec.claims import MAX_CLAIMS, Claim
from l4spec.spec.header import Header, located
from l4spec.spec.layer_choice import KindOf
from l4spec.spec.origin import HuggingFaceSpec
from l4spec.spec.storage import Stored

NormSpec = Annotated[LayerSpec, KindOf(("norm",))]
PartSpec = Annotated[LayerSpec, KindOf(("attention", "ffn"))]

PartName = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$")]
SLOTS_OF_BLOCKS: Mapping[str, Slot] = MappingProxyType({"attention": "attention", "ffn": "ffn", "second_ffn": "ffn"})
"""Fields of a block that name parts, with the slot that a part's kind must fit."""
Form = Literal["pre_norm", "post_norm", "sandwich", "output_norm", "parallel"]


class BlockSpec(Spec):
    """One transformer block, or `repeat` equal ones in a row: attention, then feed-forward, on a residual stream."""

    attention: PartName | None = None
    """Name of an attention part; null for none."""
    ffn: PartName | None = None
    """Name of a feed-forward part; null for none."""
    second_ffn: PartName | None = None
    """Name of a feed-forward part beside `ffn`, form sandwich: x + norm(norm(f(norm(x))) + norm(g(norm(x))))."""
    form: Form = "pre_norm"
    """pre_norm: x + f(norm(x)). post_norm: norm(x + f(x)). sandwich: x + norm(f(norm(x))).
    output_norm: x + norm(f(x)) (OLMo 2). parallel: x + attention(norm(x)) + ffn(norm(x))."""
    repeat: Size = 1
    """Number of consecutive blocks of this form."""
    output_scale: bool = False
    """Multiply the output of the block by a stored number that is not trained (Gemma 4's layer_scalar)."""

    def part_names(self) -> Iterator[str]:
        """The parts that it names."""
        yield from (name for field in SLOTS_OF_BLOCKS if (name := getattr(self, field)) is not None)

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if self.attention is None and self.ffn is None:
            raise ValueError("a block needs attention, ffn or both")
        if self.form == "parallel" and (self.attention is None or self.ffn is None):
            raise ValueError("a parallel block needs both attention and ffn")
        if self.second_ffn is not None and (self.ffn is None or self.form != "sandwich"):
            raise ValueError("second_ffn runs beside ffn in a block of form sandwich")
        if self.output_scale and self.form == "post_norm":
            raise ValueError("output_scale multiplies the sum that leaves a block, which post_norm norms: leave it out")
        return self


class GroupSpec(Spec):
    """A pattern of blocks, repeated."""

    blocks: Annotated[tuple[BlockSpec, ...], AsTuple, Field(min_length=1)]
    """The pattern."""
    repeat: Size = 1
    """Number of repetitions of the pattern."""


def _group_or_block(value: Any) -> str:
    return "group" if isinstance(value, GroupSpec) or (isinstance(value, dict) and "blocks" in value) else "block"


Layers = Annotated[
    tuple[
        Annotated[
            Annotated[GroupSpec, Tag("group")] | Annotated[BlockSpec, Tag("block")], Discriminator(_group_or_block)
        ],
        ...,
    ],
    AsTuple,
    Field(min_length=1),
]
MAX_LAYERS = 10_000
MAX_PARTS = 1_024
"""Parts that are planned within two seconds; published models have up to some hundred different layers."""


class StackSpec(Spec):
    """A stack of blocks on one residual stream: named parts and the pattern in which they are laid."""

    hidden_size: LayerSize
    """Width of the residual stream."""
    norm: NormSpec
    """Norm of every block, and the last one of the stack."""
    parts: Annotated[dict[PartName, PartSpec], Field(min_length=1, max_length=MAX_PARTS)]
    """Layers by name, for `layers` to refer to."""
    layers: Layers
    """The blocks from input to output."""

    @model_validator(mode="after")
    def _parts_exist(self) -> Self:
        fitting = {slot: self._parts_for(slot) for slot in set(SLOTS_OF_BLOCKS.values())}
        for path, block in self.written_blocks():
            self._check_block(path, block, fitting)
        if self.num_layers > MAX_LAYERS:
            raise located(("layers",), f"{self.num_layers:,} blocks are more than {MAX_LAYERS:,}")
        return self

    def _check_block(
        self, path: tuple[str | int, ...], block: BlockSpec, fitting: Mapping[Slot, frozenset[str]] | None = None
    ) -> None:
        for field, slot in SLOTS_OF_BLOCKS.items():
            names = self._parts_for(slot) if fitting is None else fitting[slot]
            name = getattr(block, field)
            if name is not None and name not in names:
                raise self._wrong_part(name, slot, names, (*path, field))

    def _parts_for(self, slot: Slot) -> frozenset[str]:
        return frozenset(name for name, spec in self.parts.items() if KINDS[spec.kind].slot == slot)

    def _wrong_part(
        self, name: str, slot: Slot, fitting: frozenset[str], path: tuple[str | int, ...]
    ) -> PydanticCustomError:
        if name not in self.parts:
            return located(path, f"no part is called '{name}'", nearest(name, fitting))
        kind = self.parts[name].kind
        return located(path, f"part '{name}' is of kind {kind}, which is no {slot} layer", nearest(name, fitting))

    @property
    def num_layers(self) -> int:
        """Number of blocks after all repeats."""
        return sum(_num_blocks(item) for item in self.layers)

    def written_blocks(self) -> Iterator[tuple[tuple[str | int, ...], BlockSpec]]:
        """The blocks as written with their paths, groups opened but nothing repeated."""
        for index, item in enumerate(self.layers):
            if isinstance(item, GroupSpec):
                for inner, block in enumerate(item.blocks):
                    yield ("layers", index, "blocks", inner), block
            else:
                yield ("layers", index), item


def _num_blocks(item: GroupSpec | BlockSpec) -> int:
    return item.repeat * sum(block.repeat for block in item.blocks) if isinstance(item, GroupSpec) else item.repeat


class MTPSpec(Spec):
    """Modules that predict one token further each (multi-token prediction, DeepSeek-V3, arXiv:2412.19437, 2.2).

    The logits of a module are head(norm(block(projection[norm(embedding of the next token); norm(hidden)]))), where
    hidden is the model's final hidden state, or the previous module's block output. They are counted apart.
    """

    num_modules: Annotated[int, Field(ge=1, le=64)] = 1
    """Modules, each with weights of its own, which predict the second, third … token."""
    block: BlockSpec
    """The decoder layer of a module, of parts of the model."""
    embedding: Literal["shared", "copy"] = "shared"
    """copy: the checkpoint stores the model's embedding table again in every module (DeepSeek-V3)."""
    head: Literal["shared", "copy"] = "shared"
    """copy: the checkpoint stores the model's head again in every module (DeepSeek-V3)."""

    @model_validator(mode="after")
    def _one_block(self) -> Self:
        if self.block.repeat != 1:
            raise located(("block", "repeat"), f"a module has one block, found {self.block.repeat}", "leave it out")
        return self


class TextSpec(StackSpec):
    """The language model."""

    vocab_size: LayerSize
    """Entries of the vocabulary, special tokens included."""
    max_seq_len: Size
    """Longest sequence that the model supports, in tokens; not the default context of a plan."""
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Number format of the published weights."""
    tie_embeddings: bool = False
    """Share the embedding table with the output head."""
    embedding_scale: PositiveFloat | None = None
    """Factor on every embedding vector (Gemma: sqrt(hidden_size))."""
    learned_positions: bool = False
    """Add a learned vector per position to the embeddings (GPT-2)."""
    final_norm: bool = True
    """A norm between the last block and the head."""
    head_bias: bool = False
    """A bias per logit."""
    logit_softcap: PositiveFloat | None = None
    """Logits become cap * tanh(logit / cap) (Gemma 2)."""
    streams: Streams | None = None
    """Several residual streams with learned weights instead of sums (DeepSeek-V4); null: one, x + f(x)."""
    mtp: MTPSpec | None = None
    """Modules that predict further tokens, beside the model: drafts of serving; null: none are declared."""

    @model_validator(mode="after")
    def _modules_suit_the_model(self) -> Self:
        if self.mtp is None:
            return self
        if self.streams is not None or self.learned_positions or self.tie_embeddings:
            message = "is defined for one residual stream, no learned positions and a head of its own"
            raise located(("mtp",), message, "leave mtp out")
        self._check_block(("mtp", "block"), self.mtp.block)
        return self

    @model_validator(mode="after")
    def _streams_suit_blocks(self) -> Self:
        for path, block in self.written_blocks():
            if self.streams is not None and block.form in ("post_norm", "parallel"):
                message = f"{block.form} is defined for one residual stream, and there are streams of several"
                raise located((*path, "form"), message, "pre_norm, sandwich or output_norm")
            if self.streams is not None and (block.second_ffn is not None or block.output_scale):
                raise located(path, "second_ffn and output_scale are defined for one residual stream", "leave them out")
        return self

    @model_validator(mode="after")
    def _text_has_no_grid(self) -> Self:
        for name, part in self.parts.items():
            if isinstance(getattr(part, "position", None), Rope2d):
                raise located(("parts", name, "position"), "rope_2d turns by places in an image, not of text", "rope")
            if isinstance(getattr(part, "mask", None), GridWindowMask):
                raise located(("parts", name, "mask"), "text tokens lie in no grid", "chunked or sliding_window")
        return self


class TowerSpec(StackSpec):
    """A vision transformer."""

    class_token: Literal["first", "last", "none"] = "none"
    """Position of a learned class token among the patches; it is dropped after the tower."""
    learned_positions: bool = False
    """Add a learned vector per patch (and class token)."""
    position_grid: Size | None = None
    """Side of a square grid of learned positions that is interpolated to an image's patches (Qwen3-VL); null: one
    vector per patch of a tile."""
    patch_bias: bool = False
    """Bias of the patch projection."""
    pre_layernorm: bool = False
    """A norm before the first block."""
    post_layernorm: bool = True
    """A norm after the last block."""

    @model_validator(mode="after")
    def _positions_are_there(self) -> Self:
        if self.position_grid is not None and not self.learned_positions:
            raise located(
                ("position_grid",), "there are no learned positions to interpolate", "learned_positions: true"
            )
        if self.position_grid is not None and self.class_token != "none":
            raise located(("position_grid",), "a class token has no place in a grid", "class_token: none")
        if self.position_grid is not None and self.position_grid**2 > WIDEST:
            message = f"{self.position_grid:,} x {self.position_grid:,} learned positions are too many"
            raise located(("position_grid",), message, "4,096 at most")
        return self

    @model_validator(mode="after")
    def _routes_patches(self) -> Self:
        for name, part in self.parts.items():
            if isinstance(getattr(part, "mask", None), GridWindowMask) and self.class_token != "none":
                raise located(("parts", name, "mask"), "a class token lies in no grid", "class_token: none")
            if getattr(part, "balance", None) is not None:
                message = "experts of a tower are not balanced: ranks without images do not run them"
                raise located(("parts", name, "balance"), message, "leave it out")
            if getattr(getattr(part, "router", None), "by_token", False):
                message = "patches are no tokens of a vocabulary, which experts are looked up by"
                raise located(("parts", name, "router", "by_token"), message, "leave it out")
        return self


class DeepstackSpec(Spec):
    """Outputs of intermediate blocks of the tower that are added to the text stream (DeepStack, arXiv:2406.04334).

    The first of them is added to the image's tokens after the text's first block, the second after its second, and so
    on. Each goes through an adapter and a projector of its own, sized as the projector of the vision part.
    """

    blocks: Annotated[tuple[Count, ...], AsTuple, Field(min_length=1, max_length=MAX_PARTS)]
    """Blocks of the tower, counted from 0, in ascending order."""
    adapter: PatchMergerSpec
    """Adapter that merges neighbouring patches of each block's output."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if list(self.blocks) != sorted(set(self.blocks)):
            raise located(("blocks",), f"expected ascending blocks, found {list(self.blocks)}", "each one once")
        return self


class VisionSpec(Spec):
    """Early-fusion vision: a tower over image tiles, an adapter, and a projector into the text stream."""

    image_size: Size
    """Height and width of a tile in pixels."""
    patch_size: Size
    """Height and width of a patch in pixels."""
    num_channels: Size = 3
    """Colour channels."""
    temporal_patch_size: Size = 1
    """Frames of a patch; a still image is repeated that many times (Qwen3-VL: 2)."""
    max_tiles: Size = 1
    """Most tiles that an image is cut into."""
    global_tile: bool = False
    """Show an image of several tiles also as a whole, in one more tile."""
    tower: TowerSpec
    """The vision transformer."""
    adapter: Annotated[PixelShuffleMLPSpec | PatchMergerSpec, Field(discriminator="kind")]
    """Adapter that merges neighbouring patches before the projector."""
    projector: LinearSpec
    """Linear layer into the text stream."""
    deepstack: DeepstackSpec | None = None
    """Blocks of the tower whose outputs are added to the text's first blocks; null: the tower's last output alone."""

    @property
    def grid(self) -> int:
        """Patches along one side of a tile."""
        return self.image_size // self.patch_size

    @property
    def num_tokens_per_tile(self) -> int:
        """Tokens that a tile takes in the text."""
        return (self.grid // self.adapter.fold) ** 2

    @model_validator(mode="after")
    def _tiles_fit(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size ({self.image_size}) must be a multiple of patch_size ({self.patch_size})")
        if self.grid % self.adapter.fold:
            raise ValueError(
                f"the grid of {self.grid} patches does not fold by {self.adapter.fold} ({_FOLDS[self.adapter.kind]})"
            )
        if self.deepstack is not None:
            last, fold = self.deepstack.blocks[-1], self.deepstack.adapter.fold
            if last >= self.tower.num_layers:
                message = f"the tower has blocks 0 to {self.tower.num_layers - 1}, found {last}"
                raise located(("deepstack", "blocks"), message)
            if fold != self.adapter.fold:
                message = f"must fold as the adapter does ({self.adapter.fold}), found {fold}"
                raise located(("deepstack", "adapter", "spatial_merge_size"), message)
            if self.deepstack.adapter.output_size != self.adapter.output_size:
                message = f"must be as wide as the adapter's ({self.adapter.output_size}), for like projectors"
                raise located(("deepstack", "adapter", "output_size"), message)
        if self.grid**2 >= LARGEST:  # the class token is one more
            raise located(("image_size",), f"{self.grid:,} x {self.grid:,} patches a tile are too many", "cut tiles")
        return self


_FOLDS = {"pixel_shuffle_mlp": "pixel_shuffle_ratio", "patch_merger": "spatial_merge_size"}


class ModelSpec(Header):
    """A model as its author wrote it."""

    text: TextSpec
    """The language model."""
    vision: VisionSpec | None = None
    """Early-fusion vision, if any."""
    stored_as: Stored | None = None
    """Storage format of the published weights, the default of plans: a quantization scheme by name, or a table of rules
    for a mix that has no name. Null: unquantized, in `text.dtype`."""
    about: About | None = None
    """Other published facts: licence, languages, dates, evaluations; they change no number of a plan."""
    claims: Annotated[tuple[Claim, ...], AsTuple, Field(max_length=MAX_CLAIMS)] = ()
    """Published claims about the model, for `l4spec verify`."""
    huggingface: HuggingFaceSpec | None = None
    """Fields of a Hugging Face config that `l4spec export` writes back; written by `l4spec import`."""

    @model_validator(mode="after")
    def _projector_meets_text(self) -> Self:
        if self.vision and self.vision.projector.output_size != self.text.hidden_size:
            width = self.vision.projector.output_size
            message = f"must equal text.hidden_size ({self.text.hidden_size}), found {width}"
            hint = f"set vision.projector.output_size={self.text.hidden_size} too, or vision=null"
            raise located(("vision", "projector", "output_size"), message, hint)
        deepstack = self.vision.deepstack if self.vision else None
        if deepstack is not None and len(deepstack.blocks) > self.text.num_layers:
            message = f"{len(deepstack.blocks)} outputs for the {self.text.num_layers} blocks of the text are too many"
            raise located(("vision", "deepstack", "blocks"), message, "fewer, or vision.deepstack=null")
        if deepstack is not None and self.text.streams is not None:
            message = "image vectors are added to one residual stream, and there are streams of several"
            raise located(("vision", "deepstack"), message, "vision.deepstack=null")
        return self

    def without_modules(self) -> "ModelSpec":
        """The same model, which declares no modules of multi-token prediction."""
        if self.text.mtp is None:
            return self
        return self.model_copy(update={"text": self.text.model_copy(update={"mtp": None})})


__all__ = ["BlockSpec", "Count", "GroupSpec", "ModelSpec", "StackSpec", "TextSpec", "TowerSpec", "VisionSpec"]
