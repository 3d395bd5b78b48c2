"""Models to time: folders of Stable Diffusion and of the paper's judges at their true sizes, with random weights.

    python -m benchmarks.models FOLDER --config configs/sd15/exp4-gender-race-age-both.yaml
    python train.py --config FOLDER/experiment.yaml

writes them and the experiment with these models, of ten steps. Speed does not depend on the values. The tokenizer is
the embedded world's, which is in CLIP's own format.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
import yaml

from benchmarks import full_size
from benchmarks.torch_networks import TorchMobileNetV3, TorchSFNet
from fairjax import files
from fairjax.config import Experiment
from fairjax.hub import find
from fairjax.portraits import recipe
from fairjax.schema import load


def write(folder: Path) -> dict[str, object]:
    """Writes the models, if they are not there yet; returns the fields of a configuration that takes them."""
    torch.manual_seed(0)
    if not (folder / "complete").exists():
        _stable_diffusion(folder / "sd15")
        _judges(folder)
        (folder / "complete").touch()
    return {
        "model": str(folder / "sd15"),
        # random pictures show no faces: every one is said to have its face in the middle
        "judges.detector": "fixed",
        "judges.box": (128.0, 96.0, 384.0, 352.0),
        "judges.classifiers": (str(folder / "classifier.pt"),),
        "judges.evaluation": (str(folder / "classifier.pt"),),
        "judges.heads": {},
        "judges.semantics": (str(folder / "clip"), str(folder / "dinov2")),
        "judges.face": str(folder / "face.pth"),
        "judges.bank": str(folder / "bank.npy"),
        "loss.threshold": 1.0,  # a random classifier is unsure: a target for every image
    }


def _stable_diffusion(folder: Path) -> None:
    sizes = full_size.SD15
    text = transformers.CLIPTextConfig(**full_size.TOKENS, **sizes.text)
    transformers.CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    diffusers.UNet2DConditionModel(**sizes.unet).save_pretrained(folder / "unet")
    vae = diffusers.AutoencoderKL(**full_size.VAE, scaling_factor=0.18215)
    vae.save_pretrained(folder / "vae")
    files.write_json(folder / "scheduler" / "scheduler_config.json", recipe.SCHEDULER)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(find("portraits") / "tokenizer", model_max_length=77)
    tokenizer.save_pretrained(folder / "tokenizer")


def _judges(folder: Path) -> None:
    clip = transformers.CLIPVisionConfig(**full_size.CLIP_H14)
    transformers.CLIPVisionModelWithProjection(clip).save_pretrained(folder / "clip")
    transformers.Dinov2Model(transformers.Dinov2Config(**full_size.DINOV2_BASE)).save_pretrained(folder / "dinov2")
    torch.save(TorchMobileNetV3(8).state_dict(), folder / "classifier.pt")
    torch.save(TorchSFNet((1, 2, 4, 1), (64, 128, 256, 512), 512, 112).state_dict(), folder / "face.pth")
    bank = np.random.default_rng(0).normal(size=(full_size.BANK, 512))
    np.save(folder / "bank.npy", bank.astype(np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", type=Path, default="configs/sd15/exp4-gender-race-age-both.yaml")
    options = parser.parse_args()
    fields = write(options.folder) | {
        "output": str(options.folder / "run"), "training.steps": 10, "evaluation.subjects": 1,
        "evaluation.images_per_prompt": 8, "evaluation.num_steps": 2,
    }  # fmt: skip
    experiment = load(Experiment, options.config, fields).model_dump(mode="json")
    (options.folder / "experiment.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))


if __name__ == "__main__":
    main()
