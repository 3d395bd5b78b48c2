"""What a run will do, before it does it: `python train.py --dry-run`."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from fairjax import parallel, tables
from fairjax.config import Experiment
from fairjax.faces import reading
from fairjax.faces.judges import check_agreement
from fairjax.hub import NETWORK, PIPELINE, PORTRAITS, HubFiles, download_size, find, on_hub
from fairjax.models.functional import num_params
from fairjax.program import UserError, blame
from fairjax.progress import named
from fairjax.prompts import subjects
from fairjax.training.finetuning import Finetuning
from fairjax.training.run import Resume, check, prepare


def dry_run(config: Experiment, resume: Resume, console: Console, topology: str | None = None) -> None:
    """Prints the plan: devices, images, parameters, memory, downloads. Nothing is trained or written.

    Of models that are to be downloaded, only what describes them is: a few megabytes, which are enough to compile.

    Args:
        topology: of TPUs to plan for in place of this machine's devices, such as v5e:4x4.

    Raises:
        UserError: one line, for what would be wrong with the run; where the hub does not answer, what is known without.
    """
    training, missing = config.training, _missing(config)
    with blame("--topology"):
        mesh = parallel.mesh_of(topology) if topology else parallel.mesh()
    plan = {
        "devices": f"{mesh.size} x {mesh.devices.flat[0].device_kind}, {jax.process_count()} process(es)",
        "images in a step": f"{training.prompts_per_step} prompts x {training.images_per_prompt}, "
        f"{training.num_steps[0]} to {training.num_steps[1]} solver steps",
        "optimizer steps": f"{training.steps:,}",
        "target": _target(config),
        "to download": ", ".join(_to_download(name, files) for name, files in missing.items()) or "nothing",
        "run folder": str(Path(config.output)),
    }
    undescribed = [name for name, files in missing.items() if not _described(name, files)]
    if undescribed:
        check(config, Path(config.output), resume)
        _check_what_is_here(config, undescribed)
        plan["parameters, memory"] = f"known when the hub can be asked for {', '.join(undescribed)}"
    else:
        with parallel.hastily() if topology else contextlib.nullcontext():
            finetuning, _, _ = prepare(config, resume, mesh, weights=not (missing or topology))
            plan |= _sizes(finetuning, console)
    table = Table(show_header=False, title="What this run will do", title_justify="left")
    for what, value in plan.items():
        table.add_row(what, named(value))
    console.print(table)


def _target(config: Experiment) -> str:
    target = config.target
    shares = target.distribution or target.marginals or "uniform"
    others = [f"{len(target.prompts)} subjects of their own"] if target.prompts else []
    others += [f"table {target.table}"] if target.table else []
    return ", ".join([" x ".join(target.attributes), str(shares), *others])


def _missing(config: Experiment) -> dict[str, HubFiles]:
    judges = config.judges
    asked = {config.model: PIPELINE} | dict.fromkeys((*judges.semantics, *(judges.evaluation_semantics or ())), NETWORK)
    return {
        name: files for name, files in asked.items() if not name.startswith(f"{PORTRAITS}/") and on_hub(name, files)
    }


def _to_download(name: str, files: HubFiles) -> str:
    size = download_size(name, files)
    return name if size is None else f"{name} ({size / 1e9:.1f} GB)" if size >= 1e9 else f"{name} ({size / 1e6:.0f} MB)"


def _described(name: str, files: HubFiles) -> bool:
    """Whether the hub says what a model is."""
    try:
        find(name, files=files, weights=False)
    except FileNotFoundError:
        return False
    return True


def _check_what_is_here(config: Experiment, missing: list[str]) -> None:
    """Reads all judges but those of which nothing is known, and whom the run asks for."""
    section, here = config.judges, {}
    for field in ("semantics", "evaluation_semantics"):
        here[field] = tuple(name for name in getattr(section, field) or () if name not in missing)
    with blame("configuration"):
        section = section.model_copy(update=here)
        reading.evaluation_semantics(section, weights=False)
        judges, (measuring, _) = reading.judges(section), reading.evaluation_judge(section)
        target = tables.target(config.target, judges.judge.attributes, subjects(config.prompts).known)
        check_agreement(target.attributes, judges.judge, measuring)


def _sizes(finetuning: Finetuning, console: Console) -> dict[str, str]:
    state = finetuning.initial_shapes()
    pipeline, judges = finetuning.pipeline.params, finetuning.judges.params
    networks = {name: num_params(tree) for name, tree in pipeline.items()}
    console.print("compiling the training step, to know its memory", highlight=False)
    left = None
    with contextlib.suppress(UserError):  # of devices that do not say
        left = parallel.memory_left(finetuning.mesh)
    of = f", of {_gib(left)}" if left else ""
    memory, prompts = finetuning.compiled().memory_analysis(), finetuning.prompts(0)
    return {
        "attributes kept": attributes_kept(finetuning),
        "first prompts": "; ".join(prompt.text for prompt in prompts[:3]),
        "parameters of the model": ", ".join(f"{name} {_millions(count)}" for name, count in networks.items()),
        "parameters of the judges": _millions(num_params(judges)),
        "parameters trained": f"{', '.join(finetuning.config.adapter.kinds)}: {num_params(state.bundle):,}",
        "memory of a device": f"{_gib(memory.argument_size_in_bytes)} of models and state, "
        f"{_gib(memory.temp_size_in_bytes)} while a step runs{of}",
        "images at a time": str(finetuning.microbatch or "all"),
    }


def attributes_kept(finetuning: Finetuning) -> str:
    """Those that are to stay as they are."""
    others = [each.name for each in finetuning.attributes if each.name not in finetuning.target.attributes]
    if not others:
        return "none: the classifiers tell no others than the target's"
    return ", ".join(others) if finetuning.config.loss.other_attributes else "none (loss.other_attributes = 0)"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{math.ceil(size / 2**20)} MiB"
