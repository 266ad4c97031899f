"""Stage 3: `ResolvedModel`, the spec with names replaced by parts and repeats laid out."""

from collections.abc import Iterator
from typing import NamedTuple

from l4spec.layers.base import LayerSpec, Width
from l4spec.layers.embedding.spec import EmbeddingSpec
from l4spec.layers.learned_position.spec import LearnedPositionSpec
from l4spec.layers.linear.spec import LinearSpec
from l4spec.layers.lm_head.spec import LMHeadSpec
from l4spec.layers.patch_embedding.spec import PatchEmbeddingSpec
from l4spec.layers.patch_merger.spec import PatchMergerSpec
from l4spec.layers.pixel_shuffle_mlp.spec import PixelShuffleMLPSpec
from l4spec.layers.residual_streams.spec import Streams
from l4spec.spec.model import (
    SLOTS_OF_BLOCKS,
    BlockSpec,
    DeepstackSpec,
    Form,
    GroupSpec,
    ModelSpec,
    StackSpec,
    TextSpec,
    TowerSpec,
    VisionSpec,
)


class NamedPart(NamedTuple):
    """A layer with the name its author gave it."""

    name: str
    spec: LayerSpec


class ResolvedBlock(NamedTuple):
    """One block of a stack, `index` from 0."""

    index: int  # type: ignore[assignment]  # tuple has a method of this name
    form: Form
    attention: NamedPart | None
    ffn: NamedPart | None
    second_ffn: NamedPart | None = None
    output_scale: bool = False

    @property
    def parts(self) -> Iterator[tuple[str, NamedPart]]:
        """Its parts with the field that names each."""
        for field in SLOTS_OF_BLOCKS:
            part = getattr(self, field)
            if part is not None:
                yield field, part

    @property
    def ffn_name(self) -> str | None:
        """The feed-forward part's name, or both of them; None without any."""
        names = [part.name for part in (self.ffn, self.second_ffn) if part is not None]
        return " + ".join(names) or None


class ResolvedStack(NamedTuple):
    """A stack of blocks, one entry per layer."""

    width: Width
    norm: LayerSpec
    blocks: tuple[ResolvedBlock, ...]


class ResolvedMTP(NamedTuple):
    """Modules of multi-token prediction: their number, their block, and tables that the checkpoint stores again."""

    num_modules: int
    block: ResolvedBlock
    copies_embedding: bool
    copies_head: bool


class ResolvedText(NamedTuple):
    """The language model from token ids to logits."""

    embedding: EmbeddingSpec
    position: LearnedPositionSpec | None
    stack: ResolvedStack
    final_norm: bool
    head: LMHeadSpec
    dtype: str
    streams: Streams | None = None
    mtp: ResolvedMTP | None = None


class ResolvedVision(NamedTuple):
    """The vision part from pixels to image tokens in the text stream."""

    patch_embedding: PatchEmbeddingSpec
    position: LearnedPositionSpec | None
    stack: ResolvedStack
    pre_layernorm: bool
    post_layernorm: bool
    adapter: PixelShuffleMLPSpec | PatchMergerSpec
    projector: LinearSpec
    num_tokens_per_tile: int
    max_tiles: int
    global_tile: bool
    deepstack: DeepstackSpec | None = None

    @property
    def num_vectors(self) -> int:
        """Vectors that an image token brings to the text: for its embedding, and for each block that it enters."""
        return 1 + (0 if self.deepstack is None else len(self.deepstack.blocks))

    @property
    def takes_any_grid(self) -> bool:
        """True if the tower takes images of other sides than a tile's: it has no vector that belongs to one patch."""
        return isinstance(self.adapter, PatchMergerSpec) and (self.position is None or self.position.interpolated)


class ResolvedModel(NamedTuple):
    """A model with nothing left to look up: one entry per layer, every default filled."""

    name: str
    text: ResolvedText
    vision: ResolvedVision | None
    estimated: tuple[str, ...]
    spec: ModelSpec


