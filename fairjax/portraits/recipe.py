"""The sizes of the portraits model: every network of the embedded world, as data.

What costs on two CPU cores is convolution at full resolution, so the autoencoder is narrow at 64 px and the
UNet works on an 8x8 grid, where four million parameters take a millisecond an image.
"""

from __future__ import annotations

from transformers import CLIPTokenizer

from fairjax.models.clip import CLIPTextConfig, CLIPVisionConfig
from fairjax.models.unet import UNetConfig
from fairjax.models.vae import VAEConfig

IMAGE_SIZE = 64
MAX_TOKENS = 32
VOCABULARY = 1024
PROJECTION = 128

VAE = VAEConfig(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(16, 24, 48, 64),
    layers_per_block=1,
    latent_channels=8,
    norm_num_groups=8,
    scaling_factor=1.0,  # measured on the training renders when the autoencoder is done
)

UNET = UNetConfig(
    sample_size=8,
    in_channels=8,
    out_channels=8,
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    block_out_channels=(64, 128),
    layers_per_block=1,
    norm_num_groups=16,
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
