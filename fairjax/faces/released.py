"""The face networks that the paper's authors published: state dicts under the names of torchvision and OpenSphere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fairjax.convert.pickles import read_state_dict
from fairjax.convert.rules import from_torch
from fairjax.faces.classifier import Classifier
from fairjax.faces.geometry import CROP_SIZE
from fairjax.models.functional import Network, Params, functional
from fairjax.models.mobilenet import MobileNetV3Config
from fairjax.models.sfnet import SFNet, SFNetConfig

HEADS: dict[str, tuple[str, ...]] = {
    "gender": ("female", "male"),
    "race": ("WMELH", "Black", "Indian", "Asian"),  # the first: White, Middle Eastern, Latino or Hispanic
    "age": ("young", "old"),
}
"""Attributes and the order of their classes, as the authors' README and scripts have them."""

_CELEBA_LOGITS, _CELEBA_GENDER = 80, 20  # 40 attributes, absent and present; the 21st of them is "Male"
_LAST = "classifier.3"


def load_classifier(path: Path, heads: Sequence[str] = tuple(HEADS)) -> tuple[Classifier, Params]:
    """A MobileNetV3-Large of 224 x 224 crops in [-1, 1], not normalised further.

    Args:
        path: a state dict (.pt) of torchvision's `mobilenet_v3_large` with another last layer.
        heads: what its logits are, in their order: gender, race and age in the classifier of experiment 4; gender and
            race in that of experiment 3; one of the three in those for evaluation. From the one for CelebA, whose
            80 logits are 40 attributes times 2, gender is taken.

    Raises:
        FileNotFoundError, ImportError, ValueError: one line naming the file.
    """
    unknown = [name for name in heads if name not in HEADS]
    if unknown:
        raise ValueError(f"no head {unknown[0]!r}; known are {', '.join(HEADS)}")
    classes = {name: HEADS[name] for name in heads}
    tensors = read_state_dict(path)
    logits = len(tensors.get(f"{_LAST}.bias", ()))
    if logits == _CELEBA_LOGITS and tuple(heads) == ("gender",):
        tensors = _celeba_gender(tensors)
        logits = 2
    wanted = sum(map(len, classes.values()))
    if logits != wanted:
        celeba = '; of the 80 of CelebA, heads = ("gender",) is read' if logits == _CELEBA_LOGITS else ""
        raise ValueError(f"{path} has {logits} logits, and the heads {', '.join(heads)} have {wanted}{celeba}")
    classifier = Classifier.make(MobileNetV3Config.large(logits), classes, CROP_SIZE)
    return classifier, _fill(path, classifier.network, tensors, ignore=("num_batches_tracked",))


def _celeba_gender(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    rows = slice(2 * _CELEBA_GENDER, 2 * _CELEBA_GENDER + 2)
    return {name: tensor[rows] if name.startswith(_LAST) else tensor for name, tensor in tensors.items()}


def load_face_embedding(path: Path, config: SFNetConfig | None = None) -> tuple[Network, Params]:
    """OpenSphere's SFNet (.pth), by default SFNet-20: aligned faces [n, 112, 112, 3] -> embeddings [n, 512].

    Raises:
        FileNotFoundError, ImportError, ValueError: one line naming the file.
    """
    config = config or SFNetConfig()
    network = functional(lambda rngs: SFNet(config, rngs=rngs))
    return network, _fill(path, network, read_state_dict(path))


def _fill(path: Path, network: Network, tensors: Mapping[str, np.ndarray], ignore: Sequence[str] = ()) -> Params:
    try:
        return from_torch(network.abstract, tensors, ignore)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
