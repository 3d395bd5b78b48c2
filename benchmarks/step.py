"""A training step and a sampling, fairjax and PyTorch side by side in one run.

    python -m benchmarks.step --model portraits --device cpu
    python -m benchmarks.step --model sd15 --device gpu --microbatch 10 --rounds 3 --work models --only step
    python -m benchmarks.step --model sd15 --device gpu --microbatch 10 --rounds 3 --work models

The opponent is `benchmarks/reference_torch.py`, the original's step written to be fast. Both take the same models,
prompt, noise, solver steps and losses, and take turns; what counts is the median over the rounds. Before anything is
timed, their losses and gradients are compared. Of more than two joint classes each draws sets of labels of its own, so
that a person near the threshold may have a target on one side only, and the gradients differ by that. On an accelerator
both compute in bfloat16, and share its memory. Its program takes minutes to compile, each of them once where the folder
of what is compiled stays: `--only` is for where a command has not the time for all of them. Without --microbatch, it is
compiled for several.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else PyTorch would have what JAX leaves: a quarter

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table

from benchmarks import models, reference_torch
from benchmarks.torch_networks import nchw, nhwc
from fairjax import parallel
from fairjax.adapters import bundle as bundles
from fairjax.config import Experiment
from fairjax.diffusion.guidance import Conditioning, guided
from fairjax.pipeline import Pipeline, image_keys
from fairjax.schema import load
from fairjax.training import step as steps
from fairjax.training.finetuning import Finetuning

CONFIGS = {
    "portraits": ("configs/portraits/gender.yaml", 16, 6),
    "sd15": ("configs/sd15/exp4-gender-race-age-both.yaml", 40, 21),
}
"""By model: whose losses, how many images, how many solver steps."""

PARTS = ("step", "half", "sampling")
"""What is timed: a step, one with half of the gradient's terms, and images alone."""

PEAK = {"NVIDIA H100": 989e12, "NVIDIA H200": 989e12, "NVIDIA A100": 312e12}
"""Published dense bfloat16 FLOP/s."""


class Side(NamedTuple):
    name: str
    run: Callable[[], Any]  # returns when it is done


def ours(fields: dict[str, Any], path: str, *, weights: bool = True) -> Finetuning:
    return Finetuning(load(Experiment, Path(path), fields), parallel.mesh(), weights=weights)


def theirs(finetuning: Finetuning, device: str, dtype: torch.dtype) -> reference_torch.TorchStep:
    """The same finetuning's networks in PyTorch; where faces are is fixed."""
    config, names = finetuning.config, finetuning.target.attributes
    locator = finetuning.judges.judge.locator
    sizes = {a.name: len(a.classes) for name in names for a in finetuning.attributes if a.name == name}
    cells = np.asarray(finetuning._distributions[finetuning.subjects.trained[0]], np.float64)
    # for two classes fairjax goes through all sets of labels, and a drawn mean may fall on the threshold's other side
    sets = reference_torch.every(cells) if len(cells) == 2 else reference_torch.drawn(cells, config.loss.num_sets)
    assign = reference_torch.by_emd(sets, sizes, config.loss.threshold, config.target.cost_weights)

    @functools.cache  # what is fixed takes PyTorch's side no time
    def fixed(n: int, height: int, width: int) -> reference_torch.Faces:
        faces = jax.device_get(locator.locate({}, jnp.zeros((n, height, width, 3))))
        return reference_torch.Faces(faces.boxes, faces.landmarks, np.array(faces.has_face))

    def locate(images: torch.Tensor) -> reference_torch.Faces:
        n, _, height, width = images.shape
        return fixed(n, height, width)

    torch_device = "cuda" if device == "gpu" else "cpu"
    return reference_torch.read(finetuning, locate, assign, torch_device, dtype)


def timed(side: Side, console: Console) -> tuple[float, Any]:
    """Seconds, told at once: what is killed for want of time has told of what it had."""
    start = time.perf_counter()
    result = side.run()
    seconds = time.perf_counter() - start
    console.print(f"{side.name}: {seconds:.3f} s", style="dim", highlight=False)
    return seconds, result


def compare(sides: list[Side], rounds: int, console: Console) -> dict[str, list[float]]:
    """Seconds of each side, in turn, `rounds` times."""
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            times[side.name].append(timed(side, console)[0])
    return times


