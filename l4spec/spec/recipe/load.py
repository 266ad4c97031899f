"""Loading of recipes: the document, the model's spec (optionally scaled), and matching phases. Imports no torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from l4spec.errors import Problem, SpecError, UserError, nearest
from l4spec.library import find_beside, missing
from l4spec.spec.document import Document, load_document
from l4spec.spec.document_kinds import parse_as
from l4spec.spec.model import ModelSpec
from l4spec.spec.parse import parse_spec, place_of
from l4spec.spec.recipe import Phase, Recipe
from l4spec.spec.recipe.data import BpeTokens, DescribedSource
from l4spec.spec.recipe.pictures import NUM_MARKS
from l4spec.spec.scale import parse_scale, scale_spec

SMALL_CONTEXT, SMALL_BATCH, SMALL_STEPS = 128, 8, 40
"""Most tokens, sequences and steps of a phase in a miniature."""
BYTE_VOCAB = 257
NUM_IMAGE_MARKS = 6
"""Tokens that mark images: start, end, whole, two separators of tiles, patch."""


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with its document and the folder that its files are relative to."""

    recipe: Recipe
    document: Document
    folder: Path

    def spec_of(self, name: str, changes: Sequence[str], path: tuple[str | int, ...] = ("model",)) -> ModelSpec:
        """A model's spec by the name at `path`, with changes. Raises SpecError at the place of the name."""
        file = find_beside(name, self.folder)
        if file is None:
            message, hint = missing(name, self.folder)
            raise SpecError([Problem(message, ".".join(map(str, path)), place_of(self.document, path), hint)])
        return parse_spec(load_document(file, changes))

    def model(self, variant: str | None, scale: str | None = None, layers: int | None = None) -> ModelSpec:
        """The spec that is trained, or one variant of it; a miniature with `scale` or `layers`."""
        changes = (*self.recipe.set, *(self.recipe.variants[variant].set if variant else ()))
        return scaled(self.spec_of(self.recipe.model, changes), scale, layers)

    def scaled(self, spec: ModelSpec, scale: str | None) -> ModelSpec:
        """Another model of the recipe, in the size that the trained one has."""
        return scaled(spec, scale, None)

    def phases(self, scale: str | None, model: ModelSpec) -> tuple[Phase, ...]:
        """The phases; in a miniature shorter ones of the same order, optimizer and losses."""
        if scale is None:
            return self.recipe.phases
        return tuple(small(phase, model) for phase in self.recipe.phases)

    def check(self, model: ModelSpec, scale: str | None) -> None:
        """Raise SpecError with everything that keeps this recipe from being run on this model, each at its place."""
        problems = [
            *self._vocabulary(model),
            *self._contexts(model, scale),
            *self._lengths(model, scale),
            *self._sources(scale),
            *self._pictures(model, scale),
            *self.module_problems(model, scale),
        ]
        if problems:
            raise SpecError(problems)

    def module_problems(self, model: ModelSpec, scale: str | None) -> Iterator[Problem]:
        """A problem for each phase that trains modules of multi-token prediction which this model has not, or cannot.

        Rows with pictures are refused: a module has no image vectors to read. So are rows too short for a label.
        """
        declared = model.text.mtp
        for index, phase in enumerate(self.phases(scale, model)):
            path = ("phases", index, "mtp")
            if phase.modules is None:
                continue
            if declared is None:
                hint = "`text.mtp` in its spec, or leave mtp out"
                yield self._at(f"{model.name} declares no modules of multi-token prediction", path, hint)
                continue
            names = phase.mixture or self.recipe.data.sources
            if model.vision is not None and any(self.recipe.data.sources[name].has_pictures for name in names):
                hint = "a `mixture` of sources without them"
                yield self._at("modules of multi-token prediction are trained on text without pictures", path, hint)
            if phase.context <= declared.num_modules:
                message = f"a row of {phase.context} tokens has no label for module {declared.num_modules}"
                yield self._at(message, path, f"a context above {declared.num_modules}")

    def _vocabulary(self, model: ModelSpec) -> Sequence[Problem]:
        tokenizer = self.recipe.data.tokenizer
        marks = NUM_IMAGE_MARKS if self.recipe.data.marks_images else 0
        needed = tokenizer.vocab_size if isinstance(tokenizer, BpeTokens) else BYTE_VOCAB + marks
        if tokenizer.kind == "file" or needed <= model.text.vocab_size:
            return []
        message = f"{tokenizer.kind} needs {needed} tokens, and {model.name} has {model.text.vocab_size}"
        path = ("data", "tokenizer") if "tokenizer" in str(self.document.data.get("data")) else ("data",)
        return [Problem(message, "data.tokenizer", place_of(self.document, path))]

    def _contexts(self, model: ModelSpec, scale: str | None) -> Sequence[Problem]:
        most = model.text.max_seq_len
        return [
            Problem(
                f"{phase.context:,} tokens, and {model.name} is made for {most:,}",
                f"phases[{index}].context",
                place_of(self.document, ("phases", index, "context")),
            )
            for index, phase in enumerate(self.phases(scale, model))
            if phase.context > most
        ]

    def _lengths(self, model: ModelSpec, scale: str | None) -> Sequence[Problem]:
        most = model.text.max_seq_len
        asked = () if scale is not None or self.recipe.lengths is None else self.recipe.lengths.tokens
        return [
            Problem(
                f"{tokens:,} tokens, and {model.name} is made for {most:,}",
                f"lengths.tokens[{index}]",
                place_of(self.document, ("lengths", "tokens", index)),
            )
            for index, tokens in enumerate(asked)
            if tokens > most
        ]

    def _sources(self, scale: str | None) -> Sequence[Problem]:
        if scale is not None:
            return []
        return [
            Problem(
                f"the text of {name!r} is only described",
                f"data.sources.{name}",
                place_of(self.document, ("data", "sources", name)),
                "--scale tiny runs a miniature on made-up text",
            )
            for name, source in self.recipe.data.sources.items()
            if isinstance(source, DescribedSource)
        ]

    def _pictures(self, model: ModelSpec, scale: str | None) -> Iterator[Problem]:
        """Pictures need a model that sees, a phase that learns from packed rows, and room for a tile."""
        seen = {name for name, source in self.recipe.data.sources.items() if source.has_pictures}
        for name in sorted(seen) if model.vision is None else ():
            yield self._at(f"{model.name} has no vision tower", ("data", "sources", name), "`vision` in its spec")
        for index, phase in enumerate(self.phases(scale, model)):
            if model.vision is None or not seen & set(phase.mixture or self.recipe.data.sources):
                continue
            if phase.kind not in ("pretrain", "midtrain"):
                yield self._at(
                    f"a {phase.kind} phase takes no pictures", ("phases", index), "a `mixture` of sources without them"
                )
            needed = model.vision.num_tokens_per_tile + NUM_MARKS + 1
            if phase.context < needed:
                yield self._at(
                    f"{phase.context} tokens, and a picture with a caption takes more than {needed}",
                    ("phases", index, "context"),
                )

    def _at(self, message: str, path: tuple[str | int, ...], hint: str = "") -> Problem:
        names = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
        return Problem(message, names.removeprefix("."), place_of(self.document, path), hint)


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = (), variant: str | None = None) -> LoadedRecipe:
    """Load a recipe by path or shipped name (`recipes/collapse`), with the changes of a variant.

    Raises SpecError with all problems at once, UserError for a variant that it does not have.
    """
    document = load_document(path_or_name, overrides)
    recipe = parse_as(document, Recipe)
    if variant_of(recipe, variant) is not None and recipe.variants[variant or ""].change:
        document = load_document(path_or_name, (*overrides, *recipe.variants[variant or ""].change))
        recipe = parse_as(document, Recipe)
    source = document.source
    return LoadedRecipe(recipe, document, source.parent if isinstance(source, Path) else Path())