def resolve(spec: ModelSpec) -> ResolvedModel:
    """Replace part names by parts and lay out every repeat. The spec itself is left as it is."""
    vision = _resolve_vision(spec.vision) if spec.vision else None
    return ResolvedModel(spec.name, _resolve_text(spec.text), vision, spec.estimated, spec)


def _resolve_text(text: TextSpec) -> ResolvedText:
    return ResolvedText(
        embedding=EmbeddingSpec(kind="embedding", vocab_size=text.vocab_size, scale=text.embedding_scale),
        position=_learned_position(text.learned_positions, text.max_seq_len),
        stack=_resolve_stack(text, Width(text.hidden_size, text.max_seq_len, text.vocab_size)),
        final_norm=text.final_norm,
        head=LMHeadSpec(
            kind="lm_head",
            vocab_size=text.vocab_size,
            tied=text.tie_embeddings,
            bias=text.head_bias,
            logit_softcap=text.logit_softcap,
        ),
        dtype=text.dtype,
        streams=text.streams,
        mtp=_resolve_mtp(text),
    )


def _resolve_mtp(text: TextSpec) -> ResolvedMTP | None:
    if text.mtp is None:
        return None
    block = _resolve_block(text, text.mtp.block, 0)
    return ResolvedMTP(text.mtp.num_modules, block, text.mtp.embedding == "copy", text.mtp.head == "copy")


def _resolve_vision(vision: VisionSpec) -> ResolvedVision:
    tower = vision.tower
    patches = PatchEmbeddingSpec(
        kind="patch_embedding",
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        num_channels=vision.num_channels,
        class_token=tower.class_token,
        temporal_patch_size=vision.temporal_patch_size,
        bias=tower.patch_bias,
    )
    return ResolvedVision(
        patch_embedding=patches,
        position=_tower_position(tower, patches.num_tokens),
        stack=_resolve_stack(tower, Width(tower.hidden_size, patches.num_tokens)),
        pre_layernorm=tower.pre_layernorm,
        post_layernorm=tower.post_layernorm,
        adapter=vision.adapter,
        projector=vision.projector,
        num_tokens_per_tile=vision.num_tokens_per_tile,
        max_tiles=vision.max_tiles,
        global_tile=vision.global_tile,
        deepstack=vision.deepstack,
    )


def _tower_position(tower: TowerSpec, num_patches: int) -> LearnedPositionSpec | None:
    if tower.position_grid is None:
        return _learned_position(tower.learned_positions, num_patches)
    return LearnedPositionSpec(kind="learned_position", num_positions=tower.position_grid**2, interpolated=True)


def _learned_position(enabled: bool, num_positions: int) -> LearnedPositionSpec | None:
    return LearnedPositionSpec(kind="learned_position", num_positions=num_positions) if enabled else None


def _resolve_stack(stack: StackSpec, width: Width) -> ResolvedStack:
    blocks = tuple(_resolve_block(stack, block, index) for index, block in enumerate(_laid_out(stack)))
    return ResolvedStack(width, stack.norm, blocks)


def _resolve_block(stack: StackSpec, block: BlockSpec, index: int) -> ResolvedBlock:
    return ResolvedBlock(
        index,
        block.form,
        _part(stack, block.attention),
        _part(stack, block.ffn),
        _part(stack, block.second_ffn),
        block.output_scale,
    )


def _part(stack: StackSpec, name: str | None) -> NamedPart | None:
    return None if name is None else NamedPart(name, stack.parts[name])


def _laid_out(stack: StackSpec) -> Iterator[BlockSpec]:
    for item in stack.layers:
        pattern = item.blocks if isinstance(item, GroupSpec) else (item,)
        for _ in range(item.repeat if isinstance(item, GroupSpec) else 1):
            for block in pattern:
                for _ in range(block.repeat):
                    yield block
