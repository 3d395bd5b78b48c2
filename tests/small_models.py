"""A Stable Diffusion and the paper's judges, small where their formats allow it, and a photograph of a face."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import skimage.data
import torch
import transformers
from diffusers import AutoencoderKL as TorchAutoencoder
from diffusers import UNet2DConditionModel as TorchUNet
from PIL import Image

from fairjax import files, parallel
from fairjax.config import Experiment
from fairjax.convert.rules import to_torch
from fairjax.faces import released
from fairjax.faces.classifier import Classifier
from fairjax.hub import find
from fairjax.models.functional import functional
from fairjax.models.mobilenet import MobileNetV3Config
from fairjax.models.sfnet import SFNet, SFNetConfig
from fairjax.pipeline import Pipeline
from fairjax.portraits import recipe
from fairjax.schema import load
from fairjax.training.finetuning import Finetuning

CONFIGS = sorted((Path(__file__).parents[1] / "configs" / "sd15").glob("*.yaml"))
SIDE = 128  # of the small model's images
THIN = 0.2  # what `draw_over` multiplies drawings by


def write(folder):
    """Folders and files as a user has them, all with random weights."""
    torch.manual_seed(0)
    _small_stable_diffusion(folder / "sd")
    narrow = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    vision = transformers.CLIPVisionConfig(image_size=56, patch_size=14, projection_dim=16, **narrow)
    transformers.CLIPVisionModelWithProjection(vision).save_pretrained(folder / "clip")
    dino = transformers.Dinov2Config(
        image_size=56, patch_size=14, hidden_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.Dinov2Model(dino).save_pretrained(folder / "dinov2")
    _save(Classifier.make(MobileNetV3Config.large(8), released.HEADS, 224).network, folder / "classifier.pt")
    _save(functional(lambda rngs: SFNet(SFNetConfig(), rngs=rngs)), folder / "face.pth")
    np.save(folder / "bank.npy", np.random.default_rng(0).normal(size=(8, 512)).astype(np.float32))


def _small_stable_diffusion(folder):
    unet = TorchUNet(
        sample_size=SIDE // 4, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        cross_attention_dim=32, attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = TorchAutoencoder(
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=4, latent_channels=4,
    )  # fmt: skip
    ids = files.read_json(find("portraits") / "text_encoder" / "config.json")
    text = transformers.CLIPTextConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=32,
        vocab_size=ids["vocab_size"], eos_token_id=ids["eos_token_id"],
    )  # fmt: skip
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    transformers.CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    files.write_json(folder / "scheduler" / "scheduler_config.json", recipe.SCHEDULER)
    transformers.CLIPTokenizer.from_pretrained(find("portraits") / "tokenizer").save_pretrained(folder / "tokenizer")


def _save(network, path):
    tensors = to_torch(jax.device_get(network.init(jax.random.key(0))))
    torch.save({name: torch.tensor(np.asarray(tensor)) for name, tensor in tensors.items()}, path)


def photograph(left=124, top=20, side=200):
    """A square of a photograph, with a face by default: [SIDE, SIDE, 3] in [-1, 1]."""
    square = Image.fromarray(skimage.data.astronaut()[top : top + side, left : left + side])
    return np.asarray(square.resize((SIDE, SIDE), Image.LANCZOS), np.float32) / 127.5 - 1


PHOTOS = np.stack([photograph(), photograph(100, 0, 230)[:, ::-1], photograph(150, 40, 170), photograph(300, 300, 200)])
"""Four of them [4, SIDE, SIDE, 3]; the last shows no face."""


def draw_over_photos(monkeypatch):
    """A random model draws no faces, so what it draws is laid thinly over the photographs that `over` has put in."""
    drawn = Pipeline.decode
    thinly = lambda self, params, latents: jnp.clip(params["photos"] + THIN * drawn(self, params, latents), -1, 1)  # noqa: E731
    monkeypatch.setattr(Pipeline, "decode", thinly)


def over(frozen, photos):
    """`frozen` with photographs [n or 1, SIDE, SIDE, 3]: an argument of the program, so that one serves all."""
    return frozen._replace(pipeline=frozen.pipeline | {"photos": jnp.asarray(photos)})


def finetuning_of(models, name, **changes):
    return Finetuning(small_config(models, name, **changes), parallel.mesh(1))


def small_config(models, name, **changes):
    """The experiment of this name with the small models, few images and few steps."""
    return load(
        Experiment,
        next(path for path in CONFIGS if path.stem == name),
        {
            "model": str(models / "sd"),
            "judges.classifiers": (str(models / "classifier.pt"),),
            "judges.evaluation": (str(models / "classifier.pt"),),
            "judges.heads": {},
            "judges.semantics": (str(models / "clip"), str(models / "dinov2")),
            "judges.face": str(models / "face.pth"),
            "judges.bank": str(models / "bank.npy"),
            "adapter.rank": 4,
            "training.images_per_prompt": 4,
            "training.num_steps": (2, 2),
            "training.steps": 2,
            "training.learning_rate": 1e-2,
            "training.precision": "float32",  # what is compared is not rounding
            "loss.threshold": 1.0,  # random classifiers are unsure: a target for every face
        }
        | changes,
    )
