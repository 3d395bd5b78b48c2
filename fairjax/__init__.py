"""fairjax finetunes text-to-image diffusion models so that they show people as the user chooses.

>>> import fairjax
>>> pipeline = fairjax.Pipeline.from_pretrained("portraits")
>>> images = pipeline.generate(["a portrait of a pilot"], num_images=4, seed=0)
>>> images.shape
(1, 4, 64, 64, 3)
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":  # which has not the locks and the signals that runs are kept safe with
    raise ImportError("fairjax runs on Linux and macOS; on Windows, install it inside of WSL")

if TYPE_CHECKING:
    from fairjax.api import classes, classify, finetune, measure_bias
    from fairjax.config import Experiment, JudgesSection
    from fairjax.convert.bundles import load_adapter, save_adapter
    from fairjax.parallel import prepare
    from fairjax.pipeline import Pipeline

__version__ = "0.1.0"

_HOMES = {
    "Pipeline": "fairjax.pipeline",
    "Experiment": "fairjax.config",
    "JudgesSection": "fairjax.config",
    "load_adapter": "fairjax.convert.bundles",
    "save_adapter": "fairjax.convert.bundles",
    "classes": "fairjax.api",
    "classify": "fairjax.api",
    "measure_bias": "fairjax.api",
    "finetune": "fairjax.api",
    "prepare": "fairjax.parallel",
}

__all__ = [
    "Experiment",
    "JudgesSection",
    "Pipeline",
    "classes",
    "classify",
    "finetune",
    "load_adapter",
    "measure_bias",
    "prepare",
    "save_adapter",
]


def __getattr__(name: str) -> Any:
    """Loads what is asked for when it is: `import fairjax` alone, as `train.py --help` does it, starts no jax."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fairjax' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
