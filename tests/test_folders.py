"""What is written to a folder, as diffusers reads it: the same tensors, in one file or several, in either precision."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL as TorchAutoencoder
from diffusers import UNet2DConditionModel as TorchUNet

from fairjax import files
from fairjax.convert import folders
from fairjax.convert.pipelines import OLD_ATTENTION
from fairjax.models.functional import functional
from fairjax.models.unet import UNet2DConditionModel, UNetConfig
from fairjax.models.vae import AutoencoderKL, VAEConfig

UNET = {
    "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
    "cross_attention_dim": 8, "attention_head_dim": 2, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
VAE = {
    "block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2, "norm_num_groups": 4,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip


def tensors(module):
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("max_bytes", [10**9, 20_000], ids=["one file", "shards"])
def test_what_is_saved_is_what_diffusers_loads_and_was_read(tmp_path, dtype, max_bytes):
    torch.manual_seed(0)
    original = TorchUNet(**UNET)
    original.save_pretrained(tmp_path / "theirs")
    fields = files.read_json(tmp_path / "theirs" / "config.json")
    config = UNetConfig.from_dict(fields)
    params = folders.load(
        functional(lambda rngs: UNet2DConditionModel(config, rngs=rngs)), tmp_path / "theirs", folders.WEIGHTS
    )
    ours = tmp_path / "ours"
    files.write_json(ours / "config.json", fields)
    folders.save(params, ours, folders.WEIGHTS, dtype, max_bytes)
    assert (len(list(ours.glob("*.safetensors"))) > 1) == (max_bytes < 10**9)
    loaded = tensors(
        TorchUNet.from_pretrained(ours, torch_dtype=torch.float16 if dtype == np.float16 else torch.float32)
    )
    expected = tensors(original)
    assert loaded.keys() == expected.keys()
    for name, tensor in loaded.items():
        np.testing.assert_array_equal(tensor, expected[name].astype(dtype), err_msg=name)


def test_weights_may_be_read_by_whom_other_files_may(tmp_path):
    """safetensors alone would keep them to their owner."""
    folders.write_tensors(tmp_path / "a.safetensors", {"a": np.zeros(3)})
    (tmp_path / "b.json").write_text("{}")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "b.json").stat().st_mode


def test_an_autoencoder_with_the_names_of_the_first_releases_comes_out_with_todays(tmp_path):
    """Stable Diffusion 1.x is still published with them."""
    torch.manual_seed(0)
    original = TorchAutoencoder(**VAE)
    old = {}
    for name, tensor in tensors(original).items():
        for before, after in OLD_ATTENTION.items():
            name = name.replace(after, before)
        old[name] = tensor
    assert any(".query." in name for name in old) and any(".proj_attn." in name for name in old)
    folder = tmp_path / "vae"
    folders.write_weights(folder, folders.WEIGHTS, old)
    config = VAEConfig.from_dict(json.loads(original.to_json_string()))
    network = functional(lambda rngs: AutoencoderKL(config, rngs=rngs))
    params = folders.load(network, folder, folders.WEIGHTS, rename=OLD_ATTENTION)
    folders.save(params, folder, folders.WEIGHTS)
    found = folders.read_weights(folder, folders.WEIGHTS)
    expected = tensors(original)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, expected[name], err_msg=name)