def synchronised(result: Any) -> Any:
    """The same, when PyTorch's device has it; it stays there, as JAX's does."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result


def agreement(state: Any, result: Any, taken: reference_torch.Taken, first_beta: float) -> str:
    """How far the two sides' losses and gradients are apart, in a first step."""
    after, scalars, _ = result
    (moments,) = (
        leaf.mu
        for leaf in jax.tree.leaves(after.optimizer, is_leaf=lambda leaf: hasattr(leaf, "mu"))
        if hasattr(leaf, "mu")
    )
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])  # noqa: E731
    a = flat(jax.device_get(moments)) / (1 - first_beta)
    b = flat(jax.tree.map(lambda leaf: leaf.cpu().numpy(), taken.gradient))
    loss = abs(float(scalars["loss"]) / taken.loss - 1)
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    return f"loss {loss:.1e} apart, gradient {np.linalg.norm(a - b) / np.linalg.norm(b):.1e} (cosine {cosine:.6f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(CONFIGS), default="portraits")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, help="in a step, of one prompt (default: 16, and 40 for sd15)")
    parser.add_argument("--steps", type=int, help="of the solver (default: 6, and 21 for sd15)")
    parser.add_argument("--microbatch", type=int, help="(image, step) pairs that fairjax differentiates at a time")
    parser.add_argument("--minibatch", type=int, help="images that PyTorch differentiates at a time")
    parser.add_argument("--sampled", type=int, help="images that PyTorch makes at a time without a gradient")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="what is timed (default: all)")
    parser.add_argument("--work", type=Path, help="where the models of sd15 are written, and found again")
    options = parser.parse_args()
    path, images, num_steps = CONFIGS[options.model]
    images, num_steps = options.images or images, options.steps or num_steps
    minibatch = options.minibatch or (images if options.model == "portraits" else 10)
    sampled = options.sampled or (images if options.model == "portraits" else 20)
    if options.device == "cpu":
        jax.config.update("jax_platforms", "cpu")  # as PyTorch's side, whatever else is there
    parallel.prepare()
    for library in (transformers, diffusers):  # what a folder holds beside the part that is read is no news
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()
    torch.backends.cudnn.benchmark = True  # PyTorch at its best: it times its convolutions
    console, precise = Console(), options.device == "cpu"
    own = tempfile.TemporaryDirectory(prefix="fairjax-models-")  # which goes with this program
    work = options.work or Path(own.name)
    fields: dict[str, Any] = models.write(work) if options.model == "sd15" else {}
    fields |= {
        "training.prompts_per_step": 1, "training.images_per_prompt": images, "training.num_steps": (num_steps,) * 2,
        "training.precision": "float32" if precise else "bfloat16", "training.microbatch": options.microbatch,
    }  # fmt: skip
    whole = ours(fields | {"training.grad_steps": None}, path)
    fewer = {"training.grad_steps": max(1, num_steps // 2), "training.microbatch": whole.microbatch}
    half = ours(fields | fewer, path, weights=False)  # they are the same: once is enough
    state = whole.initial()
    batch, _ = whole.batch(0, state.bundle)
    torch_step = theirs(whole, options.device, torch.float32 if precise else torch.bfloat16)
    device = torch_step.device
    rows = jnp.stack([jnp.zeros(images, int), jnp.arange(images)], axis=1)
    start = whole.pipeline.noise(image_keys(jax.random.fold_in(batch.key, steps.NOISE), rows))
    noise = nchw(np.array(start)).to(device)
    bundle = jax.tree.map(lambda leaf: torch.tensor(np.array(leaf), device=device), state.bundle)
    ids = np.concatenate([batch.empty, batch.plain_ids])

    def by_torch() -> reference_torch.Taken:
        return synchronised(torch_step(bundle, ids, noise, num_steps, minibatch, sampled))

    def by_us(finetuning: Finetuning) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(finetuning.compiled()(state, whole._frozen, batch))

    console.print(f"{options.model}, {images} images, {num_steps} solver steps, {path}", highlight=False)
    console.print(f"fairjax on {len(jax.devices())} x {jax.devices()[0].device_kind}, PyTorch on {device}, "
                  f"{torch.get_num_threads()} threads", highlight=False)  # fmt: skip
    sides = []
    if "step" in options.only:
        sides += [Side("PyTorch: step", by_torch), Side("fairjax: step", by_us(whole))]
    if "half" in options.only:
        sides.append(Side("fairjax: step, half the terms", by_us(half)))
    if "sampling" in options.only:
        sides += _sampling(whole, torch_step, batch, noise, num_steps, sampled)
    console.print("for the first time, which compiles, or warms up:", style="dim", highlight=False)
    first = {side.name: timed(side, console)[1] for side in sides}
    if "step" in options.only:
        apart = agreement(state, first["fairjax: step"], first["PyTorch: step"], whole.config.training.betas[0])
        console.print(f"the two sides: {apart}", highlight=False)
    del first
    times = compare(sides, options.rounds, console)
    _report(console, times, images)
    if "step" in options.only:
        _told(console, whole, images, num_steps, statistics.median(times["fairjax: step"]))


def _sampling(finetuning, torch_step, batch, noise, num_steps, sampled) -> list[Side]:
    """Images alone, decoded, by the frozen model; PyTorch makes `sampled` at a time."""
    config, pipeline = finetuning.config, finetuning.pipeline
    replicated, spread = parallel.REPLICATED, parallel.SPREAD

    def draw(frozen, ids, empty, noise):
        own = jnp.zeros(len(noise), int)
        how = (frozen.table, num_steps, config.training.guidance_scale)
        return pipeline.sample(frozen.pipeline, {}, ids, empty, own, noise, *how)

    program = parallel.spread(draw, finetuning.mesh, (replicated,) * 3 + (spread,), spread)
    start = parallel.share_out(nhwc(noise.cpu()), finetuning.mesh)
    ids = np.concatenate([batch.empty, batch.plain_ids])

    def by_torch() -> list[torch.Tensor]:
        with torch.no_grad():
            states = torch_step._encode({}, ids)
            made = [torch_step._draw({}, states, part, num_steps) for part in noise.split(sampled)]
        return synchronised(made)

    def by_us() -> jax.Array:
        return jax.block_until_ready(program(finetuning._frozen, batch.plain_ids, batch.empty, start))

    return [Side("diffusers: sampling", by_torch), Side("fairjax: sampling", by_us)]


def _report(console: Console, times: dict[str, list[float]], images: int) -> None:
    table = Table(title="median seconds; ratio: PyTorch's time over ours", title_justify="left")
    for name in ("", "seconds", "from", "to", "images/s", "ratio"):
        table.add_column(name, justify="left" if not name else "right")
    opponent = None
    for name, values in times.items():
        median = statistics.median(values)
        opponent = opponent if name.startswith("fairjax") else median
        ratio = f"{opponent / median:.2f}" if opponent and name.startswith("fairjax") else ""
        cells = (f"{median:.3f}", f"{min(values):.3f}", f"{max(values):.3f}", f"{images / median:.1f}", ratio)
        table.add_row(name, *cells)
    console.print(table)


def _told(console: Console, finetuning: Finetuning, images: int, num_steps: int, seconds: float) -> None:
    """Memory, and on a card whose peak is known the share of it that the UNet's work alone takes."""
    memory = finetuning.compiled().memory_analysis()
    told = f"fairjax: {memory.argument_size_in_bytes / 2**30:.2f} GiB of models and state a device, "
    told += f"{memory.temp_size_in_bytes / 2**30:.2f} GiB while a step runs"
    if torch.cuda.is_available():
        told += f"; at the peak {parallel.peak_memory() / 2**30:.2f} GiB, "
        told += f"PyTorch {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"
    else:
        told += f"; at the peak both sides and all else in this process {parallel.peak_memory() / 2**30:.2f} GiB"
    console.print(told, highlight=False)
    forward, pulled = unet_flops(finetuning)
    work = images * num_steps * (2 * forward + pulled)
    told = f"work of the UNet in a step: {work / 1e12:.4g} TFLOP, {work / seconds / 1e12:.4g} TFLOP/s"
    device = jax.local_devices()[0]
    peak = next((value for name, value in PEAK.items() if device.device_kind.startswith(name)), None)
    if peak:
        told += f", {work / seconds / peak / len(jax.devices()):.1%} of the published peak"
    console.print(told, highlight=False)


def unet_flops(finetuning: Finetuning) -> tuple[float, float]:
    """FLOPs of one image's prediction, guidance included, and of its gradient, which computes it again.

    They are XLA's count for the program as it is written, in float32, in which attention is no library's kernel.
    """
    adapter, training = finetuning.config.adapter, finetuning.config.training
    pipeline = Pipeline.from_pretrained(finetuning.config.model, weights=False)
    weights, width = pipeline.params["unet"], pipeline.text_encoder.abstract["text_model"]["final_layer_norm"]["bias"]
    bundle = jax.eval_shape(
        lambda: bundles.init(adapter.kinds, pipeline.params, adapter.rank, adapter.num_tokens, jax.random.key(0))
    )
    latents = jax.ShapeDtypeStruct((1, *pipeline.latent_shape), jnp.float32)
    words = jax.ShapeDtypeStruct((1, pipeline.tokenizer.model_max_length, *width.shape), jnp.float32)
    denoise = guided(pipeline.unet.apply, training.guidance_scale)

    def predict(weights, bundle, x, empty, states):
        merged = bundles.merge_unet(weights, bundle)
        return denoise(merged, x, jnp.ones(1), Conditioning(empty, states))

    def gradient(weights, bundle, x, empty, states):
        return jax.grad(lambda *arguments: predict(weights, arguments[0], x, *arguments[1:]).sum(), argnums=(0, 1, 2))(
            bundle, empty, states
        )

    arguments = (weights, bundle, latents, words, words)
    return tuple(jax.jit(f).lower(*arguments).cost_analysis()["flops"] for f in (predict, gradient))


if __name__ == "__main__":
    main()
