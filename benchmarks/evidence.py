"""What each part of a finetuning buys: studies in the embedded world, several seeds of each, tabled and drawn.

    python -m benchmarks.evidence gradients --runs runs/evidence --picture docs/evidence_gradients.png

A study finetunes every variant of something under every seed by `train.py`, and measures all of them by one `eval.py`,
so on the same prompts and noise. Both go on where they were ended: repeat the command. `--seeds`, `--steps` and
`--images` make a study smaller or larger; the table says what they were. Finetunings of several studies are done once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fairjax import files
from fairjax.config import Experiment
from fairjax.evaluation.columns import BASE
from fairjax.fairness.intervals import ends
from fairjax.portraits.occupations import TRAINED
from fairjax.schema import load
from fairjax.training.resuming import unsaid

ROOT = Path(__file__).parent.parent
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's: told apart by the colour-blind too."""

Fields = dict[str, Any]


WISHED = {who: [0.25, 0.75] if number % 2 else [0.75, 0.25] for number, who in enumerate(TRAINED[:8])}
"""Of women and men, for some occupations: few, so that a short finetuning meets each of them often."""

BY_OCCUPATION = {"prompts.subjects": list(WISHED), "target.prompts": WISHED}

THREE_QUARTERS_YOUNG = {
    "target.attributes": ["age"], "target.marginals": {"age": [0.75, 0.25]},
    "loss.factor1": {"age": 0.6}, "loss.factor2": {"age": 0.3},
}  # fmt: skip

FINETUNINGS: dict[str, tuple[str, Fields]] = {
    "default": ("gender", {}),
    **{
        way: ("gender", {"training.gradient": way, "training.grad_steps": None})
        for way in ("exact", "unscaled", "adjusted", "uniform")
    },
    "grad-steps-1": ("gender", {"training.grad_steps": 1}),
    "grad-steps-all": ("gender", {"training.grad_steps": None}),
    "no-image-loss": ("gender", {"loss.image": 0}),
    "no-face-loss": ("gender", {"loss.face": 0}),
    "no-threshold": ("gender", {"loss.threshold": 1}),
    "soft-tokens": ("gender_soft_prompt", {}),
    "text-encoder": ("gender_text_encoder", {}),
    "both": ("gender_both", {}),
    "by-occupation": ("gender", BY_OCCUPATION),
    "by-occupation-no-threshold": ("gender", BY_OCCUPATION | {"loss.threshold": 1}),
    "three-quarters-young-threshold-0.2": ("gender", THREE_QUARTERS_YOUNG | {"loss.threshold": 0.2}),
    "three-quarters-young-no-threshold": ("gender", THREE_QUARTERS_YOUNG | {"loss.threshold": 1}),
    "nobody-tenth": ("gender", {"prompts.nobody_share": 0.1}),
    **{f"sets-{count}": ("gender_skin", {"loss.num_sets": count}) for count in (10, 100, 1000)},
}
"""A configuration of configs/portraits, and what is otherwise than there."""

BEGUN = {"prompts.nobody_share": 0, "loss.threshold": 0.4, "loss.other_attributes": 0}
"""What the default was when the studies began; as in the paper every prompt tells of what is studied."""

PACES = {"grad-steps-1": 1.1, "grad-steps-all": 0.66}
"""How many steps these take in the time of one of the default's: a finetuning takes as long as the others."""


class Study(NamedTuple):
    """Finetunings that are compared, by what they are called there."""

    title: str
    variants: dict[str, str]
    nobody: bool = False  # whether pictures of nobody are measured, too


STUDIES = {
    "gradients": Study(
        "which gradient finetunes",
        {"exact": "exact", "unscaled (s = 1)": "unscaled", "adjusted": "adjusted", "uniform": "uniform"},
    ),
    "losses": Study(
        "which term of the loss buys what",
        {
            "all of them": "default",
            "images may change": "no-image-loss",
            "faces may change": "no-face-loss",
            "the unsure, too": "no-threshold",
        },
    ),
    "sets": Study(  # of eight joint classes, whose counts are too many to go through
        "how many sets of labels are drawn", {f"{count} sets": f"sets-{count}" for count in (10, 100, 1000)}
    ),
    "uneven": Study(
        "three quarters of the people young",
        {
            "a threshold of 0.2": "three-quarters-young-threshold-0.2",
            "no threshold": "three-quarters-young-no-threshold",
        },
    ),
    "by_occupation": Study(
        "four occupations three quarters women, four a quarter",
        {"a threshold of 0.4": "by-occupation", "no threshold": "by-occupation-no-threshold"},
    ),
    "adapters": Study(
        "what is trained",
        {"soft tokens": "soft-tokens", "text encoder": "text-encoder", "UNet": "default", "both": "both"},
    ),
    "nobody": Study(
        "how often a training prompt asks for nobody", {"never": "default", "one in ten": "nobody-tenth"}, nobody=True
    ),
    "grad_steps": Study(
        "solver steps that estimate the gradient, in equal time",
        {"1": "grad-steps-1", "2": "default", "all": "grad-steps-all"},
    ),
}


