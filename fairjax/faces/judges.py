"""What looks at generated images: where faces are, what they show, what the image means, whose face it is.

A judge finds the face of each image and classifies it. Finetuning listens to one, and measuring to another, that was
trained apart from it: fooling the first does not pay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from fairjax.faces import geometry, semantics
from fairjax.faces.classifier import Classifier
from fairjax.faces.located import Faces, Locator
from fairjax.fairness.attributes import Attribute
from fairjax.fairness.losses import normalise
from fairjax.models.functional import Network, Params

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

PRESENCE, RECOGNITION = "face", "occupation"
"""Heads of a classifier that are no attributes: whether a face is shown, and what the picture shows besides."""

_PRESENT = 1


class Verdict(NamedTuple):
    """What a judge says of n images."""

    logits: dict[str, jax.Array]  # attribute -> [n, classes], float32
    faces: Faces  # boxes and landmarks are of no use where there is no face
    recognised: jax.Array | None  # [n, things], logits; None where the judge recognises nothing

    @property
    def has_face(self) -> jax.Array:
        """[n], bool."""
        return self.faces.has_face

    def of_those(self, chosen: jax.Array) -> Verdict:
        """The same; images that are not `chosen`, [n] bool, count as without a face."""
        return self._replace(faces=self.faces._replace(has_face=self.has_face & chosen))

    @property
    def probs(self) -> dict[str, jax.Array]:
        return {name: jax.nn.softmax(logits) for name, logits in self.logits.items()}


@dataclasses.dataclass(frozen=True)
class Judge:
    """A locator, and classifiers of what it finds.

    Its parameters, {"locator", "classifiers": a list}, are apart, so that a jitted step does not hold them as
    constants.
    """

    locator: Locator
    classifiers: tuple[Classifier, ...]
    margin: float | None
    """How much larger than the face the square is that classifiers see; None: they see the whole image."""

    @property
    def heads(self) -> dict[str, tuple[str, ...]]:
        """What is told of an image, by any of the classifiers: name -> classes."""
        return {name: classes for classifier in self.classifiers for name, classes in classifier.heads.items()}

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """The attributes that are told."""
        heads = self.heads.items()
        return tuple(Attribute(name, classes) for name, classes in heads if name not in (PRESENCE, RECOGNITION))

    def look(self, params: dict[str, Params], images: jax.Array) -> Verdict:
        """Images [n, h, w, 3] in [-1, 1] -> what they show; differentiable in the pixels.

        Where several classifiers tell the same, their probabilities are averaged (geometrically).
        """
        faces = self.locator.locate(params["locator"], images)
        told: dict[str, list[jax.Array]] = {}
        with jax.default_matmul_precision("float32"):  # what an accelerator measures is what a CPU does
            for classifier, own in zip(self.classifiers, params["classifiers"], strict=True):
                for name, logits in classifier.logits(own, self._seen(classifier, images, faces)).items():
                    told.setdefault(name, []).append(logits.astype(jnp.float32))
        logits = {name: _together(several) for name, several in told.items()}
        recognised = logits.pop(RECOGNITION, None)
        if PRESENCE in logits:
            present = logits.pop(PRESENCE).argmax(1) == _PRESENT
            faces = faces._replace(has_face=faces.has_face & present)
        return Verdict(logits, faces, recognised)

    def squares(self, faces: Faces) -> jax.Array:
        """What classifiers see of the images [n, 4], in whole pixels; the faces' own boxes where they see all of it."""
        return faces.boxes if self.margin is None else jnp.round(geometry.expand(faces.boxes, self.margin))

    def _seen(self, classifier: Classifier, images: jax.Array, faces: Faces) -> jax.Array:
        if self.margin is None:
            return images
        return geometry.crop(images, self.squares(faces), classifier.image_size)

    def check(self, image_size: tuple[int, int]) -> None:
        """Raises a one-line ValueError where classifiers of whole images are to see others, (height, width)."""
        for classifier in self.classifiers:
            side = classifier.image_size
            if self.margin is None and image_size != (side, side):
                height, width = image_size
                raise ValueError(
                    f"judges.margin = null: the classifier sees whole images of {side} x {side} pixels, and these have "
                    f"{height} x {width}: choose judges for them, or say how much of the picture around the face "
                    "classifiers are to see (judges.margin: usual; 0 is the face's box alone)"
                )


