"""A world of the embedded one's kind with small random networks: for tests of what the numbers go through, not of them.

A training step of the embedded world takes half a minute to compile, one of this world a few seconds.
"""

import dataclasses
import json
import shutil
from functools import partial

import jax
import numpy as np

from fairjax import files
from fairjax.convert import folders
from fairjax.faces import classifier as classifiers
from fairjax.faces.classifier import Classifier
from fairjax.hub import find
from fairjax.models.clip import CLIPTextConfig, CLIPTextEmbedding, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel
from fairjax.models.functional import functional
from fairjax.models.mobilenet import MobileNetV3Config, Row
from fairjax.models.unet import UNet2DConditionModel, UNetConfig
from fairjax.models.vae import AutoencoderKL, VAEConfig

SIDE, BOX, FACES, WIDTH = 16, (4.0, 3.0, 12.0, 11.0), 12, 16
UNET = UNetConfig(
    sample_size=8, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), block_out_channels=(8,),
    layers_per_block=1, norm_num_groups=4, cross_attention_dim=WIDTH, attention_head_dim=2,
)  # fmt: skip
VAE = VAEConfig(
    block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4, scaling_factor=1.0,
    up_block_types=("UpDecoderBlock2D",) * 2, mid_block_add_attention=False,
)  # fmt: skip
VISION = CLIPVisionConfig(
    hidden_size=WIDTH, intermediate_size=32, projection_dim=WIDTH, num_hidden_layers=1, num_attention_heads=2,
    image_size=SIDE, patch_size=4,
)  # fmt: skip


def draw(rng, network):
    """Random parameters: kernels that keep the size of what goes through them, everything else near its start."""

    def leaf(path, array):
        name, normal = path[-1].key, rng.normal(size=array.shape).astype(np.float32)
        if name in ("kernel", "embedding"):
            return normal * (2 if name == "kernel" else 1) / np.sqrt(np.prod(array.shape[:-1]))
        return 1 + 0.1 * normal if name in ("scale", "var") else 0.1 * normal

    return jax.tree_util.tree_map_with_path(leaf, network.abstract)


def write(folder, stem, network, config, rng, **fields):
    """Writes a network with random parameters; returns these."""
    params = draw(rng, network)
    files.write_json(folder / "config.json", dataclasses.asdict(config) | fields)
    folders.save(params, folder, stem)
    return params


def write_classifier(folder, heads, images, rng):
    """Writes a random classifier that is undecided between classes on average over `images`, and decided on each."""
    config = MobileNetV3Config((Row(3, 16, 16, True, True, 2),), WIDTH, sum(map(len, heads.values())), 8)
    classifier = Classifier.make(config, heads, images.shape[1])
    params = draw(rng, classifier.network)
    logits = np.asarray(jax.jit(classifier.network.apply)(params, images))
    last, scale = params["classifier"]["3"], 2 / logits.std(0)
    params["classifier"]["3"] = {"kernel": last["kernel"] * scale, "bias": (last["bias"] - logits.mean(0)) * scale}
    classifiers.save(classifier, params, folder)


def build(folder, unet=UNET, **text_fields):
    """Writes the world into `folder`: prompts, attributes and occupations are those of the embedded one.

    Args:
        unet: the configuration of its UNet, of 8 x 8 x 4 latents.
        text_fields: of the text encoder, in place of the embedded one's.
    """
    rng, embedded = np.random.default_rng(0), find("portraits")
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(embedded / part, folder / part)
    text = CLIPTextConfig.from_dict(files.read_json(embedded / "text_encoder" / "config.json"))
    small = {"hidden_size": WIDTH, "intermediate_size": 32, "projection_dim": WIDTH, "num_hidden_layers": 1}
    text = dataclasses.replace(text, num_attention_heads=2, **small | text_fields)
    write(folder / "text_encoder", "model", functional(lambda rngs: CLIPTextModel(text, rngs=rngs)), text, rng)
    denoiser, vae = (
        functional(lambda rngs: UNet2DConditionModel(unet, rngs=rngs)),
        functional(lambda rngs: AutoencoderKL(VAE, rngs=rngs)),
    )
    write(folder / "unet", folders.WEIGHTS, denoiser, unet, rng)
    params = write(folder / "vae", folders.WEIGHTS, vae, VAE, rng)
    latents = rng.normal(size=(64, 8, 8, 4)).astype(np.float32)
    images = np.clip(jax.jit(partial(vae.apply, method="decode"))(params, latents), -1, 1)

    heads = files.read_json(embedded / "classifier" / "config.json")["heads"]
    for name in ("classifier", "classifier_eval"):
        write_classifier(folder / name, heads, images, rng)
    (x0, y0, x1, y1), identity = map(int, BOX), {"identity": tuple(map(str, range(WIDTH)))}
    write_classifier(folder / "face_embedding", identity, images[:, y0:y1, x0:x1], rng)
    bank = {name: rng.integers(0, len(heads[name]), FACES) for name in ("gender", "skin_tone", "age")}
    folders.write_weights(folder / "face_embedding", "bank", bank | {"embeddings": rng.normal(size=(FACES, WIDTH))})
    vision = functional(lambda rngs: CLIPVisionModel(VISION, rngs=rngs))
    words = functional(lambda rngs: CLIPTextEmbedding(text, rngs=rngs))
    towers = {"text_config": dataclasses.asdict(text), "vision_config": dataclasses.asdict(VISION)}
    shutil.copytree(embedded / "tokenizer", folder / "image_semantics")
    folders.save(draw(rng, vision) | draw(rng, words), folder / "image_semantics", "model")
    files.write_json(folder / "image_semantics" / "config.json", {"model_type": "clip"} | towers)
    as_they_are = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    files.write_json(folder / "image_semantics" / "preprocessor_config.json", as_they_are)


def fields(folder):
    """What a configuration says that takes its models from `folder`."""
    return {
        "model": str(folder), "judges.box": BOX, "judges.classifiers": (f"{folder}/classifier",),
        "judges.evaluation": (f"{folder}/classifier_eval",), "judges.semantics": (f"{folder}/image_semantics",),
        "judges.face": f"{folder}/face_embedding", "judges.bank": f"{folder}/face_embedding/bank.safetensors",
    }  # fmt: skip


def arguments(folder):
    """The same for the command line."""
    return [part for name, value in fields(folder).items() for part in (f"--{name}", _text(value))]


def _text(value):
    return value if isinstance(value, str) else json.dumps(value)
