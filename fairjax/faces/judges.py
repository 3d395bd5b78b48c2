"""What looks at generated images: a classifier, a measure of what they mean, a measure of who is shown.

The judges of the embedded world know where its faces are: in one fixed box, present or not as the classifier says.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.convert import folders
from fairjax.faces import classifier as classifiers
from fairjax.faces.classifier import Classifier
from fairjax.fairness.attributes import Attribute
from fairjax.fairness.losses import normalise
from fairjax.models.clip import CLIPVisionConfig, CLIPVisionModel
from fairjax.models.functional import Network, Params, functional

PRESENCE, RECOGNITION = "face", "occupation"
"""Heads of a classifier that are no attributes: whether a face is shown, and what the picture shows besides."""

_PRESENT = 1
_DETECTORS = ("fixed",)


class Verdict(NamedTuple):
    """What a classifier says of n images."""

    logits: dict[str, jax.Array]  # attribute -> [n, classes], float32
    has_face: jax.Array  # [n], bool
    recognised: jax.Array | None  # [n, things], logits; None where the classifier recognises nothing

    @property
    def probs(self) -> dict[str, jax.Array]:
        return {name: jax.nn.softmax(logits) for name, logits in self.logits.items()}


def attributes(classifier: Classifier) -> tuple[Attribute, ...]:
    """The attributes that a classifier tells."""
    heads = classifier.heads.items()
    return tuple(Attribute(name, classes) for name, classes in heads if name not in (PRESENCE, RECOGNITION))


def judge(classifier: Classifier, params: Params, images: jax.Array) -> Verdict:
    """Images [n, h, w, 3] in [-1, 1] -> what they show; differentiable in the pixels."""
    logits = {name: value.astype(jnp.float32) for name, value in classifier.logits(params, images).items()}
    recognised = logits.pop(RECOGNITION, None)
    has_face = logits.pop(PRESENCE).argmax(1) == _PRESENT
    return Verdict(logits, has_face, recognised)


@dataclasses.dataclass(frozen=True, eq=False)
class Judges:
    """The networks that finetuning listens to.

    `params` holds "classifier", "semantics", "face" and "bank": "embeddings" [M, d] of real faces, and by the name of
    an attribute their classes [M], where they are known.
    """

    classifier: Classifier
    semantics: Network
    face: Classifier
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 of faces, pixels
    params: dict[str, Params]

    def verdict(self, params: dict[str, Params], images: jax.Array) -> Verdict:
        return judge(self.classifier, params["classifier"], images)

    def meaning(self, params: dict[str, Params], images: jax.Array) -> jax.Array:
        """CLIP image embeddings [n, d] of images [n, h, w, 3] in [-1, 1]."""
        return self.semantics.apply(params["semantics"], images)

    def identity(self, params: dict[str, Params], images: jax.Array) -> jax.Array:
        """Face embeddings [n, d], averaged over the face and its mirror image."""
        x0, y0, x1, y1 = self.box
        faces = images[:, y0:y1, x0:x1]
        network = self.face.network
        both = (network.apply(params["face"], faces), network.apply(params["face"], faces[:, :, ::-1]))
        return sum(normalise(embedding) for embedding in both)

    def boxes(self, has_face: jax.Array) -> jax.Array:
        """Face boxes [n, 4] in pixels; empty where there is no face."""
        return jnp.where(has_face[:, None], jnp.asarray(self.box, jnp.float32)[None], 0.0)


def load(folder: Path) -> Judges:
    """Reads the judges beside a pipeline; raises FileNotFoundError or ValueError, one line."""
    faces = folders.read_json(folder / "faces.json")
    if faces.get("detector") not in _DETECTORS:
        raise ValueError(f"{folder}/faces.json: detector = {faces.get('detector')!r} must be {_DETECTORS[0]!r}")
    classifier, classifier_params = classifiers.load(folder / "classifier")
    face, face_params = classifiers.load(folder / "face_embedding")
    vision = CLIPVisionConfig.from_dict(folders.read_json(folder / "image_semantics" / "config.json"))
    semantics = functional(lambda rngs: CLIPVisionModel(vision, rngs=rngs))
    params = {
        "classifier": classifier_params,
        "semantics": folders.load(semantics, folder / "image_semantics", "model", ignore=("position_ids",)),
        "face": face_params,
        "bank": _bank(folders.read_weights(folder / "face_embedding", "bank")),
    }
    box = tuple(int(side) for side in faces["box"])
    return Judges(classifier, semantics, face, box, jax.tree.map(jnp.asarray, params))


def _bank(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value.astype(np.float32 if name == "embeddings" else np.int32) for name, value in tensors.items()}


def check_image_size(folder: Path, image_size: tuple[int, int]) -> None:
    """Raises a one-line ValueError where judges that know one size of image are to look at another, (height, width)."""
    side = folders.read_json(folder / "faces.json").get("image_size")
    if side is not None and image_size != (side, side):
        height, width = image_size
        raise ValueError(f"the judges in {folder} look at {side} x {side} pixels, the images have {height} x {width}")


def load_evaluation(folder: Path) -> tuple[Classifier, Params]:
    """The separately trained classifier that measures: fooling the one that finetuning sees does not pay."""
    return classifiers.load(folder / "classifier_eval")