def check_agreement(names: Sequence[str], followed: Judge, measuring: Judge) -> None:
    """Raises a one-line ValueError where two judges do not tell the attributes `names` by the same classes."""
    for name in names:
        ours, theirs = followed.heads[name], measuring.heads.get(name)
        if theirs is None:
            raise ValueError(f"judges.evaluation tells no {name}, which is in the target")
        if theirs != ours:
            raise ValueError(
                f"judges.evaluation: the classes of {name} are {', '.join(theirs)}, and by judges.classifiers "
                f"{', '.join(ours)}: they should be the same, in the same order"
            )


def _together(logits: list[jax.Array]) -> jax.Array:
    return logits[0] if len(logits) == 1 else sum(map(jax.nn.log_softmax, logits)) / len(logits)


class Semantics(NamedTuple):
    """A network whose embedding of an image says what it means, and how images are prepared for it."""

    network: Network
    statistics: semantics.Statistics
    image_size: int

    def embed(self, params: Params, images: jax.Array) -> jax.Array:
        """Embeddings [n, d] of images [n, h, h, 3] in [-1, 1]."""
        prepared = semantics.prepare(images, self.statistics, self.image_size)
        return self.network.apply(params, prepared).astype(images.dtype)


class TextTower(NamedTuple):
    """What embeds prompts where a network of the image semantics embeds images: CLIP's other half."""

    network: Network
    params: Params
    tokenizer: CLIPTokenizer

    def embed(self, prompts: Sequence[str]) -> jax.Array:
        """Embeddings [n, d] of n prompts."""
        encoded = self.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="np")
        return jax.jit(self.network.apply)(self.params, jnp.asarray(encoded.input_ids, jnp.int32))


class FaceEmbedding(NamedTuple):
    """A network whose embedding of a face says whose it is."""

    network: Network
    image_size: int
    aligned: bool  # turned and scaled by its landmarks; else its box, as it is

    def embed(self, params: Params, images: jax.Array, faces: Faces) -> jax.Array:
        """Embeddings [n, d], of length 1, of the faces in images [n, h, w, 3].

        Of the sum over the face and its mirror image, as the authors' code has it, which made their bank.
        """
        if self.aligned:
            chips = geometry.align(images, faces.landmarks, self.image_size)
        else:
            chips = geometry.crop(images, faces.boxes, self.image_size)
        with jax.default_matmul_precision("float32"):
            return normalise(sum(self.network.apply(params, x) for x in (chips, chips[:, :, ::-1])))


@dataclasses.dataclass(frozen=True, eq=False)
class Judges:
    """All that finetuning listens to.

    `params` holds "judge", "semantics" (a list), "face" and "bank": "embeddings" [M, d] of real faces, and by the name
    of an attribute their classes [M], where they are known.
    """

    judge: Judge
    semantics: tuple[Semantics, ...]
    face: FaceEmbedding
    params: dict[str, Params]

    def check(self, image_size: tuple[int, int]) -> None:
        """Raises a one-line ValueError where some of them cannot look at such images, (height, width)."""
        self.judge.check(image_size)
        height, width = image_size
        if height != width:
            raise ValueError(f"judges.semantics: they see square images, and these have {width} x {height} pixels")

    def verdict(self, params: dict[str, Params], images: jax.Array) -> Verdict:
        return self.judge.look(params["judge"], images)

    def meaning(self, params: dict[str, Params], images: jax.Array) -> list[jax.Array]:
        """Embeddings [n, d] of images [n, h, h, 3] in [-1, 1], by each of the networks of `semantics`."""
        return [part.embed(own, images) for part, own in zip(self.semantics, params["semantics"], strict=True)]

    def identity(self, params: dict[str, Params], images: jax.Array, faces: Faces) -> jax.Array:
        """Face embeddings [n, d], of length 1."""
        return self.face.embed(params["face"], images, faces)