class Run(NamedTuple):
    """A finetuning under a seed."""

    variant: str  # what the study calls it
    finetuning: str
    seed: int
    folder: Path


def runs(study: Study, seeds: Sequence[int], folder: Path) -> list[Run]:
    """Those of a study; what two studies have in common lies in one folder."""
    return [Run(*both, seed, folder / f"{both[1]}-{seed}") for seed in seeds for both in study.variants.items()]


def command(program: str, fields: Fields, *options: str) -> list[str]:
    """A command line of train.py or eval.py."""
    said = [word for name, value in fields.items() for word in (f"--{name}", json.dumps(value).strip('"'))]
    return [sys.executable, str(ROOT / program), *options, *said]


def train(run: Run, steps: int, said: Fields) -> None:
    """Finetunes, unless it has been done; what the run's own table would measure is left to `measure`."""
    if (run.folder / "results.json").is_file():
        return
    config, fields = FINETUNINGS[run.finetuning]
    unmeasured = {"evaluation.subjects": 1, "evaluation.images_per_prompt": 2, "validation.every": None}
    path = ROOT / "configs" / "portraits" / f"{config}.yaml"
    usual = unsaid(load(Experiment, path))
    run_steps = round(steps * PACES.get(run.finetuning, 1))
    own = {"training.steps": run_steps, "seed": run.seed, "output": str(run.folder)}
    begun = {name: value for name, value in BEGUN.items() if name in usual}  # of a configuration's own, nothing
    fields = unmeasured | begun | fields | said | own
    subprocess.run(command("train.py", fields, "--config", str(path), "--resume"), check=True, cwd=ROOT)


def measure(done: Sequence[Run], folder: Path, fields: Fields) -> dict[str, Any]:
    """All runs side by side; what has been measured before is not generated again."""
    adapters = [word for run in done for word in ("--adapter", str(run.folder))]
    subprocess.run(command("eval.py", fields | {"output": str(folder)}, *adapters), check=True, cwd=ROOT)
    return json.loads((folder / "results.json").read_text())


def interval(values: np.ndarray, draws: int = 4000) -> tuple[float, float]:
    """95% of the mean of values [p], by the bootstrap over them."""
    again = np.random.default_rng(0).choice(values, (draws, len(values))).mean(1)
    low, high = ends(again, len(values), 0.95)
    return float(low), float(high)


class Shown(NamedTuple):
    """What is told of a variant in one kind of prompts: means over seeds."""

    distance: float  # bias, or where the target is not even the total variation from it
    interval: tuple[float, float]  # over prompts, of each one's mean over seeds
    by_seed: list[float]
    recognised: float
    uncertain: float
    similarity: float


def shown(results: dict[str, Any], columns: Sequence[str], held_out: bool) -> Shown:
    """Of the columns of a variant, one for each seed."""
    kind, key = ("trained", "held_out")[held_out], " x ".join(results["targets"])
    prompts = [entry for entry in results["per_prompt"] if entry["held_out"] == held_out]
    figure = "bias" if _even(results) else "total_variation"
    found = np.array([[prompt[column][key][figure] for prompt in prompts] for column in columns])
    means = [results[column][kind] for column in columns]
    kept = next(iter(results["preservation"].values()))[kind]["similarity"]
    alike = [1.0 if column == BASE else kept[column] for column in columns]
    return Shown(
        float(found.mean()), interval(found.mean(0)), [float(row.mean()) for row in found],
        float(np.mean([mean["recognised"] for mean in means])),
        float(np.mean([mean["low_confidence"] for mean in means])),
        float(np.mean(alike)),
    )  # fmt: skip


