"""`l4spec generate`: text generation from a checkpoint, streamed."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l4spec.cli import options as o
from l4spec.cli.app import app
from l4spec.cli.build import MAX_SEED, DeviceOption, DtypeOption, ProgressOption
from l4spec.cli.output import complain, show_piece
from l4spec.cli.progress import progress_bar
from l4spec.errors import Problem, UserError
from l4spec.stills import MOST_FPS, MOST_STILLS, sampling_problems

if TYPE_CHECKING:
    from l4spec.runtime.compiled import CompiledStep
    from l4spec.runtime.generate import OptionFields
    from l4spec.runtime.images import ImagePrompt
    from l4spec.runtime.model import Model
    from l4spec.runtime.tokenizer import TextTokenizer
    from l4spec.spec.model import ModelSpec

MAX_PROMPT_BYTES = 16 << 20
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint folder.", show_default=False)]
PromptOption = Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="Text to continue.")]
ChatOption = Annotated[
    str | None, typer.Option("--chat", metavar="TEXT", help="A user message, put in Llama 4's chat format.")
]
SystemOption = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="With --chat: the system message.")]
IdsOption = Annotated[
    str | None, typer.Option("--ids", metavar="IDS", help="Token ids to continue, such as 200000,17,4.")
]
TokenizerOption = Annotated[
    Path | None,
    typer.Option("--tokenizer", metavar="FILE", help="tokenizer.json or a tiktoken file.  [default: the one in DIR]"),
]
MaxOption = Annotated[
    int, typer.Option("--max-new-tokens", metavar="TOKENS", parser=o.tokens, help="Most new tokens, as 64 or 4k.")
]
TemperatureOption = Annotated[float, typer.Option("--temperature", help="0 always takes the most likely token.")]
TopKOption = Annotated[int | None, typer.Option("--top-k", metavar="K", help="Draw from the K most likely tokens.")]
TopPOption = Annotated[
    float | None, typer.Option("--top-p", metavar="P", help="Draw from the most likely tokens up to P.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, max=MAX_SEED, help="Seed of the sampling.")]
StopOption = Annotated[
    str | None,
    typer.Option("--stop-ids", metavar="IDS", help="Token ids that end a sequence.  [default: the checkpoint's own]"),
]
CompileOption = Annotated[
    bool,
    typer.Option(
        "--compile", help="Compile the decode step: some seconds per layer at first, then faster. Needs a C++ compiler."
    ),
]
ChunkOption = Annotated[
    int,
    typer.Option("--prefill-chunk", metavar="TOKENS", parser=o.tokens, help="Prompt tokens per prefill step."),
]
ImageOption = Annotated[
    list[Path] | None, typer.Option("--image", metavar="FILE", help="An image for the model; repeatable.")
]
VideoOption = Annotated[
    Path | None,
    typer.Option("--video", metavar="FILE", help="A video, sampled into still frames by --fps or --frames."),
]
FpsOption = Annotated[
    float | None,
    typer.Option("--fps", metavar="RATE", help=f"Still frames per second of the video, at most {MOST_STILLS} in all."),
]
FramesOption = Annotated[
    int | None,
    typer.Option("--frames", min=1, max=MOST_STILLS, help="Number of still frames, evenly spaced over the video."),
]


@app.command("generate")
def generate_command(
    directory: FolderArgument,
    prompt: PromptOption = None,
    chat: ChatOption = None,
    system: SystemOption = None,
    ids: IdsOption = None,
    tokenizer: TokenizerOption = None,
    max_new_tokens: MaxOption = 64,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    stop_ids: StopOption = None,
    prefill_chunk: ChunkOption = 2048,
    compile_step: CompileOption = False,
    image: ImageOption = None,
    video: VideoOption = None,
    fps: FpsOption = None,
    frames: FramesOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    verify: o.VerifyOption = True,
    show_progress: ProgressOption = None,
) -> None:
    """Load a checkpoint and continue a prompt, token by token.

    Prompt and answer are text (--prompt, --chat) if there is a tokenizer file, otherwise token ids (--ids).
    Images, then the still frames of a video, are placed before the text.
    """
    from l4spec.runtime.checkpoints import open_model, spec_of
    from l4spec.runtime.generate import GenerationOptions, OptionFields

    text = _tokenizer(directory, tokenizer) if ids is None or tokenizer else None
    images = _images(directory, text, image or [], video, fps, frames)
    tokens = _tokens(prompt, chat, system, ids, text, images)
    options: OptionFields = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "stop_ids": _stop_ids(directory, stop_ids, text),
        "seed": seed,
        "prefill_chunk": prefill_chunk,
    }
    GenerationOptions(**options)  # before the weights are read, as is what follows
    _require_fit(spec_of(directory), tokens, max_new_tokens)
    with progress_bar("loading", show_progress) as progress:
        model = open_model(directory, _real_device(device), dtype and dtype.value, verify=verify, progress=progress)
    _answer(model, tokens, images, text, options, _compiled(model, show_progress) if compile_step else None)


def _answer(
    model: "Model",
    tokens: list[int],
    images: "ImagePrompt | None",
    text: "TextTokenizer | None",
    options: "OptionFields",
    step: "CompiledStep | None",
) -> None:
    pixel_values = images.shown_to(model) if images else None
    new = model.stream([tokens], pixel_values=pixel_values, step=step, **options)
    _say((int(token) for token in new), text, options["stop_ids"])


def _images(
    directory: Path,
    tokenizer: "TextTokenizer | None",
    images: Sequence[Path],
    video: Path | None,
    fps: float | None,
    frames: int | None,
) -> "ImagePrompt | None":
    """Images or frames of the prompt, read and cut; None without any. Raises UserError if the model takes none."""
    problems = [p._replace(path=f"--{p.path}") for p in sampling_problems(video, fps, frames)]
    if fps is not None and not 0 < fps <= MOST_FPS:
        problems.append(Problem(f"expected a number above 0 and at most {MOST_FPS:,}, found {fps:g}", path="--fps"))
    if problems:
        raise UserError(problems)
    if not images and video is None:
        return None
    from l4spec.runtime.checkpoints import spec_of
    from l4spec.runtime.images import image_prompt, read_all

    vision = spec_of(directory).vision
    if vision is None:
        raise UserError("the model has no vision, so it takes no images and no clip")
    if tokenizer is None:
        raise UserError("images need a tokenizer, which adds their marker tokens", hint="--prompt or --chat, not --ids")
    return image_prompt(read_all(images, video, fps, frames), vision, tokenizer)


def _compiled(model: "Model", show_progress: bool | None) -> "CompiledStep":
    from l4spec.runtime.compiled import CompiledStep

    step = CompiledStep(model)
    with progress_bar("compiling", show_progress) as progress:
        step.prepare()
        if progress is not None:
            progress(1, 1)
    return step


def _real_device(device: str | None) -> str:
    from l4spec.runtime.devices import checked_device

    if device == "meta":
        raise UserError([Problem("holds no weights: expected cpu or cuda", path="--device")])
    return checked_device("cpu" if device is None else device)


def _tokenizer(directory: Path, given: Path | None) -> "TextTokenizer":
    from l4spec.runtime.tokenizer import find_tokenizer, open_tokenizer

    path = given or find_tokenizer(directory)
    if path is None:
        raise UserError(f"{directory} holds no tokenizer file", hint="--tokenizer names one, --ids does without")
    return open_tokenizer(path)


def _tokens(
    prompt: str | None,
    chat: str | None,
    system: str | None,
    ids: str | None,
    tokenizer: "TextTokenizer | None",
    images: "ImagePrompt | None" = None,
) -> list[int]:
    shown = images.ids if images else ()
    given = [value for value in (prompt, chat, ids) if value is not None]
    if len(given) != 1 or (system is not None and chat is None):
        raise UserError("expected one of --prompt, --chat and --ids; --system goes with --chat")
    if ids is not None:
        return numbers(ids, "--ids")
    assert tokenizer is not None
    if chat is not None:
        from l4spec.runtime.tokenizer import Message

        messages = [Message("system", system)] if system is not None else []
        return tokenizer.encode_chat([*messages, Message("user", chat, shown)])
    encoding = tokenizer.encode_prompt(prompt or "", shown)
    if not encoding:
        raise UserError([Problem("is empty, and this tokenizer has no token that begins a text", path="--prompt")])
    return encoding


def numbers(text: str, option: str) -> list[int]:
    """Token ids out of an option. Raises UserError."""
    words = text.replace(",", " ").split()
    if not words or not all(word.isascii() and word.isdigit() and len(word) <= 12 for word in words):
        raise UserError([Problem(f"expected token ids as 200000,17,4, found {text[:60]!r}", path=option)])
    return [int(word) for word in words]


def _stop_ids(directory: Path, given: str | None, tokenizer: "TextTokenizer | None") -> tuple[int, ...]:
    from l4spec.runtime.tokenizer import stop_ids_of

    if given is not None:
        return tuple(numbers(given, "--stop-ids"))
    return stop_ids_of(directory) or (tokenizer.stop_ids if tokenizer else ())


def _require_fit(spec: "ModelSpec", tokens: Sequence[int], max_new_tokens: int) -> None:
    """Refuse prompts that the model of this spec cannot read, or that leave no room for the answer."""
    wrong = [token for token in tokens if token >= spec.text.vocab_size]
    if wrong:
        raise UserError(f"expected token ids from 0 to {spec.text.vocab_size - 1}, found {wrong[0]}")
    num_tokens = len(tokens) + max_new_tokens
    if num_tokens > spec.text.max_seq_len:
        message = f"prompt and answer are up to {num_tokens:,} tokens, the model is made for {spec.text.max_seq_len:,}"
        raise UserError(message, hint="a smaller --max-new-tokens, or a shorter prompt")


def _say(tokens: Iterator[int], tokenizer: "TextTokenizer | None", stop_ids: Sequence[int]) -> None:
    """Print each piece of text as it is generated, without stop tokens."""
    start, count = time.perf_counter(), 0

    def counted() -> Iterator[int]:
        nonlocal count
        for token in tokens:
            count += 1
            yield token

    def pieces() -> Iterator[str]:
        if tokenizer is None:
            yield from (f"{token} " for token in counted())
        else:
            yield from tokenizer.stream(token for token in counted() if token not in stop_ids)

    for piece in pieces():
        show_piece(piece)
    show_piece("\n")
    complain(f"{count} tokens in {time.perf_counter() - start:.1f} s")
