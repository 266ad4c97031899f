"""The reference of the command line, from every command's `--help`: `python -m l4spec.cli.reference > docs/cli.md`."""

import typer

from l4spec.cli import app
from l4spec.cli.output import show

WIDTH = 100
_INTRODUCTION = """\
# The command line

For anyone who uses the command line: every command with all its options. Generated from `--help` by
`python -m l4spec.cli.reference`; a test keeps it up to date.

Where a command takes a `SPEC`, give the path of a YAML file or a shipped name; `--set PATH=VALUE` can be repeated.
Reports go to stdout, problems to stderr, one per line. Exit codes: 0 success, 1 a claim does not hold (`verify`),
2 invalid input, 3 a valid spec that does not fit the hardware (`plan`), 4 a rank failed (`run`). `L4SPEC_DEBUG=1`
shows the traceback of an error.
"""


def reference() -> str:
    """The Markdown page: the top-level help, then each command's in alphabetical order."""
    group = typer.main.get_group(app)
    context = group.context_class(
        group, info_name="l4spec", terminal_width=WIDTH, max_content_width=WIDTH, **group.context_settings
    )
    parts = [_INTRODUCTION, _block("l4spec", group.get_help(context))]
    for name in sorted(group.list_commands(context)):
        command = group.get_command(context, name)
        assert command is not None, "the group lists only commands that it has"
        inner = command.context_class(
            command, info_name=name, parent=context, terminal_width=WIDTH, max_content_width=WIDTH
        )
        parts.append(_block(f"l4spec {name}", command.get_help(inner)))
    return "\n".join(parts)


def _block(title: str, text: str) -> str:
    body = "\n".join(line.rstrip() for line in text.splitlines())
    return f"## {title}\n\n```text\n{body}\n```\n"


if __name__ == "__main__":
    show(reference())
