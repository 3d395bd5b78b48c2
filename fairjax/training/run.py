"""A run folder from its configuration to its results: what `train.py` does."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress

from fairjax import files, parallel, schema
from fairjax.adapters.bundle import Bundle
from fairjax.checkpoints import Checkpoints
from fairjax.config import ADAPTER, BEST, CHECKPOINTS, CONFIG, LOG, Experiment
from fairjax.convert import cards
from fairjax.convert.bundles import save_adapter
from fairjax.evaluation.columns import AFTER, BASE, Column, Setting
from fairjax.evaluation.comparison import Comparison, Networks
from fairjax.faces import reading
from fairjax.faces.judges import Judge, Semantics, check_agreement
from fairjax.models.functional import Params
from fairjax.program import UserError, blame
from fairjax.progress import bars, counting
from fairjax.training.finetuning import Finetuning, StepReport
from fairjax.training.interruption import Interrupted, Interruption, interruption
from fairjax.training.log import Log, check_client
from fairjax.training.resuming import differences, unsaid
from fairjax.training.state import State
from fairjax.training.validation import Validation
from fairjax.training.watch import STALLS, Watch

Resume = bool | Literal["anyway"]
"""Whether to continue the run in the folder; "anyway" even as it was not configured."""


def check(config: Experiment, folder: Path, resume: Resume) -> None:
    """Raises UserError where an earlier run is in the folder that this one does not continue.

    What differs from it "anyway" is told on standard error.
    """
    if not resume and any((folder / name).exists() for name in (CONFIG, CHECKPOINTS)):
        raise UserError(f"output = {config.output!r} holds a run already: add --resume, or choose another --output")
    if not (folder / CONFIG).is_file():
        return
    old = schema.load(Experiment, folder / CONFIG)
    changed = ", ".join(differences(old, config, unsaid(old)))
    if changed and resume != "anyway":
        how = f"a run continues as it was configured: --config {folder / CONFIG} --resume (or --resume-anyway)"
        if not differences(old, config):  # it is
            how = "--resume-anyway goes on so"
        raise UserError(f"--resume: {changed}; {how}")
    if changed and parallel.is_first():
        print(f"warning: --resume-anyway: {changed}", file=sys.stderr, flush=True)


def prepare(
    config: Experiment, resume: Resume, mesh: jax.sharding.Mesh | None = None, *, weights: bool = True
) -> tuple[Finetuning, Judge, dict[str, Params]]:  # fmt: skip
    """The finetuning, and what measures it; raises UserError for whatever can be known to be wrong before the run.

    Args:
        mesh, weights: as `Finetuning` has them; a plan needs no weights, and no devices.
    """
    with blame("configuration"):
        finetuning = Finetuning(config, mesh, weights=weights)
        judge, params = reading.evaluation_judge(config.judges)
        reading.evaluation_semantics(config.judges, weights=False)  # that they can be read
        usual = Setting.of(config)
        finetuning.pipeline.check_steps(usual.num_steps, "evaluation.num_steps", usual.solver)
        check_agreement(finetuning.target.attributes, finetuning.judges.judge, judge)
    check_client(config.training.wandb)
    check(config, Path(config.output), resume)
    return finetuning, judge, params


def run(config: Experiment, resume: Resume, console: Console, command: Sequence[str] = ()) -> dict | None:
    """Measures, finetunes, measures again, and leaves everything in the run folder; returns the results.

    None where it was asked to end before (SIGTERM, Ctrl-C): everything that was done is kept, for `--resume`.
    `command` is the command line that asked for it, for the results.
    """
    with interruption() as asked:
        try:
            return _run(config, resume, console, asked, command)
        except Interrupted:
            console.print("ended; the same command with --resume goes on from here", highlight=False)
            return None


def _run(config: Experiment, resume: Resume, console: Console, asked: Interruption, command: Sequence[str]) -> dict:
    began = time.monotonic()
    finetuning, judge, params = prepare(config, resume)
    prepared = time.monotonic() - began
    if finetuning.microbatch and not config.training.microbatch:
        told = (
            f"training.microbatch: networks see {finetuning.microbatch} images of a device at a time, to fit its memory"
        )
        console.print(told, highlight=False)
    folder, errors = Path(config.output), reading.errors(config.judges)
    parallel.wait_for_all("run folder checked")  # by all, before the first of them makes anything in it
    with parallel.alone(folder):
        with blame(f"output = {config.output!r}"):
            checkpoints = Checkpoints(folder / CHECKPOINTS, config.training.keep, config.training.keep_every)
            if checkpoints.lost() and resume != "anyway":
                told = f"every checkpoint in {folder / CHECKPOINTS} is damaged: there is nothing to go on from"
                raise UserError(f"--resume: {told}; --resume-anyway begins anew")
            start = finetuning.steps_taken(checkpoints)
            parallel.wait_for_all("checkpoint restored")
            if parallel.is_first():
                files.write_text(folder / CONFIG, schema.dump(config))
        comparison = Comparison(
            finetuning.pipeline, judge, params, finetuning.target,
            finetuning.subjects.measuring(config.evaluation.subjects), config, folder, errors,
            Networks(_semantics(finetuning), revisions=reading.revisions(config.judges)),
        )  # fmt: skip
        comparison.tell_at_once(console)
        with bars(console) as progress, checkpoints:
            comparison.measure(Column(BASE, {}), asked.checking(counting(progress, BASE, comparison.num_images)))
            if config.judges.evaluation_semantics is not None:  # the training needs their memory
                comparison.rest()
            state = _train(finetuning, checkpoints, start, folder, progress, asked, prepared)
            adapter: Bundle = jax.device_get(state.ema)
            if parallel.is_first():
                save_adapter(adapter, finetuning.pipeline, folder / ADAPTER)
            after = Column(AFTER, adapter, log=folder / LOG)
            comparison.measure(after, asked.checking(counting(progress, after.name, comparison.num_images)))
        about = {"steps": int(state.step), "skipped_steps": int(state.skipped), "seed": config.seed}
        results = comparison.finish(console, about | {"command": shlex.join(command)})
        if parallel.is_first():
            use = cards.use_of_folder(adapter, config.model, ADAPTER)
            cards.write(folder / ADAPTER, adapter, config, results, use)
        console.print(f"The adapter is in {folder / ADAPTER}", highlight=False)
        return results


def _semantics(finetuning: Finetuning) -> dict[str, tuple[Semantics, Params]]:
    """The networks that measure how far images keep their semantics: networks of their own, or those of the training,
    which are on the devices."""
    config = finetuning.config
    if config.judges.evaluation_semantics is not None:
        with blame("configuration"):
            return reading.evaluation_semantics(config.judges, config.training.precision)
    called = reading.called(config.judges.semantics, "semantics")
    placed = finetuning.place().judges["semantics"]
    return dict(zip(called, zip(finetuning.judges.semantics, placed, strict=True), strict=True))


def _train(
    finetuning: Finetuning, checkpoints: Checkpoints, start: int, folder: Path, progress: Progress,
    asked: Interruption, prepared: float,
) -> State:  # fmt: skip
    """Takes the steps that are left; raises Interrupted where it was asked to end before the last.

    `prepared` are the seconds that reading took, with compiling where memory decides the microbatch; the time until the
    first step includes them.
    """
    config = finetuning.config.training
    per_step = config.prompts_per_step * config.images_per_prompt
    log = Log(folder, start, per_step, config.wandb) if parallel.is_first() else None
    watch = Watch(folder / STALLS)
    task = progress.add_task("finetune", total=config.steps, completed=start, note="compiling")
    smoothed, began = {}, time.monotonic() - prepared
    followed = f"{finetuning.config.target.measure}/"

    def on_step(step: StepReport) -> None:
        due = step.step % config.images_every == 0 or step.step == step.steps
        images = step.images() if due else None  # every host has a part of them
        if log is None:
            return
        watch.beat()
        seconds = log(step, images)
        if step.step == start + 1:
            passed = time.monotonic() - began
            told = f"first step after {passed:.0f} s: reading and compiling included, measuring not"
            progress.console.print(told, highlight=False)
        for name, value in step.scalars.items():
            if not np.isnan(value):  # the bias of a step whose prompts ask for nobody is
                smoothed[name] = 0.9 * smoothed.get(name, value) + 0.1 * value
        near = "  ".join(f"{name} {value:.2f}" for name, value in smoothed.items() if name.startswith(followed))
        note = f"loss {smoothed.get('loss', np.nan):.3f}  {near}  {per_step / seconds:.1f} images/s"
        progress.update(task, completed=step.step, note=note)
        if not progress.console.is_terminal and step.step % 10 == 0:
            progress.console.print(f"finetune {step.step}/{step.steps}  {note}", highlight=False)

    def on_look(step: int, scalars: dict[str, float], bundle: Bundle) -> None:
        log.scalars(step, scalars)
        told = "  ".join(f"{name.partition('/')[2]} {value:.2f}" for name, value in scalars.items())
        progress.console.print(f"validation at {step}: {told}", highlight=False)
        if validation.best == step:
            adapter, settings = jax.device_get(bundle), finetuning.config
            save_adapter(adapter, finetuning.pipeline, folder / BEST)
            cards.write(folder / BEST, adapter, settings, None, cards.use_of_folder(adapter, settings.model, BEST))

    # a look may take as long as many steps: it is left where it is, and taken again when the run goes on
    on_batch = asked.checking(lambda images: watch.alive())
    validation = Validation(finetuning, folder, start, on_look, on_batch)
    try:
        with watch:
            state = finetuning.run(checkpoints, on_step, asked.on_any_host, validation)
        if int(state.step) < config.steps:
            raise Interrupted
        return state
    finally:
        if log:
            log.close()