def _even(results: dict[str, Any]) -> bool:
    wished = [list(shares.values()) for prompt in results["per_prompt"] for shares in prompt["wished"].values()]
    return all(np.allclose(shares, np.mean(shares)) for shares in wished)


class Share(NamedTuple):
    """Of a class, over all prompts of a kind that wish for the same of it."""

    kind: str
    name: str
    wished: float
    measured: float
    interval: tuple[float, float]


def shares(results: dict[str, Any], columns: Sequence[str]) -> list[Share]:
    """How often each class of the target is shown, by what was wished for; of two classes, the first."""
    found: dict[tuple[str, str, str, float], list[float]] = {}
    for prompt in results["per_prompt"]:
        kind = "held out" if prompt["held_out"] else "trained"
        for attribute, wished in prompt["wished"].items():
            for label in list(wished)[: 1 if len(wished) == 2 else None]:
                each = [prompt[column][attribute]["frequencies"][label] for column in columns]
                found.setdefault((kind, attribute, label, wished[label]), []).append(float(np.mean(each)))
    return [
        Share(kind, label, wished, float(np.mean(values)), interval(np.array(values)))
        for (kind, _, label, wished), values in found.items()
    ]


class Curve(NamedTuple):
    """How a variant's seeds went on, [n] each."""

    seconds: np.ndarray  # of training, without the first step's compilation
    loss: np.ndarray  # by which targets are reached, averaged over the last steps and the seeds


def curve(done: Sequence[Run], window: int = 20) -> Curve:
    logs = [files.json_lines(run.folder / "log.jsonl", seconds=float) for run in done]
    length = min(map(len, logs))
    seconds = np.array([[row["seconds"] for row in log[:length]] for log in logs])
    seconds[:, 0] = np.median(seconds, axis=1)
    losses = np.array([[row.get("loss/fairness", np.nan) for row in log[:length]] for log in logs])
    smooth = [np.nanmean(losses[:, max(0, end - window) : end]) for end in range(1, length + 1)]
    return Curve(seconds.mean(0).cumsum(), np.array(smooth))


