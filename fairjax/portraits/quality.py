"""How good the embedded world is: `python -m fairjax.portraits.quality` measures it and writes docs/portraits.md.

The pretraining does so at its end.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from fairjax import parallel
from fairjax.config import PORTRAIT_GUIDANCE, JudgesSection
from fairjax.evaluation import measuring
from fairjax.evaluation.grid import image_grid
from fairjax.evaluation.preservation import frechet
from fairjax.faces import reading
from fairjax.faces.judges import Judge
from fairjax.fairness import metrics
from fairjax.hub import PORTRAITS, find
from fairjax.models.functional import Params, to_pixels, to_uint8
from fairjax.pipeline import Pipeline
from fairjax.portraits import captions, occupations, world
from fairjax.portraits.pretrain import ADVERSARY, NUM_HELD_OUT, SEED, UNBIASED
from fairjax.program import Parser, command

EACH, _STEPS = 24, 25
"""Images of each occupation, and how they are sampled."""

_PAGE = """# The embedded world: portraits

`fairjax.portraits` is a small world in which everything can be known: a renderer draws people in 72 occupations, with
a gender presentation, a skin tone of the ten of the Monk Skin Tone scale, and an age. On its pictures,
`python -m fairjax.portraits.pretrain` trains every network that a real project downloads. The captions say the
occupation, sometimes the background, and three in ten also what the person looks like ("an old female chef"). The
pictures of each occupation are skewed, by a rule that is arbitrary and says nothing about any real occupation. So the
model learns those skews, as Stable Diffusion has learned its own, and like it knows the words with which one could ask
for somebody else.

## What it can and cannot tell

The classifiers read what pictures *show*: hair, beard, lips, grey hair, lines, a colour. That is presentation as a
classifier perceives it, in drawings. It is nobody's gender, race or age, and the classifiers are of no use on
photographs of people: do not use them there.

There are two. The one that finetuning listens to is trained on the worst picture within a distance of {radius} around
each (found by an adversary, Wong et al., 2020), so that its gradient is one of hair, beards and lips. One trained on
the pictures alone is pleased by smears that nobody would take for a face. The other classifier only measures: it is
wider, has another seed and sees other variations.

## Measured

Written by `python -m fairjax.portraits.quality`, on {held_out} renders that no network has seen and on {samples}
samples of the shipped model ({each} of each occupation, {steps} solver steps, guidance {guidance}).

| | |
| --- | --- |
| autoencoder, PSNR on held-out renders | {psnr:.1f} dB (aim: 27) |
{accuracies}
| occupation recognised in samples | {recognised:.1%} (aim: 90%) |
| samples with a face | {faces:.1%} |
| samples whose gender both classifiers see alike | {alike:.1%} |
| samples of "a female" and "a male" occupation that show it | {obeyed:.1%} |
| mean gender gap, held-out occupations | {gap:.2f} (aim: at least 0.60; the training pictures have {data_gap:.2f}) |
| skew in gender of an occupation, told by the text encoder from those of others (R²) | {told:.2f} |
| Fréchet distance of features, samples to renders | {distance:.1f} (renders to other renders: {floor:.1f}) |

The gap is the difference of the shares of women and men, by the evaluation classifier, averaged over occupations; at
{each} images an exactly fair model measures about {fair:.2f}. The features are the evaluation classifier's last hidden
layer.

The text encoder has learned from close-ups of faces whom the pictures of an occupation show (R² above: a ridge
regression from its hidden states, each eighth of the occupations told from the others). Large text encoders know such
things from the web; finetuning depends on it, because only what occupations share in the text encoder can carry over to
those that it never trained on. Without close-ups R² was below 0, and 120 steps of finetuning took the gap of the
occupations trained on from 0.63 to 0.40, and that of others from 0.76 to 0.72.

## Renders

![renders](portraits_renders.png)

## Held-out renders (above) and their reconstructions (below)

![reconstructions](portraits_reconstructions.png)

## Samples

