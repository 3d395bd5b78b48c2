"""The sizes of the portraits model: every network of the embedded world, as data.

What costs on two CPU cores is convolution at full resolution, so the autoencoder is narrow at 64 px and
the UNet has most of its four million parameters on grids of 8x8 and 4x4, where they take a millisecond an image.
"""

from __future__ import annotations

from transformers import CLIPTokenizer

from fairjax.models.clip import CLIPTextConfig, CLIPVisionConfig
from fairjax.models.mobilenet import MobileNetV3Config, Row
from fairjax.models.unet import UNetConfig
from fairjax.models.vae import VAEConfig

IMAGE_SIZE = 64
MAX_TOKENS = 32
VOCABULARY = 1024
PROJECTION = 128

VAE = VAEConfig(
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
    block_out_channels=(16, 32, 64),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=8,
    mid_block_add_attention=False,
    scaling_factor=1.0,  # measured on the training renders when the autoencoder is done
)

UNET = UNetConfig(
    sample_size=16,
    in_channels=4,
    out_channels=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(32, 64, 128),
    layers_per_block=1,
    norm_num_groups=8,
    cross_attention_dim=128,
    attention_head_dim=4,
)

SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 1,
}

VISION = CLIPVisionConfig(
    hidden_size=128,
    intermediate_size=256,
    projection_dim=PROJECTION,
    num_hidden_layers=4,
    num_attention_heads=4,
    image_size=IMAGE_SIZE,
    patch_size=8,
)


def text(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """The text tower's sizes, for the vocabulary that was learned."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        projection_dim=PROJECTION,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        eos_token_id=tokenizer.eos_token_id,
    )


def _mobilenet(width: float, num_classes: int) -> MobileNetV3Config:
    sizes = (
        *((3, 16, 16, False, False, 1), (3, 48, 24, False, False, 2), (3, 72, 24, False, False, 1)),
        *((5, 96, 40, True, True, 2), (5, 120, 40, True, True, 1)),
    )
    rows = tuple(
        Row(k, round(e * width) // 8 * 8, round(o * width) // 8 * 8, se, hs, s) for k, e, o, se, hs, s in sizes
    )
    return MobileNetV3Config(rows, 128, num_classes)


def classifier(num_classes: int) -> MobileNetV3Config:
    """The classifier that finetuning sees."""
    return _mobilenet(1.0, num_classes)


def classifier_eval(num_classes: int) -> MobileNetV3Config:
    """The classifier that measures, wider than the other."""
    return _mobilenet(1.35, num_classes)


CLASSIFIERS = {"classifier": classifier, "classifier_eval": classifier_eval}

FACE = _mobilenet(1.0, 64)
"""The face embedding: 64 numbers in place of logits."""
