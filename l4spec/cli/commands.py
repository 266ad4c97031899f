"""The commands with their descriptions for `--help`; a command's module is imported on use.

A new command is a file `l4spec/cli/NAME.py` that registers NAME, and a line here: its docstring's first sentence.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand

from l4spec.errors import Problem, UserError

ELSEWHERE = {
    "quantize": "'l4spec plan SPEC -q SCHEME' sizes quantized weights, 'l4spec build SPEC -q SCHEME' packs them",
    "serve": "'l4spec plan SPEC --emit vllm' writes the launch of an engine",
    "chat": "'l4spec generate CHECKPOINT' writes text",
    "convert": "'l4spec import' and 'l4spec export' read and write config.json",
}
"""Hints by a missing command's name: the commands that do its task."""
COMMANDS = {
    "accuracy": "Compare predictions with published measurements and report the errors.",
    "build": "Build the PyTorch module of a spec and check it against the plan: names, shapes and counts.",
    "calibrate": "Measure this machine's CPU and write a hardware profile for `--gpus 1xthis`.",
    "compare": "Plan several models the same way and compare them side by side; --set applies to each of them.",
    "explore": "Open a local page with controls for a model and its deployment, and a plan that updates.",
    "export": "Convert a spec to a Hugging Face config.json, if its model type can express it.",
    "generate": "Load a checkpoint and continue a prompt, token by token.",
    "graph": "Write the layer graph: nodes with their parameters, edges with their tensor shapes.",
    "import": "Convert a Hugging Face config.json to a commented spec; unsupported fields are refused by name.",
    "ls": "List the shipped specs, scenarios or recipes; or the known hardware, schemes, engines and layer kinds.",
    "measure": "Run a spec and compare its plan with the measurement, row by row.",
    "plan": "Compute what a model costs and whether it fits the hardware.",
    "report": "Write one HTML file: verdict, architecture, memory, cache growth, roofline, times, layouts and claims.",
    "run": "Run a layout on torch.distributed: each rank builds its part of the model, to train or to generate.",
    "schema": "Write the JSON Schema of a kind of document, for editors that complete and check YAML.",
    "search": "Find the cheapest deployment that meets a service level: hardware, layout, scheme, engine, replicas.",
    "show": "Show the layer pattern of a model, its parts, its vision tower, and its estimated fields.",
    "simulate": "Simulate a load on deployed models: latencies, service levels, cache and cost.",
    "sweep": "Plan every combination of values of a spec: parameters, cache, fits or not, TPOT, cost, GPU-hours.",
    "train": "Train a recipe: all phases of every variant, in one process or on as many ranks as the degrees need.",
    "transfer": "Train a recipe's first phase at several sizes and learning rates, and show where the best rate is.",
    "validate": "Check specs, scenarios and recipes: print `ok` or every problem with its file, line and column.",
    "vocabulary": "Compare vocabularies of a model: parameters, FLOPs per token, tokens and FLOPs per byte of text.",
    "verify": "Compare the claims of a spec with the plan: claimed, computed, difference, verdict, source.",
}


class OneOfEach(TyperCommand):
    """A command whose options are given once, except for those that are lists: the last one would win silently."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments. Raises UserError for an option that is given twice."""
        options = args[: args.index("--")] if "--" in args else args
        flags = [argument.partition("=")[0] for argument in options if argument.startswith("-")]
        for parameter in self.params:
            if getattr(parameter, "multiple", False) or not flags:
                continue
            given = [flag for flag in flags if flag in parameter.opts]
            if len(given) > 1:
                raise UserError([Problem(f"is given {len(given)} times", path=given[0], hint="give it once")])
        return super().parse_args(ctx, args)


class LazyCommands(Mapping[str, Any]):
    """typer's commands by name, each built when it is looked up."""

    def __init__(self, app: typer.Typer) -> None:
        self.app = app

    def __getitem__(self, name: str) -> Any:
        if name not in COMMANDS:
            raise KeyError(name)
        import_module(f"l4spec.cli.{'import_' if name == 'import' else name}")
        info = next(info for info in self.app.registered_commands if info.name == name)
        info.cls = OneOfEach
        return typer.main.get_command_from_info(info, pretty_exceptions_short=True, rich_markup_mode=None)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)
