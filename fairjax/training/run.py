"""A run folder from its configuration to its results: what `train.py` does."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress

from fairjax import schema
from fairjax.adapters.bundle import Bundle
from fairjax.checkpoints import Checkpoints
from fairjax.config import ADAPTER, CONFIG, Experiment
from fairjax.convert.bundles import save_adapter
from fairjax.evaluation.comparison import Comparison
from fairjax.faces import judges
from fairjax.pipeline import find
from fairjax.progress import bars, counting
from fairjax.schema import UserError, blame
from fairjax.training.finetuning import Finetuning
from fairjax.training.finetuning import Progress as Step
from fairjax.training.log import Log


def prepare(config: Experiment, resume: bool) -> Path:
    """The run folder with its `config.yaml`; UserError where an earlier run of another configuration is in it."""
    folder = Path(config.output)
    kept = folder / CONFIG
    text = schema.dump(config)
    if kept.is_file():
        if not resume:
            raise UserError(f"output = {config.output!r} holds a run already: add --resume, or choose another --output")
        changed = _first_difference(schema.load(Experiment, kept), config)
        if changed:
            raise UserError(f"--resume: {changed}; a run continues as it was configured")
    folder.mkdir(parents=True, exist_ok=True)
    kept.write_text(text)
    return folder


def _first_difference(old: Experiment, new: Experiment) -> str | None:
    before, after = _flat(old.model_dump()), _flat(new.model_dump())
    for name in before:
        if before[name] != after[name] and name != "training.steps":  # more steps are more of the same
            return f"{name} = {after[name]!r}, but the run has {before[name]!r}"
    return None


def _flat(fields: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in fields.items():
        inner = isinstance(value, dict) and name not in ("marginals", "prompts", "cost_weights", "factor1", "factor2")
        flat |= (
            _flat(value, f"{prefix}{name}.") if inner or name == "prompts" and not prefix else {prefix + name: value}
        )
    return flat


def run(config: Experiment, resume: bool, console: Console) -> dict:
    """Measures, finetunes, measures again, and leaves everything in the run folder; returns the results."""
    with blame("configuration"):
        finetuning = Finetuning(config)
        classifier, params = judges.load_evaluation(find(config.judges))
    folder = prepare(config, resume)
    comparison = Comparison(
        finetuning.pipeline, classifier, jax.device_put(params), finetuning.target,
        finetuning.subjects.measuring(config.evaluation.subjects), config, folder,
    )  # fmt: skip
    with bars(console) as progress:
        comparison.measure("before", {}, counting(progress, "before", comparison.num_images))
        state = _train(finetuning, folder, progress)
        adapter: Bundle = jax.device_get(state.ema)
        save_adapter(adapter, finetuning.pipeline, folder / ADAPTER)
        comparison.measure("after", adapter, counting(progress, "after", comparison.num_images))
    return comparison.finish(
        console, {"steps": int(state.step), "skipped_steps": int(state.skipped), "seed": config.seed}
    )


def _train(finetuning: Finetuning, folder: Path, progress: Progress):
    config = finetuning.config.training
    checkpoints = Checkpoints(folder / "checkpoints")
    start = checkpoints.latest() or 0
    if start > config.steps:
        raise UserError(f"training.steps = {config.steps}, but the run has {start} steps already")
    log = Log(folder, config.images_every, start, config.wandb)
    task = progress.add_task("finetune", total=config.steps, completed=start, note="compiling")
    per_step, smoothed = config.prompts_per_step * config.images_per_prompt, {}

    def on_step(step: Step) -> None:
        seconds = log(step)
        for name, value in step.scalars.items():
            smoothed[name] = (
                value if name not in smoothed or np.isnan(smoothed[name]) else 0.9 * smoothed[name] + 0.1 * value
            )
        bias = "  ".join(f"{name} {value:.2f}" for name, value in smoothed.items() if name.startswith("bias/"))
        note = f"loss {smoothed['loss']:.3f}  {bias}  {per_step / seconds:.1f} images/s"
        progress.update(task, completed=step.step, note=note)
        if not progress.console.is_terminal and step.step % 10 == 0:
            progress.console.print(f"finetune {step.step}/{step.steps}  {note}", highlight=False)

    try:
        return finetuning.run(checkpoints, on_step)
    finally:
        checkpoints.close()
        log.close()