def variant_of(recipe: Recipe, name: str | None) -> str | None:
    """`name`, if the recipe has such a variant. Raises UserError, with the nearest spelling."""
    if name is not None and name not in recipe.variants:
        raise UserError([Problem(f"no variant {name!r}", "--variant", hint=nearest(name, recipe.variants))])
    return name


def scaled(spec: ModelSpec, scale: str | None, layers: int | None) -> ModelSpec:
    """The spec, or a miniature of it."""
    if scale is None and layers is None:
        return spec
    return scale_spec(spec, *([] if scale is None else [parse_scale(scale)]), num_layers=layers)


def small(phase: Phase, model: ModelSpec) -> Phase:
    """A phase of at most 40 steps of 8 sequences of 128 tokens."""
    context = min(phase.context, SMALL_CONTEXT, model.text.max_seq_len)
    batch = min(phase.batch, SMALL_BATCH)
    tokens = min(phase.num_steps, SMALL_STEPS) * batch * context
    return phase.model_copy(update={"context": context, "batch": batch, "tokens": tokens})


def starts_of(phases: Sequence[Phase]) -> Mapping[str, int]:
    """The step before each phase's first, counted over all phases; "" is the end."""
    starts, step = {}, 0
    for phase in phases:
        starts[phase.name] = step
        step += phase.num_steps
    return {**starts, "": step}