def report(study: Study, done: Sequence[Run], results: dict[str, Any]) -> str:
    """Markdown: a row for the base and each variant; below it the shares where the target is not even."""
    figure = "bias" if _even(results) else "distance to the target"
    lines = [
        f"| {study.title} | {figure}, trained (95%) | held out (95%) | seeds | recognised | uncertain | like before | "
        "trained for |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, columns in by_variant(study, done, results).items():
        near, far = (shown(results, columns, held_out) for held_out in (False, True))
        mine = [run for run in done if run.variant == name]
        took = np.diff(curve(mine).seconds) if mine else []
        time = f"{len(took) + 1} steps of {np.median(took):.2f} s" if mine else ""
        seeds = ", ".join(f"{a:.2f}/{b:.2f}" for a, b in zip(near.by_seed, far.by_seed, strict=True)) if mine else ""
        cells = [f"{side.distance:.2f} ({side.interval[0]:.2f} to {side.interval[1]:.2f})" for side in (near, far)]
        pairs = [f"{getattr(near, key):.1%} / {getattr(far, key):.1%}" for key in ("recognised", "uncertain")]
        lines.append(
            f"| {name} | {' | '.join(cells)} | {seeds} | {' | '.join(pairs)} | "
            f"{near.similarity:.3f} / {far.similarity:.3f} | {time} |"
        )
    if not _even(results):
        lines += ["", "| shares | prompts | wished | before | after (95%) |", "| --- | --- | --- | --- | --- |"]
        for name, columns in by_variant(study, done, results).items():
            if name != BASE:
                for old, new in zip(shares(results, [BASE]), shares(results, columns), strict=True):
                    low, high = new.interval
                    lines.append(f"| {name}: {new.name} | {new.kind} | {new.wished:.3g} | {old.measured:.2f} | "
                                 f"{new.measured:.2f} ({low:.2f} to {high:.2f}) |")  # fmt: skip
    if "nobody" in results:
        lines += ["", *_of_nobody(study, done, results)]
    return "\n".join(lines)


def _of_nobody(study: Study, done: Sequence[Run], results: dict[str, Any]) -> list[str]:
    """Rows: how often pictures of nobody show somebody, and how alike they stay."""
    lines = ["| prompts that ask for nobody | show a face | by seed | like before |", "| --- | --- | --- | --- |"]
    faces, kept = results["nobody"]["faces"], next(iter(results["nobody"]["preservation"].values()))["similarity"]
    for name, columns in by_variant(study, done, results).items():
        found, alike = [faces[column] for column in columns], [kept.get(column, 1.0) for column in columns]
        by_seed = ", ".join(f"{share:.1%}" for share in found)
        lines.append(f"| {name} | {np.mean(found):.1%} | {by_seed} | {np.mean(alike):.3f} |")
    return lines


def by_variant(study: Study, done: Sequence[Run], results: dict[str, Any]) -> dict[str, list[str]]:
    """The base's column and those of each variant, which have the order of the runs."""
    named = list(zip(done, (name for name in results["columns"] if name != BASE), strict=True))
    return {BASE: [BASE]} | {name: [column for run, column in named if run.variant == name] for name in study.variants}


def draw(study: Study, done: Sequence[Run], results: dict[str, Any], path: Path) -> None:
    """The loss over the time of training, and what was measured after it, with intervals and every seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    seeds = len({run.seed for run in done})
    lengths = {len(curve([run]).loss) for run in done}
    steps = " to ".join(map(str, sorted({min(lengths), max(lengths)})))
    figure.suptitle(f"{study.title}: {seeds} seed{'s' * (seeds > 1)} of {steps} steps", fontsize=11)
    for colour, name in zip(COLOURS, study.variants, strict=False):
        went = curve([run for run in done if run.variant == name])
        left.plot(went.seconds, went.loss, color=colour, label=name)
    left.set(xlabel="seconds of training", ylabel="alignment loss, mean of 20 steps")
    left.set_ylim(bottom=0)
    left.legend(fontsize=8)
    variants = by_variant(study, done, results)
    for place, (name, columns) in enumerate(variants.items()):
        colour = "#555555" if name == BASE else COLOURS[place - 1]
        for held_out, marker, offset in ((False, "o", -0.14), (True, "D", 0.14)):
            side = shown(results, columns, held_out)
            low, high = side.interval
            error = [[side.distance - low], [high - side.distance]]
            right.errorbar(
                side.distance, place + offset, xerr=error, fmt=marker, color=colour, capsize=3,
                markerfacecolor="white" if held_out else colour,
            )  # fmt: skip
            right.plot(side.by_seed, [place + offset] * len(side.by_seed), "|", color=colour, markersize=9)
    right.set_yticks(range(len(variants)), list(variants))
    right.invert_yaxis()
    right.set_xlim(left=0)
    right.set_xlabel(f"{'bias' if _even(results) else 'distance to the target'}; filled: trained, hollow: held out")
    for panel in (left, right):
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"), help="folder of folders (runs/evidence)")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 (default: 3)")
    parser.add_argument("--steps", type=int, default=350, help="of each finetuning (default: 350)")
    parser.add_argument("--prompts", type=int, help="of a step (default: the configuration's)")
    parser.add_argument("--subjects", type=int, default=24, help="trained and held-out ones measured (default: 24)")
    parser.add_argument("--images", type=int, default=64, help="of each prompt measured (default: 64)")
    parser.add_argument("--picture", type=Path, help="a PNG to draw")
    options = parser.parse_args()
    study = STUDIES[options.study]
    folder, said = options.runs / f"{options.steps}-steps", {}
    if options.prompts:
        folder, said = Path(f"{folder}-of-{options.prompts}"), {"training.prompts_per_step": options.prompts}
    done = runs(study, range(options.seeds), folder)
    for run in done:
        train(run, options.steps, said)
    fields = {
        "evaluation.subjects": options.subjects, "evaluation.images_per_prompt": options.images,
        "evaluation.seed": 2000, **({} if study.nobody else {"prompts.nobody": []}),
    }  # fmt: skip
    results = measure(done, folder / "measured" / options.study, fields)
    told = f"{options.images} images a prompt, {options.steps} steps"
    if options.prompts:
        told += f" of {options.prompts} prompt" + "s" * (options.prompts > 1)
    print(f"\n{told}\n\n{report(study, done, results)}")
    if options.picture:
        draw(study, done, results, options.picture)
        print(f"wrote {options.picture}")


if __name__ == "__main__":
    main()
