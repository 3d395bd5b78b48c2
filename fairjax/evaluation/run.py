"""An evaluation from its configuration to its results: what `eval.py` does."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fairjax import files, parallel, prompts, schema, tables
from fairjax.config import ADAPTER, BEST, LOG, RESULTS, EvaluationSection, Experiment, SettingSection, config_of
from fairjax.convert.bundles import load_adapter
from fairjax.evaluation.columns import AFTER, BASE, Column, Setting
from fairjax.evaluation.comparison import Comparison, Networks
from fairjax.faces import reading
from fairjax.pipeline import Pipeline
from fairjax.program import blame, legible
from fairjax.progress import bars, counting

_STEPS, _GUIDANCE = (15, 50), {False: (1.5, 2.0, 3.0), True: (3.0, 5.0, 10.0, 12.0)}
"""What `--sweep` measures at: numbers of solver steps, and guidance scales by whether the model is used with one."""


def evaluate(
    config: Experiment, adapters: Sequence[Path], console: Console, command: Sequence[str] = ()
) -> dict[str, Any]:
    """Measures the base model, the finetuned ones, and the base model asked in the configuration's other words, all
    from the same noise; resumes where it was stopped. `command` is what asked for it, for the results.
    """  # fmt: skip
    with blame("configuration"):
        pipeline = Pipeline.from_pretrained(config.model, config.training.precision)
        judge, params = reading.evaluation_judge(config.judges)
        asked_for = prompts.subjects(config.prompts)
        target = tables.target(config.target, judge.attributes, asked_for.known)
        judge.check(pipeline.image_size)
        settings = [Setting.of(config, otherwise) for otherwise in config.evaluation.sweep]
        for setting in (Setting.of(config), *settings):
            pipeline.check_steps(setting.num_steps, "evaluation.num_steps", setting.solver)
        folder = Path(config.output)
        semantics = reading.evaluation_semantics(config.judges, config.training.precision)
        networks = Networks(semantics, reading.text_towers(config.judges), reading.revisions(config.judges))
        comparison = Comparison(
            pipeline, judge, params, target, asked_for.measuring(config.evaluation.subjects), config, folder,
            reading.errors(config.judges), networks, prompts.nobody(config.prompts),
        )  # fmt: skip
    columns = [Column(BASE, {})]
    with blame("--adapter"):
        for name, adapter in zip(names(adapters), adapters, strict=True):
            path = config_of(adapter)
            if path:
                prompts.check_unseen(asked_for, schema.load(Experiment, path).prompts, str(adapter))
            columns.append(Column(name, load_adapter(adapter, pipeline), log=path and path.parent / LOG))
    for name, words in config.evaluation.interventions.items():
        columns.append(Column(f"asked: {name}", {}, words))
    about = {"adapter": ", ".join(map(str, adapters)), "command": shlex.join(command)}
    with parallel.alone(folder):
        _tell_what_is_replaced(folder, config, about, console)
        comparison.tell_at_once(console)
        with bars(console) as progress:
            for column in columns:
                comparison.measure(column, counting(progress, column.name, comparison.num_images))
            if settings:
                count = len(settings) * len(columns) * len(comparison.prompts) * config.evaluation.images_per_prompt
                comparison.sweep(settings, counting(progress, "sweep", count))
        results = comparison.finish(console, about)
        if parallel.is_first():
            comparison.keep_data()
    return results


def _tell_what_is_replaced(folder: Path, config: Experiment, about: dict[str, str], console: Console) -> None:
    """One line, where the folder holds what was found otherwise."""
    try:
        earlier = files.read_json(folder / RESULTS)
    except (OSError, ValueError):
        return
    if (earlier.get("config"), earlier.get("adapter")) != (config.model_dump(mode="json"), about["adapter"]):
        told = f"{folder} holds an earlier evaluation, which this one replaces (--output keeps both)"
        command = earlier.get("command")
        told += legible(f": {command}") * bool(command)
        console.print(told, highlight=False, markup=False, soft_wrap=True)


def names(adapters: Sequence[Path]) -> list[str]:
    """What the columns of adapters are called: "after" where there is one, else by their runs' folders."""
    if len(adapters) == 1:
        return [AFTER]
    runs: list[str] = []
    for adapter in adapters:
        run = adapter.resolve()
        of_run = {ADAPTER: run.parent.name, BEST: f"{run.parent.name} ({BEST})"}
        runs.append(f"{AFTER}: {of_run.get(run.name, run.name)}")
    count = [runs[:place].count(name) for place, name in enumerate(runs)]
    return [f"{name} ({before + 1})" if before else name for name, before in zip(runs, count, strict=True)]


def usual_sweep(config: Experiment) -> tuple[SettingSection, ...]:
    """What users turn: the guidance scale, the number of steps and the solver, one at a time."""
    usual = Setting.of(config)
    other = "ddim" if usual.solver != "ddim" else "dpm-solver++"
    return (
        *(SettingSection(guidance_scale=scale) for scale in _GUIDANCE[usual.guidance_scale > 1]),
        *(SettingSection(num_steps=steps) for steps in _STEPS),
        SettingSection(solver=other),
    )


def with_sweep(config: Experiment) -> Experiment:
    """A configuration that measures at the usual sweep's settings, unless it names its own."""
    section: EvaluationSection = config.evaluation
    if section.sweep:
        return config
    return config.model_copy(update={"evaluation": section.model_copy(update={"sweep": usual_sweep(config)})})