![samples](portraits_samples.png)
"""


def told_from_others(features: np.ndarray, values: np.ndarray, folds: int = 8, ridge: float = 0.1) -> float:
    """R² of `values` [n] by ridge regression on `features` [n, d], each fold predicted from the others."""
    predicted = np.zeros(len(values))
    for fold in range(folds):
        left_out = np.arange(len(values)) % folds == fold
        mean, level = features[~left_out].mean(0), values[~left_out].mean()
        known = features[~left_out] - mean
        kernel = known @ known.T
        kernel += ridge * np.trace(kernel) / len(known) * np.eye(len(known))
        weights = known.T @ np.linalg.solve(kernel, values[~left_out] - level)
        predicted[left_out] = (features[left_out] - mean) @ weights + level
    return float(1 - np.square(values - predicted).sum() / np.square(values - values.mean()).sum())


def _obeyed(pipeline: Pipeline, judge: Judge, params: dict[str, Params], names: list[str], gender: int) -> float:
    """The share of pictures of the gender that their prompts ask for, four of each occupation."""
    word = captions.WORDS["gender"][gender]
    prompts = [captions.fill("a photo of the face of a {occupation}, a person", f"{word} {name}") for name in names]
    images = pipeline.generate(prompts, 4, num_steps=_STEPS, guidance_scale=PORTRAIT_GUIDANCE, seed=SEED + 1)
    return float((measuring.classify(judge, params, images).probs["gender"].argmax(-1) == gender).mean())


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m fairjax.portraits.quality", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("docs"), help="where the page and its pictures go (default: docs)"
    )
    parser.add_argument("--model", default=PORTRAITS, help="a folder that the pretraining wrote (default: what ships)")
    parser.add_argument("--each", type=int, default=EACH, help=f"samples of each occupation (default: {EACH})")
    options = parser.parse_args(argv)
    parallel.prepare()
    console = Console(highlight=False)
    options.output.mkdir(parents=True, exist_ok=True)
    pipeline = Pipeline.from_pretrained(options.model)

    # drawn after those that the networks were trained on, with the attributes spread evenly
    rows = world.render_many(range(UNBIASED, UNBIASED + NUM_HELD_OUT), SEED, biased=False)
    vae = pipeline.vae
    code = jax.jit(lambda params, x: vae.apply(params, vae.apply(params, x, method="encode").mean, method="decode"))
    chunks = np.array_split(to_pixels(rows["image"]), 20)
    coded = np.concatenate([np.asarray(code(pipeline.params["vae"], chunk)) for chunk in chunks])
    error = np.mean((np.clip(coded, -1, 1) - np.concatenate(chunks)) ** 2)

    names = [occupation.name for occupation in occupations.OCCUPATIONS]
    prompts = [captions.fill("a photo of the face of a {occupation}, a person", name) for name in names]
    console.print(f"sampling {len(prompts) * options.each} images")
    images = pipeline.generate(prompts, options.each, num_steps=_STEPS, guidance_scale=PORTRAIT_GUIDANCE, seed=SEED)

    folder = find(options.model)
    section = JudgesSection(classifiers=(f"{folder}/classifier",), evaluation=(f"{folder}/classifier_eval",))
    judges = {
        "classifier": reading.judge(section, section.classifiers, "classifiers"),
        "classifier_eval": reading.evaluation_judge(section),
    }
    accuracies = []
    for name, judge in judges.items():
        seen = measuring.classify(*judge, rows["image"][None])
        face = rows["face"] > 0
        for attribute, probs in seen.probs.items():
            right = (probs[0].argmax(-1) == rows[attribute])[face].mean()
            accuracies.append(f"| {name}: {attribute.replace('_', ' ')} | {right:.1%} (aim: 98%) |")
    followed = measuring.classify(*judges["classifier"], images)
    judge, judge_params = judges["classifier_eval"]
    seen = measuring.classify(judge, judge_params, images)
    (classifier,), (params,) = judge.classifiers, judge_params["classifiers"]
    alike = (followed.probs["gender"].argmax(-1) == seen.probs["gender"].argmax(-1)).mean()
    recognised = (seen.recognised == np.arange(len(names))[:, None]).mean()
    held_out = [index for index, name in enumerate(names) if name in occupations.HELD_OUT]
    labels = seen.probs["gender"].argmax(-1)
    gap = np.mean([metrics.bias(metrics.frequencies([labels[i][seen.has_face[i]]], (2,))) for i in held_out])
    data_gap = np.mean([abs(2 * occupations.OCCUPATIONS[i].female - 1) for i in held_out])

    obeyed = np.mean([_obeyed(pipeline, *judges["classifier_eval"], names, number) for number in range(2)])

    encode = jax.jit(lambda params, ids: pipeline.encode(params, {}, ids))
    texts = [[captions.fill(template, name) for name in names] for template in captions.FINETUNE_TEMPLATES]
    states = np.mean([np.asarray(encode(pipeline.params, pipeline.token_ids(text))) for text in texts], axis=0)
    odds = np.array([np.log(o.female / (1 - o.female)) for o in occupations.OCCUPATIONS])
    told = told_from_others(states.mean(1), odds)

    embed = jax.jit(lambda params, x: classifier.network.apply(params, x, method="embed"))

    def features(pictures: np.ndarray) -> np.ndarray:
        parts = np.array_split(to_pixels(pictures), max(1, len(pictures) // 100))
        return np.concatenate([np.asarray(embed(params, part)) for part in parts])

    biased = [world.render_many(range(start, start + 1_000), SEED + 77, biased=True)["image"] for start in (0, 1_000)]
    shown = features(images.reshape(-1, *images.shape[2:]))
    distance, floor = frechet(shown, features(biased[0])), frechet(features(biased[1]), features(biased[0]))

    image_grid(list(biased[0][:36]), 12).save(options.output / "portraits_renders.png")
    pairs = [*rows["image"][:12], *np.asarray(to_uint8(coded[:12]))]
    image_grid(pairs, 12).save(options.output / "portraits_reconstructions.png")
    image_grid(list(images[::2, 0]), 12).save(options.output / "portraits_samples.png")
    page = _PAGE.format(
        held_out=NUM_HELD_OUT, samples=len(names) * options.each, each=options.each, steps=_STEPS,
        guidance=PORTRAIT_GUIDANCE,
        psnr=10 * np.log10(4 / error), accuracies="\n".join(accuracies), recognised=recognised,
        faces=seen.has_face.mean(), alike=alike, gap=gap, data_gap=data_gap, distance=distance, floor=floor, told=told,
        obeyed=obeyed,
        fair=metrics.fair_floor(options.each, 2), radius=ADVERSARY["classifier"],
    )  # fmt: skip
    (options.output / "portraits.md").write_text(page)
    console.print(f"wrote {options.output / 'portraits.md'}")


if __name__ == "__main__":
    sys.exit(main())
