"""CLIP's towers and DINOv2 from the folders in which they are published."""

from __future__ import annotations

from pathlib import Path

from fairjax import files
from fairjax.convert import folders
from fairjax.models.clip import CLIPTextConfig, CLIPTextEmbedding, CLIPVisionConfig, CLIPVisionModel
from fairjax.models.dinov2 import Dinov2Config, Dinov2Model
from fairjax.models.functional import Network, Params, functional
from fairjax.models.layers import Dtype


def load_clip_vision(folder: Path, dtype: Dtype = None, *, weights: bool = True) -> tuple[Network, Params]:
    """The vision tower with its projection: images [b, h, w, 3], normalised -> embeddings [b, projection_dim].

    Reads a `CLIPModel`, of which the text tower is left where it is, or a `CLIPVisionModelWithProjection`. Without
    `weights`, which are not read then, its parameters are shapes.

    Raises:
        ValueError, FileNotFoundError: one line naming what is wrong.
    """
    config = CLIPVisionConfig.from_dict(files.read_json(folder / "config.json"))
    network = functional(lambda rngs: CLIPVisionModel(config, rngs=rngs, dtype=dtype))
    vision = ("vision_model.", "visual_projection.")
    if not weights:
        return network, network.abstract
    return network, folders.load(network, folder, "model", ignore=("position_ids",), only=vision)


def load_clip_text(folder: Path) -> tuple[Network, Params, CLIPTextConfig]:
    """The text tower of a `CLIPModel`, with its projection: token ids [b, length] -> embeddings [b, projection_dim].

    Raises:
        ValueError, FileNotFoundError: one line naming what is wrong.
    """
    config = CLIPTextConfig.from_dict(files.read_json(folder / "config.json"))
    network = functional(lambda rngs: CLIPTextEmbedding(config, rngs=rngs))
    text = ("text_model.", "text_projection.")
    return network, folders.load(network, folder, "model", ignore=("position_ids",), only=text), config


def load_dinov2(folder: Path, dtype: Dtype = None, *, weights: bool = True) -> tuple[Network, Params]:
    """A `Dinov2Model`: images [b, h, w, 3], normalised -> embeddings [b, hidden_size].

    Without `weights`, which are not read then, its parameters are shapes.

    Raises:
        ValueError, FileNotFoundError: one line naming what is wrong.
    """
    config = Dinov2Config.from_dict(files.read_json(folder / "config.json"))
    network = functional(lambda rngs: Dinov2Model(config, rngs=rngs, dtype=dtype))
    if not weights:
        return network, network.abstract
    return network, folders.load(network, folder, "model", ignore=("mask_token",))
