"""The application that commands register with, and its handling of errors."""

import os
from typing import Any, NoReturn, cast

import typer
from typer.core import TyperGroup

from l4spec.cli.commands import COMMANDS, ELSEWHERE, LazyCommands
from l4spec.cli.output import complain
from l4spec.errors import UserError

UsageError = cast("type[Exception]", typer.BadParameter.__mro__[1])
"""Exception of typer for wrong options, which has no public name."""
CLAIM_FAILED = 1
USER_ERROR = 2
DOES_NOT_FIT = 3
INTERRUPTED = 130


class CommandGroup(TyperGroup):
    """The commands, each imported on use; user errors are printed on stderr, one line per problem, with exit code 2."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**{**attributes, "commands": LazyCommands(app)})

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list in `--help`, for which no command is imported."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments before the command."""
        given = [*args]  # reading takes them away
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            if not given:  # the help, which typer raises
                raise
            refuse(_misused(error))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command by name; the error for an option's name says that it is an option."""
        option = f"--{args[0]}"
        if args[0] not in COMMANDS and any(option in parameter.opts for parameter in self.get_params(ctx)):
            raise UserError(f"no such command {args[0]!r}", hint=f"did you mean 'l4spec {option}'?")
        if other := ELSEWHERE.get(args[0]):
            raise UserError(f"no such command {args[0]!r}", hint=other)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the requested command."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            if os.environ.get("L4SPEC_DEBUG"):
                raise
            refuse(error)
        except UsageError as error:
            refuse(_misused(error))
        except (MemoryError, RuntimeError) as error:
            if os.environ.get("L4SPEC_DEBUG") or not _is_out_of_memory(error):
                raise
            refuse(UserError("memory ran out", hint="fewer or shorter sequences, or a smaller model"))


def _is_out_of_memory(error: Exception) -> bool:
    """True if Python or torch, which is not imported here, could not allocate memory."""
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or "can't allocate memory" in str(error)


_OURS = (
    (r"Value error, ", ""),
    (r"Input should be a valid integer.*", "expected a whole number"),
    (r"Input should be a valid number.*", "expected a number"),
    (r"Input should be a valid boolean.*", "expected true or false"),
    (r"Input should be a finite number", "expected a finite number"),
    (r"Input should be greater than or equal to (\S+)", r"expected at least \1"),
    (r"Input should be less than or equal to (\S+)", r"expected at most \1"),
    (r"Input should be greater than (\S+)", r"expected more than \1"),
    (r"Input should be less than (\S+)", r"expected less than \1"),
    (r"Input should be", "expected"),
)
"""typer reads plain numbers by pydantic: its words → ours."""


def _misused(error: Any) -> UserError:
    """Error of wrong options, as one line with the help page as hint, like every other problem."""
    import re

    command = error.ctx.command_path if error.ctx is not None else "l4spec"
    message = str(error.format_message()).rstrip(".")
    for theirs, ours in _OURS:
        message = re.sub(theirs, ours, message, flags=re.DOTALL)
    return UserError(f"{message[:1].lower()}{message[1:]}", hint=f"see {command} --help")


def refuse(error: UserError) -> NoReturn:
    """Print every problem and leave with exit code 2."""
    for problem in error.problems:
        complain(f"error: {problem}")
    raise typer.Exit(USER_ERROR)


app = typer.Typer(
    name="l4spec",
    cls=CommandGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    help="Plan, build, run, train and simulate a Llama-4-style model described in one YAML file.",
    epilog="Exit codes: 0 success, 1 a claim or a measured row disagrees with the plan, 2 invalid input, "
    "3 a valid spec that does not fit the hardware, 4 a rank failed.",
)


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("l4spec")
        except PackageNotFoundError:
            number = "(not installed: run from its source)"
        typer.echo(f"l4spec {number}")
        raise typer.Exit


@app.callback()
def top(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", callback=_version, is_eager=True
    ),
) -> None:
    """Plan, build, run, train and simulate a Llama-4-style model described in one YAML file."""
