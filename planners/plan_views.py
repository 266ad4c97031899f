"""Text and notebook views of a plan, equal to the reports of the command line.

The pages are rendered by `l4spec.report`, which is above the planner and is therefore imported only on use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, PrivateAttr

from l4spec.errors import UserError

if TYPE_CHECKING:
    from l4spec.graph.layer_graph import LayerGraph

_PYDANTIC = frozenset(vars(BaseModel))
_PAGES = "l4spec.report.plan_in_session"


class ShownPlan(BaseModel):
    """Base class of a plan, with its views. Equality compares the document and ignores the graph it was made from."""

    model_config = ConfigDict(defer_build=True)

    _graph: "LayerGraph | None" = PrivateAttr(default=None)

    def made_from(self, graph: "LayerGraph") -> None:
        """Attach the graph, whose arithmetic `explain` shows."""
        self._graph = graph

    def to_dict(self) -> dict[str, Any]:
        """The document of `--format json`, as numbers, strings, lists and dicts."""
        return self.model_dump(mode="json")

    def report(self, *, verbose: bool = False, width: int = 100) -> str:
        """The text that `l4spec plan` prints, with `verbose` every table of the detail."""
        return str(import_module(_PAGES).report(self, verbose=verbose, width=width))

    def explain(self, *, width: int = 100) -> str:
        """The text that `l4spec plan --explain` adds: each number's arithmetic and the source of every constant.

        Raises UserError for a plan that was read from a document, which has no graph.
        """
        if self._graph is None:
            raise UserError("this plan was read from a document", hint="plan again with the options in plan.request")
        return str(import_module(_PAGES).explain(self, self._graph, width=width))

    def __repr__(self) -> str:
        return str(import_module(_PAGES).brief(self))

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return str(import_module(_PAGES).table(self))

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __dir__(self) -> list[str]:
        """The plan's own names; pydantic's methods work but are not listed."""
        own = (name for name in super().__dir__() if name not in _PYDANTIC or name.startswith("__"))
        return sorted({*own, "model_dump", "model_dump_json"})

    __hash__ = None  # type: ignore[assignment]

    def __getstate__(self) -> dict[Any, Any]:
        """Pickle without the graph: a plan is its document."""
        return {**super().__getstate__(), "__pydantic_private__": {"_graph": None}}
