"""Judges from the files that a configuration names: their folders, the paper's released files, hub ids."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import files
from fairjax.config import JudgesSection
from fairjax.convert import pickles, pipelines, vision
from fairjax.faces import classifier as classifiers
from fairjax.faces import detection, geometry, insight, released, semantics
from fairjax.faces.classifier import Classifier
from fairjax.faces.geometry import MARGINS
from fairjax.faces.judges import FaceEmbedding, Judge, Judges, Semantics, TextTower
from fairjax.faces.located import FixedBox, Locator
from fairjax.hub import NETWORK, PORTRAITS, commit_of, find
from fairjax.models.clip import CLIPVisionConfig
from fairjax.models.configs import typed
from fairjax.models.functional import Network, Params, cast

Detector = detection.Detector | insight.InsightDetector
"""A locator that can show all faces of a picture, too."""

_PICKLES = (".pt", ".pth")


class _Vision(NamedTuple):
    """A kind of network of the image semantics."""

    load: Callable[..., tuple[Network, Params]]  # from its folder, as in `fairjax.convert.vision`
    statistics: semantics.Statistics  # where its folder has none
    image_size: Callable[[Mapping[str, Any]], int]  # of its config.json, the side of the images it is shown


def _clip_size(fields: Mapping[str, Any]) -> int:
    return CLIPVisionConfig.from_dict(fields).image_size


def _dinov2_size(fields: Mapping[str, Any]) -> int:
    """It interpolates its positions, so that it sees what CLIP sees."""
    return geometry.CROP_SIZE


_VISION = {
    "clip": _Vision(vision.load_clip_vision, semantics.CLIP, _clip_size),
    "clip_vision_model": _Vision(vision.load_clip_vision, semantics.CLIP, _clip_size),
    "dinov2": _Vision(vision.load_dinov2, semantics.DINOV2, _dinov2_size),
}
"""By the `model_type` of a published config.json."""


def judges(section: JudgesSection, dtype: str = "float32", *, weights: bool = True) -> Judges:
    """What finetuning listens to; raises FileNotFoundError, ImportError or ValueError, one line.

    Args:
        dtype: what the networks of the image semantics compute in, which are large; the others do in float32.
        weights: False leaves those of the image semantics unread, and of a hub id undownloaded: shapes stand for them.
    """
    chosen, judge_params = judge(section, section.classifiers, "classifiers")
    meaning = semantics_of(section, dtype, weights=weights)
    chosen_face, face_params = face(section.face)
    bank = pickles.read_bank(path(section.bank, "bank"))
    params = {"judge": judge_params} | jax.tree.map(jnp.asarray, {"face": face_params, "bank": bank})
    params["semantics"] = [own for _, own in meaning]
    return Judges(chosen, tuple(part for part, _ in meaning), chosen_face, params)


def semantics_of(
    section: JudgesSection, dtype: str = "float32", *, weights: bool = True
) -> list[tuple[Semantics, Params]]:  # fmt: skip
    """The networks of the image semantics that training follows, with parameters; raises and takes as `judges`."""
    called(section.semantics, "semantics")  # each is named once, or else before hours of measuring
    return [_semantics(name, "semantics", jnp.dtype(dtype), weights) for name in section.semantics]


def evaluation_semantics(
    section: JudgesSection, dtype: str = "float32", *, weights: bool = True
) -> dict[str, tuple[Semantics, Params]]:  # fmt: skip
    """By what they are called, the networks that measure how far images keep their semantics; raises and takes as
    `judges`."""
    names, field = _measuring(section)
    return {key: _semantics(name, field, jnp.dtype(dtype), weights) for key, name in called(names, field).items()}


def text_towers(section: JudgesSection) -> dict[str, TextTower]:
    """By name, the other half of those of `evaluation_semantics` that are a CLIP of images and texts.

    Raises:
        FileNotFoundError, ValueError: one line, where it has no tokenizer, say.
    """
    towers, (names, field) = {}, _measuring(section)
    for key, name in called(names, field).items():
        folder = _semantics_folder(name, field)
        if files.read_json(folder / "config.json").get("model_type") == "clip":
            network, params, config = vision.load_clip_text(folder)
            params = jax.tree.map(jnp.asarray, params)
            towers[key] = TextTower(network, params, pipelines.read_tokenizer(folder, config))
    return towers


def revisions(section: JudgesSection) -> dict[str, str]:
    """By name, the hub's commits of those of `evaluation_semantics` that were downloaded from there."""
    named = {key: name for key, name in called(*_measuring(section)).items() if not _is_path(name)}
    found = {key: commit_of(name, NETWORK) for key, name in named.items()}
    return {key: revision for key, revision in found.items() if revision}


def _measuring(section: JudgesSection) -> tuple[Sequence[str], str]:
    """The networks of the image semantics that measure, and the field that names them."""
    if section.evaluation_semantics is None:
        return section.semantics, "semantics"
    return section.evaluation_semantics, "evaluation_semantics"


def called(names: Sequence[str], field: str) -> dict[str, str]:
    """Networks of the image semantics by what they are called: without folders and owners, but where two are alike.

    Raises:
        ValueError: one line, where one is named twice.
    """
    whole = [str(Path(name)) for name in names]
    for name in whole:
        if whole.count(name) > 1:
            raise ValueError(f"judges.{field} names {name} twice: each network should be named once")
    last = [Path(name).name for name in whole]
    keys = [short if last.count(short) == 1 else name for short, name in zip(last, whole, strict=True)]
    return dict(zip(keys, names, strict=True))


