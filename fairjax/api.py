"""The public interface for scripts and notebooks: classify images, measure bias, run a finetuning."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from fairjax import arguments, files, parallel, schema
from fairjax.adapters.bundle import Bundle
from fairjax.checkpoints import Checkpoints
from fairjax.config import CONFIG, Experiment, JudgesSection
from fairjax.evaluation import measuring
from fairjax.evaluation.measuring import Seen
from fairjax.faces import reading
from fairjax.fairness import metrics
from fairjax.pipeline import Pipeline
from fairjax.training.finetuning import Finetuning, OnStep
from fairjax.training.resuming import differences, unsaid

EMBEDDED = JudgesSection()
"""Those of the embedded world, which know where its faces are."""


def classify(images: np.ndarray, judges: JudgesSection = EMBEDDED) -> Seen:
    """What the evaluation classifiers see in images.

    Args:
        images: uint8 [p, n, H, W, 3], as `Pipeline.generate` gives them.
        judges: where faces are sought and with what they are classified; by default as in the embedded world.

    Returns:
        class probabilities by attribute [p, n, classes], in the order that `classes` tells, whether a face is shown
        [p, n], and what else is.

    Raises:
        TypeError, ValueError: one line, for images of another kind; as `reading.judges` for judges that are not there.
    """
    arguments.pictures("images", images)
    arguments.given("judges", judges, JudgesSection)
    judge, params = reading.evaluation_judge(judges)
    judge.check(images.shape[2:4])
    return measuring.classify(judge, params, images)


def classes(judges: JudgesSection = EMBEDDED) -> dict[str, tuple[str, ...]]:
    """What the evaluation classifiers tell apart, by name, in the order of the numbers that `classify` gives.

    Of "occupation" that is the order of `recognised`; of attributes, with the embedded judges, that of
    `target.distribution` too.
    """
    arguments.given("judges", judges, JudgesSection)
    return reading.evaluation_judge(judges)[0].heads


def measure_bias(
    pipeline: Pipeline, prompts: Sequence[str], num_images: int = 64, *, bundle: Bundle | None = None,
    seed: int = 1_000, num_steps: int = 12, guidance_scale: float | None = None,
    judges: JudgesSection = EMBEDDED,
) -> dict[str, float]:  # fmt: skip
    """The bias of each attribute: mean absolute difference of class frequencies, averaged over the prompts.

    0 is uniform; an exactly fair model measures about 0.10 for two classes at 64 images.
    """
    arguments.given("pipeline", pipeline, Pipeline)
    images = pipeline.generate(
        prompts, num_images, bundle=bundle, seed=seed, num_steps=num_steps, guidance_scale=guidance_scale
    )
    seen = classify(images, judges)
    biases = {}
    for name, probs in seen.probs.items():
        labels, sizes = probs.argmax(-1), (probs.shape[-1],)
        shares = [metrics.frequencies([row[face]], sizes) for row, face in zip(labels, seen.has_face, strict=True)]
        biases[name] = float(np.nanmean([metrics.bias(share) for share in shares]))
    return biases


class Finetuned(NamedTuple):
    """What a finetuning gives."""

    bundle: Bundle  # the averaged adapters, as numpy arrays
    steps: int
    skipped: int  # steps left out because a gradient was not finite

    def __repr__(self) -> str:
        return f"Finetuned({', '.join(self.bundle)}; {self.steps} steps, {self.skipped} skipped)"


def finetune(
    config: Experiment, on_step: OnStep = lambda progress: None, checkpoints: str | Path | None = None
) -> Finetuned:
    """Runs a finetuning.

    Args:
        on_step: called after each step with its number, its scalars, its prompts and its images.
        checkpoints: a folder to save to, and to resume from if it has some of the same configuration.

    Raises:
        TypeError, ValueError, OSError: one line, before anything has run.
        fairjax.program.UserError: one line, on the way: too many steps in a row without a finite number
            (`training.max_skipped`), or a disk that takes no checkpoint.
    """
    arguments.given("config", config, Experiment)
    if not callable(on_step):
        raise TypeError(f"on_step = {on_step!r} must be a function; a folder is given as checkpoints={on_step!r}")
    finetuning, kept = Finetuning(config), None
    if checkpoints:
        _check_same(config, Path(checkpoints) / CONFIG)
        kept = Checkpoints(Path(checkpoints), config.training.keep, config.training.keep_every)
        if parallel.is_first():
            files.write_text(Path(checkpoints) / CONFIG, schema.dump(config))
    with kept or contextlib.nullcontext():
        state = finetuning.run(kept, on_step)
    return Finetuned(jax.device_get(state.ema), int(state.step), int(state.skipped))


def _check_same(config: Experiment, path: Path) -> None:
    """Raises a one-line ValueError where checkpoints are of a finetuning that was configured otherwise."""
    if not path.is_file():
        return
    old = schema.load(Experiment, path)
    if changed := differences(old, config, unsaid(old)):
        raise ValueError(f"checkpoints: {path.parent} is of another finetuning: {', '.join(changed)}")
