"""An evaluation from its configuration to its results: what `eval.py` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from fairjax import parallel, tables
from fairjax.config import Experiment
from fairjax.convert.bundles import load_adapter
from fairjax.evaluation.comparison import Comparison
from fairjax.faces import reading
from fairjax.pipeline import Pipeline
from fairjax.progress import bars, counting
from fairjax.prompts import subjects
from fairjax.schema import blame


def evaluate(config: Experiment, adapter: Path, console: Console) -> dict[str, Any]:
    """Measures the base and the finetuned model from the same noise, resuming where it was stopped."""
    with blame("configuration"):
        pipeline = Pipeline.from_pretrained(config.model, config.training.precision)
        judge, params = reading.evaluation_judge(config.judges)
        asked_for = subjects(config.prompts)
        target = tables.target(config.target, judge.attributes, asked_for.known)
        prompts = asked_for.measuring(config.evaluation.subjects)
        judge.check(pipeline.image_size)
        pipeline.check_steps(config.evaluation.num_steps, "evaluation.num_steps")
        folder = Path(config.output)
        comparison = Comparison(
            pipeline, judge, params, target, prompts, config, folder, reading.errors(config.judges),
            reading.by_name(config.judges, reading.semantics_of(config.judges, config.training.precision)),
        )  # fmt: skip
    with blame("--adapter"):
        bundle = load_adapter(adapter, pipeline)
    with blame(f"output = {config.output!r}"):
        folder.mkdir(parents=True, exist_ok=True)
    with bars(console) as progress:
        for name, chosen in (("before", {}), ("after", bundle)):
            comparison.measure(name, chosen, counting(progress, name, comparison.num_images))
    results = comparison.finish(console, {"adapter": str(adapter)})
    if parallel.is_first():
        comparison.keep_data()
    return results
