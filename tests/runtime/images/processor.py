"""transformers' image processor as a peer, where torchvision is installed, and samples of its output for anywhere."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

SAMPLES: dict[str, Any] = json.loads(Path(__file__).with_name("processor.json").read_text(encoding="utf-8"))
MOST_OPERATORS = 40


def pattern(height: int, width: int) -> Tensor:
    """Pixels [3, height, width] that are the same on every machine, with steep and with gentle slopes."""
    y, x = torch.arange(height)[:, None], torch.arange(width)[None]
    planes = ((x * 7 + y * 3) % 256, (x * x // 5 + y * 11) % 256, ((x ^ y) * 13) % 256)
    return torch.stack(planes).to(torch.uint8)


def llama4_processor() -> Any:
    """`Llama4ImageProcessor`; skips without torchvision.

    A torchvision wheel for another torch does not load its own operators, which resizing does without, and then
    refuses to be imported until they are declared.
    """
    pytest.importorskip("torchvision", reason="torchvision is not installed", exc_type=ModuleNotFoundError)
    from transformers.models.llama4.image_processing_llama4 import Llama4ImageProcessor

    return Llama4ImageProcessor()


def declare_operators() -> None:
    """Declare the operators that an unmatched torchvision misses, until it can be imported."""
    library: Any = torch.library
    library = library.Library("torchvision", "FRAGMENT")
    for _ in range(MOST_OPERATORS):
        try:
            import torchvision  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
        except ModuleNotFoundError:
            return
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            for name in [name for name in sys.modules if name.startswith("torchvision")]:
                del sys.modules[name]
            library.define(f"{missing[1]}(Tensor x) -> Tensor")
        else:
            return
