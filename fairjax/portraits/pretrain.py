"""Pretrains every network of the embedded world: `python -m fairjax.portraits.pretrain`.

What a real project downloads is made here: an autoencoder, CLIP, a UNet conditioned on CLIP's text encoder, two
classifiers, and a face embedding, all on rendered portraits. Each stage resumes where it was stopped, and a
finished one is not repeated.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from transformers import CLIPTokenizer

from fairjax import draws, parallel
from fairjax.convert import folders
from fairjax.diffusion.schedule import NoiseSchedule
from fairjax.faces import learning
from fairjax.faces.classifier import Classifier
from fairjax.faces.classifier_training import Chips, confusion
from fairjax.models.clip import CLIPModel
from fairjax.models.functional import Network, Params, functional, to_pixels, to_uint8
from fairjax.models.unet import UNet2DConditionModel
from fairjax.models.vae import AutoencoderKL
from fairjax.portraits import augment, export, recipe, stages, tokenizer
from fairjax.portraits.occupations import OCCUPATIONS
from fairjax.portraits.renders import Renders, renders
from fairjax.portraits.world import ATTRIBUTES, FACE_BOX, pairs
from fairjax.program import Parser, UserError, command
from fairjax.training.fit import Fit, fit

SEED = 20261123
BIASED, UNBIASED = 24_000, 16_000
NUM_HELD_OUT = 1_000
"""How many portraits, numbered after those trained on, measure the quality."""

FITS = {
    "vae": Fit(steps=6_500, batch_size=16, learning_rate=2e-3, matrix_learning_rate=0.03, ema=0.998),
    "clip": Fit(steps=900, batch_size=128, learning_rate=1e-3),
    "unet": Fit(steps=3_200, batch_size=64, learning_rate=1.5e-3, matrix_learning_rate=0.02, ema=0.995),
    "classifier": Fit(steps=1_800, batch_size=32, learning_rate=3e-3),
    "classifier_eval": Fit(steps=1_800, batch_size=32, learning_rate=3e-3),
    "face": Fit(steps=400, batch_size=32, learning_rate=2e-3),
}
HEADS = ATTRIBUTES | {"occupation": tuple(o.name for o in OCCUPATIONS), "face": ("absent", "present")}
ADVERSARY = {"classifier": 1.5, "classifier_eval": 0.0}
"""Within which distance of an image a classifier is trained on the worst: what finetuning follows must be robust."""

PEOPLE = 5_000
"""How many people the face embedding sees twice each."""

FACE_SIZE = int(FACE_BOX[2] - FACE_BOX[0])

BANK = 512
"""How many faces stand in the bank that the face loss looks for a near one in."""


class Pretraining:
    """The stages, each computed when first asked for and kept in `folder`."""

    def __init__(self, folder: Path, fits: dict[str, Fit], portraits: tuple[int, int, int], console: Console):
        self.folder, self.fits, self.console = folder, fits, console
        self.portraits = portraits  # how many biased, unbiased and held-out renders

    def _trained(
        self, name: str, network: Network, problem: Callable[[Fit], tuple], changes: Params | None = None
    ) -> Params:
        """The stage's parameters, trained if they are not there yet."""
        folder = self.folder / name
        if (folder / "model.safetensors").is_file():
            return folders.load(network, folder, "model")
        key = jax.random.fold_in(draws.key(SEED), list(self.fits).index(name))
        params = network.init(jax.random.fold_in(key, 0)) | (changes or {})
        loss, batch = problem(self.fits[name])
        params = fit(name, folder, self.fits[name], params, loss, batch, jax.random.fold_in(key, 1), self.console)
        folders.save(params, folder, "model")
        return params

    @cached_property
    def biased(self) -> Renders:
        """What the generative networks see: occupations with their skews."""
        return self._renders("biased", 0, self.portraits[0], biased=True)

    @cached_property
    def unbiased(self) -> Renders:
        """What the classifiers see: every class as often in every occupation."""
        return self._renders("unbiased", 0, self.portraits[1], biased=False)

    @cached_property
    def held_out(self) -> Renders:
        """Portraits that no network has seen."""
        return self._renders("held_out", self.portraits[1], self.portraits[2], biased=False)

    def _renders(self, name: str, first: int, count: int, biased: bool) -> Renders:
        self.console.print(f"renders: {count} {name.replace('_', ' ')} portraits", highlight=False)
        return renders(self.folder / "renders" / name, first, count, seed=SEED + biased, biased=biased)

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        return tokenizer.train(
            sorted(set(self.biased.captions)), self.folder / "tokenizer", recipe.VOCABULARY, recipe.MAX_TOKENS
        )

    def tokens(self, captions: Sequence[str]) -> np.ndarray:
        """Token ids [n, MAX_TOKENS], padded as every pipeline pads."""
        return np.asarray(
            self.tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="np").input_ids,
            np.int32,
        )

    @cached_property
    def vae_network(self) -> Network:
        return functional(lambda rngs: AutoencoderKL(recipe.VAE, rngs=rngs))

    @cached_property
    def vae(self) -> Params:
        return self._trained(
            "vae", self.vae_network, lambda fit: stages.autoencoder(self.vae_network, self.biased, fit, SEED)
        )

    @cached_property
    def clip_network(self) -> Network:
        return functional(lambda rngs: CLIPModel(recipe.text(self.tokenizer), recipe.VISION, rngs=rngs))

    @cached_property
    def clip(self) -> Params:
        def problem(fit: Fit) -> tuple:
            return stages.contrastive(self.clip_network, self.biased, self.tokens(self.biased.captions), fit, SEED + 1)

        return self._trained("clip", self.clip_network, problem)

    @cached_property
    def latents(self) -> stages.Latents:
        """The biased renders, encoded."""
        path = self.folder / "latents.npz"
        if not path.is_file():
            encode = jax.jit(lambda params, images: self.vae_network.apply(params, images, method="encode"))
            encoded = [encode(self.vae, self.biased.pixels(i)) for i in _batches(len(self.biased))]
            mean = np.concatenate([np.asarray(posterior.mean) for posterior in encoded])
            deviation = np.concatenate([np.exp(0.5 * np.asarray(posterior.log_variance)) for posterior in encoded])
            np.savez(path, mean=mean, deviation=deviation)
        file = np.load(path)
        return stages.Latents(file["mean"], file["deviation"])

    @cached_property
    def unet_network(self) -> Network:
        return functional(lambda rngs: UNet2DConditionModel(recipe.UNET, rngs=rngs))

    @cached_property
    def unet(self) -> Params:
        def problem(fit: Fit) -> tuple:
            captions, of = np.unique(np.array(["", *self.biased.captions]), return_inverse=True)
            encode = jax.jit(lambda params, ids: self.clip_network.apply(params, ids, method="get_text_hidden_states"))
            tokens = self.tokens(captions.tolist())
            contexts = np.concatenate([np.asarray(encode(self.clip, tokens[i])) for i in _batches(len(tokens))])
            schedule = NoiseSchedule.from_dict(recipe.SCHEDULER)
            return stages.denoiser(
                self.unet_network, self.latents, contexts, of[1:], int(of[0]), schedule, fit, SEED + 2
            )

        # the last convolution starts at zero: the first prediction is no noise at all
        conv_out = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), self.unet_network.abstract["conv_out"])
        return self._trained("unet", self.unet_network, problem, {"conv_out": conv_out})

    def classifier_network(self, name: str) -> Classifier:
        return Classifier.make(recipe.CLASSIFIERS[name](sum(map(len, HEADS.values()))), HEADS, recipe.IMAGE_SIZE)

    def classifier(self, name: str) -> Params:
        """`classifier`, for training, or `classifier_eval`: another seed, another width, other augmentations."""
        classifier = self.classifier_network(name)

        def problem(fit: Fit) -> tuple:
            pixels = augment.AUGMENTATIONS[name](self.unbiased.images, self.reconstructions)
            seed = SEED + 3 + list(self.fits).index(name)
            labels, radius = self.unbiased.labels, ADVERSARY[name]
            return learning.classification(classifier, pixels, labels, fit.batch_size, seed, radius)

        return self._trained(name, classifier.network, problem)

    def errors(self, name: str) -> dict[str, np.ndarray]:
        """What a classifier takes held-out portraits for, coded by the autoencoder as generated ones are."""
        code = jax.jit(self.reconstruct)
        pictures = [np.asarray(to_uint8(code(self.vae, self.held_out.pixels(i)))) for i in _batches(len(self.held_out))]
        shown = {key: self.held_out.labels[key] for key in ATTRIBUTES}
        places = np.flatnonzero(self.held_out.labels["face"])
        faces = Chips(np.concatenate(pictures), shown, HEADS, places)
        return confusion(self.classifier_network(name), self.classifier(name), faces)

    @cached_property
    def reconstructions(self) -> np.ndarray:
        """The unbiased renders as the autoencoder gives them back, uint8: what generated images look like."""
        path = self.folder / "reconstructions.npy"
        if not path.is_file():
            code = jax.jit(self.reconstruct)
            batches = _batches(len(self.unbiased))
            coded = [np.asarray(to_uint8(code(self.vae, self.unbiased.pixels(i)))) for i in batches]
            np.save(path, np.concatenate(coded))
        return np.load(path, mmap_mode="r")

    @cached_property
    def face_network(self) -> Classifier:
        heads = {"identity": tuple(map(str, range(recipe.FACE.num_classes)))}
        return Classifier.make(recipe.FACE, heads, FACE_SIZE)

    @cached_property
    def face(self) -> Params:
        """The identity embedding of face crops."""

        def problem(fit: Fit) -> tuple:
            count = max(100, round(PEOPLE * fit.steps / FITS["face"].steps))
            faces = crop(pairs(count, SEED + 9))
            augmented = augment.softened_and_grained(faces)
            return stages.identity(self.face_network.network, augmented, count, fit, SEED + 10)

        return self._trained("face", self.face_network.network, problem)

    @cached_property
    def bank(self) -> dict[str, np.ndarray]:
        """Embeddings [BANK, d] of rendered faces, coded by the autoencoder as generated ones are; what they show."""
        shown = np.flatnonzero(self.unbiased.labels["face"])[:BANK]
        faces = to_pixels(crop(np.asarray(self.reconstructions[shown])))
        embeddings = np.asarray(self.face_network.network.apply(self.face, faces)).astype(np.float16)
        return {"embeddings": embeddings} | {name: self.unbiased.labels[name][shown] for name in ATTRIBUTES}

    def reconstruct(self, params: Params, images: jax.Array) -> jax.Array:
        """Images [n, 64, 64, 3] through the autoencoder and back."""
        posterior = self.vae_network.apply(params, images, method="encode")
        return self.vae_network.apply(params, posterior.mean, method="decode")


