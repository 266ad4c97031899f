"""The gallery: pictures and reports that the command line makes while the site is built."""

import html
import tempfile
from pathlib import Path
from typing import NamedTuple

from typer.testing import CliRunner

from l4spec.cli import app


class Exhibit(NamedTuple):
    """A file of the gallery: the command that makes it, less `--out`, and what is to be seen."""

    name: str
    command: str
    text: str


PICTURES = (
    Exhibit("scout.svg", "graph scout --format svg", "Llama 4 Scout: a period of four layers, twelve times."),
    Exhibit("maverick.svg", "graph maverick --format svg", "Llama 4 Maverick: dense and routed layers take turns."),
    Exhibit("behemoth.svg", "graph behemoth --format svg", "Llama 4 Behemoth, where its layers are estimated."),
    Exhibit("qwen3-next.svg", "graph compare/qwen3-next-80b-a3b --format svg", "A hybrid: linear and full attention."),
    Exhibit("nemotron-h.svg", "graph compare/nemotron-h-56b --format svg", "A hybrid of Mamba and attention."),
)
REPORTS = (
    Exhibit("scout.html", "report scout --gpus 8xH100", "Scout on eight H100s: the plan, and each number's formula."),
    Exhibit("scout-maverick.html", "report scout maverick --gpus 8xH200", "Scout and Maverick side by side."),
    Exhibit("guarded.html", "report scenarios/guarded", "A chat with a guard, simulated under load."),
    Exhibit("behemoth.html", "report recipes/behemoth --gpus 32768xH100", "The training of Behemoth, phase by phase."),
    Exhibit(
        "search.html",
        "search scout --gpus 4xH100,8xH100 --prompt-tokens 1k --output-tokens 100 --format html",
        "Deployments of Scout, and the Pareto front of them.",
    ),
)


def gallery() -> dict[str, str]:
    """Every file of the gallery by its path in the site, the page itself among them."""
    with tempfile.TemporaryDirectory() as folder:
        made = {f"gallery/{each.name}": run(each.command, Path(folder) / each.name) for each in (*PICTURES, *REPORTS)}
    return {"gallery.md": page(), **made}


def run(command: str, out: Path) -> str:
    """Output of a command. Raises RuntimeError with its message if it fails."""
    done = CliRunner().invoke(app, [*command.split(), "--out", str(out)], prog_name="l4spec")
    if done.exit_code not in (0, 3):  # 3: it does not fit, and the report says so
        raise RuntimeError(f"l4spec {command}: {done.stderr}")
    return out.read_text(encoding="utf-8")


def page() -> str:
    """The page that shows the pictures and links the reports, each with the command that makes it."""
    lines = [
        "# Gallery",
        "",
        "For anyone who wants to see results before installing: pictures of models and complete reports, each with the",
        "command that made it when this site was built. [Pictures and reports](report.md) explains what they show.",
        "",
        "## Reports",
        "",
        "Each is one HTML file that makes no network requests.",
        "",
    ]
    for each in REPORTS:
        lines += [f"- [{each.text}](gallery/{each.name}) `l4spec {each.command} --out {each.name}`"]
    lines += ["", "## Pictures"]
    for each in PICTURES:
        lines += ["", f"`l4spec {each.command} --out {each.name}`", ""]
        lines += [f"[![{html.escape(each.text)}](gallery/{each.name})](gallery/{each.name})", "", each.text]
    return "\n".join(lines) + "\n"