def evaluation_judge(section: JudgesSection) -> tuple[Judge, dict[str, Params]]:
    """What measures, and its parameters; raises as `judges`."""
    return judge(section, section.evaluation, "evaluation")


def errors(section: JudgesSection) -> dict[str, np.ndarray]:
    """By attribute, what the evaluation classifier takes pictures of each class (row) for, [classes, classes].

    Of those whose folder says it, and that no other of the section's classifiers is averaged with.
    """
    found, heads = {}, []
    for name in section.evaluation:
        file = path(name, "evaluation")
        classifier, _ = _classifier(name, section.heads.get(name), "evaluation")
        heads += classifier.heads
        if file.is_dir():
            found |= classifiers.load_errors(file, classifier)
    return {name: matrix for name, matrix in found.items() if heads.count(name) == 1}


def judge(section: JudgesSection, names: tuple[str, ...], field: str) -> tuple[Judge, dict[str, Params]]:
    """The section's detector with the classifiers `names`."""
    locator, locator_params = _locator(section)
    read = [_classifier(name, section.heads.get(name), field) for name in names]
    first: dict[str, tuple[str, tuple[str, ...]]] = {}
    for name, (classifier, _) in zip(names, read, strict=True):
        for head, classes in classifier.heads.items():
            other, same = first.setdefault(head, (name, classes))
            if same != classes:
                raise ValueError(
                    f"judges.{field}: the classes of {head} are {', '.join(same)} in {other}, and "
                    f"{', '.join(classes)} in {name}"
                )
    params = {"locator": locator_params, "classifiers": [own for _, own in read]}
    chosen = Judge(locator, tuple(classifier for classifier, _ in read), margin(section))
    return chosen, jax.tree.map(jnp.asarray, params)


def path(name: str, field: str) -> Path:
    """The file or folder that a field of the section names; what begins with "portraits/" is the embedded one's.

    Raises:
        FileNotFoundError: one line, where there is none.
    """
    first, _, rest = name.partition("/")
    embedded = first == PORTRAITS and rest and not Path(name).exists()
    found = find(PORTRAITS) / rest if embedded else Path(name)
    if not found.exists():
        raise FileNotFoundError(f"judges.{field} = {name!r}: no such file or folder")
    return found


def margin(section: JudgesSection) -> float | None:
    """How much larger than the face the square is that the section's classifiers see; None: the whole image."""
    return MARGINS.get(section.detector, 0.0) if section.margin == "usual" else section.margin


def detector(name: str, weights: Path | None = None) -> tuple[Detector, Params]:
    """What finds faces in photographs, "blazeface" or "insightface"; `weights` are those of the first.

    Raises:
        FileNotFoundError, ImportError, ValueError: one line.
    """
    return detection.load(weights) if name == "blazeface" else insight.load()


def _locator(section: JudgesSection) -> tuple[Locator, Params]:
    if section.detector == "fixed":
        return FixedBox(section.box), {}
    weights = section.detector_weights
    return detector(section.detector, path(weights, "detector_weights") if weights else None)


def _classifier(name: str, heads: tuple[str, ...] | None, field: str) -> tuple[Classifier, Params]:
    file = path(name, field)
    if file.suffix in _PICKLES:
        return released.load_classifier(file, heads or tuple(released.HEADS))
    return classifiers.load(file)


def _semantics_folder(name: str, field: str, weights: bool = True) -> Path:
    return path(name, field) if _is_path(name) else find(name, f"judges.{field}", NETWORK, weights)


def _is_path(name: str) -> bool:
    """Whether this names a folder, there or of the embedded world, and not a repository of the hub."""
    return Path(name).exists() or name.partition("/")[0] == PORTRAITS


def _semantics(name: str, field: str, dtype: jnp.dtype, weights: bool = True) -> tuple[Semantics, Params]:
    folder = _semantics_folder(name, field, weights)
    fields = files.read_json(folder / "config.json")
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in _VISION:
        raise ValueError(f"{folder}/config.json: model_type = {kind!r} must be one of {', '.join(_VISION)}")
    load, statistics, image_size = _VISION[kind]
    if (folder / "preprocessor_config.json").is_file():
        said = files.read_json(folder / "preprocessor_config.json")
        if "image_mean" in said and "image_std" in said:
            three, where = tuple[float, float, float], f"{folder}/preprocessor_config.json"
            mean, std = (typed(three, said[name], name, where) for name in ("image_mean", "image_std"))
            if not all(std):
                raise ValueError(f"{where}: image_std = {list(std)} must be above 0")
            statistics = semantics.Statistics(mean, std)
    network, params = load(folder, dtype, weights=weights)
    cast_all = functools.partial(cast, dtype=dtype)
    narrow = cast_all(params) if weights else jax.eval_shape(cast_all, params)
    return Semantics(network, statistics, image_size(fields)), narrow


def face(name: str) -> tuple[FaceEmbedding, Params]:
    """A face embedding, and its parameters; raises as `judges`."""
    file = path(name, "face")
    if file.suffix in _PICKLES:
        network, params = released.load_face_embedding(file)
        return FaceEmbedding(network, geometry.ALIGNED_SIZE, aligned=True), params
    embedding, params = classifiers.load(file)
    return FaceEmbedding(embedding.network, embedding.image_size, aligned=False), params