def _batches(count: int, size: int = 250) -> list[np.ndarray]:
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]


def crop(images: np.ndarray) -> np.ndarray:
    """Where the faces are: [..., 64, 64, 3] -> [..., 36, 36, 3]."""
    x0, y0, x1, y1 = map(int, FACE_BOX)
    return images[..., y0:y1, x0:x1, :]


@command
def main(argv: list[str]) -> int | None:
    parser = Parser(prog="python -m fairjax.portraits.pretrain", description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("runs/portraits"),
        help="where stages keep their state (default: runs/portraits)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, help="where the finished model goes, in the place of an earlier one (default: the model "
        "that ships with this package, which is replaced; with --scale it must be given)",
    )  # fmt: skip
    parser.add_argument(
        "--report",
        type=Path,
        help="where the report of its quality goes (default: docs; with --scale it must be given)",
    )
    parser.add_argument(
        "--stages",
        default=",".join(FITS),
        help=f"which to run, with commas: {', '.join(FITS)} (default: all, then export and report)",
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="shrink steps and data, to try the machinery (default: 1)"
    )
    arguments = parser.parse_args(argv)
    wanted = arguments.stages.split(",")
    if missing := [name for name in wanted if name not in FITS]:
        raise UserError(f"--stages: unknown stage {missing[0]!r}; known are {', '.join(FITS)}")
    if not 0 < arguments.scale <= 1:
        raise UserError(f"--scale = {arguments.scale:g}: must be greater than 0 and at most 1")
    for name in ("output", "report"):
        if arguments.scale < 1 and getattr(arguments, name) is None:
            raise UserError(f"--{name} is missing: what --scale shrinks is not to take the place of what ships")
    output, report = arguments.output or export.WEIGHTS_FOLDER, arguments.report or Path("docs")
    export.check(output)
    parallel.prepare()
    console = Console(highlight=False)
    fits = {
        name: dataclasses.replace(fit, steps=max(2, round(fit.steps * arguments.scale))) for name, fit in FITS.items()
    }
    counts = tuple(max(300, round(count * arguments.scale)) for count in (BIASED, UNBIASED, NUM_HELD_OUT))
    work = Pretraining(arguments.work, fits, counts, console)
    for name in wanted:
        work.classifier(name) if name.startswith("classifier") else getattr(work, name)
    if set(wanted) == set(FITS):
        export.export(work, output)
        console.print(f"wrote {output}")
        from fairjax.portraits import quality  # which knows what this trains on

        each = max(2, round(quality.EACH * arguments.scale))
        return quality.main(["--model", str(output), "--output", str(report), "--each", str(each)])
    return None


if __name__ == "__main__":
    sys.exit(main())
