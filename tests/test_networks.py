"""Every network against the PyTorch original with the same random weights, in float32: at most 1e-4 relative error."""

import jax
import numpy as np
import pytest
import torch
import transformers
from diffusers import AutoencoderKL as TorchAutoencoder
from diffusers import UNet2DConditionModel as TorchUNet
from torch_references import TorchMobileNetV3, nchw, nhwc, randomised, relative, tensors

from fairjax.convert.rules import from_torch, to_torch
from fairjax.models.clip import CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig
from fairjax.models.functional import functional, num_params
from fairjax.models.mobilenet import DepthwiseConv, MobileNetV3, MobileNetV3Config
from fairjax.models.unet import UNet2DConditionModel, UNetConfig
from fairjax.models.vae import AutoencoderKL, VAEConfig

UNETS = {
    "sd1": {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
        "norm_num_groups": 8,
        "layers_per_block": 2,
    },
    "sd2 with linear projections, heads by block, odd channels": {
        "block_out_channels": (32, 64, 96),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": (2, 4, 6),
        "norm_num_groups": 16,
        "layers_per_block": 1,
        "use_linear_projection": True,
        "in_channels": 5,
        "out_channels": 3,
    },
}


@pytest.mark.parametrize("kind", UNETS)
def test_unet(kind):
    """The 9x8 latents halve unevenly, so that the way up must be told the sizes."""
    theirs = randomised(TorchUNet(cross_attention_dim=24, sample_size=8, **UNETS[kind]))
    config = UNetConfig.from_dict(dict(theirs.config))
    network = functional(lambda rngs: UNet2DConditionModel(config, rngs=rngs))
    params = from_torch(network.abstract, tensors(theirs))
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(2, 9, 8, config.in_channels)).astype(np.float32)
    context, timesteps = rng.normal(size=(2, 7, 24)).astype(np.float32), np.array([3, 900])
    with torch.no_grad():
        expected = theirs(nchw(latents), torch.tensor(timesteps), torch.tensor(context)).sample
    assert relative(jax.jit(network.apply)(params, latents, timesteps, context), nhwc(expected)) <= 1e-4
    back = to_torch(params)
    assert back.keys() == theirs.state_dict().keys()
    for name, tensor in tensors(theirs).items():
        np.testing.assert_array_equal(back[name], tensor)


@pytest.mark.parametrize(("attends", "act_fn"), [(True, "silu"), (False, "mish")])
def test_autoencoder(attends, act_fn):
    theirs = randomised(
        TorchAutoencoder(
            block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=8,
            up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=2, mid_block_add_attention=attends,
            act_fn=act_fn,
        )
    )  # fmt: skip
    config = VAEConfig.from_dict(dict(theirs.config))
    network = functional(lambda rngs: AutoencoderKL(config, rngs=rngs))
    params = from_torch(network.abstract, tensors(theirs))
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    with torch.no_grad():
        posterior = theirs.encode(nchw(images)).latent_dist
        decoded = theirs.decode(posterior.mean).sample
    ours = network.apply(params, images, method="encode")
    assert relative(ours.mean, nhwc(posterior.mean)) <= 1e-4
    assert relative(np.exp(0.5 * ours.log_variance), nhwc(posterior.std)) <= 1e-4
    assert relative(network.apply(params, nhwc(posterior.mean), method="decode"), nhwc(decoded)) <= 1e-4


@pytest.mark.parametrize(("activation", "eos"), [("quick_gelu", 2), ("gelu", 99)])
def test_clip(activation, eos):
    """With the legacy `eos_token_id` of 2 the highest id ends the text; else the first that equals it."""
    sizes = {"hidden_size": 48, "intermediate_size": 96, "projection_dim": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "hidden_act": activation}
    text = transformers.CLIPTextConfig(
        vocab_size=100, max_position_embeddings=12, eos_token_id=eos, bos_token_id=98, pad_token_id=1, **sizes
    )
    vision = transformers.CLIPVisionConfig(image_size=32, patch_size=8, **sizes)
    both = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
    theirs = randomised(transformers.CLIPModel(both))
    configs = CLIPTextConfig.from_dict(text.to_dict()), CLIPVisionConfig.from_dict(vision.to_dict())
    network = functional(lambda rngs: CLIPModel(*configs, rngs=rngs))
    params = from_torch(network.abstract, tensors(theirs), ignore=("position_ids",))
    rng = np.random.default_rng(0)
    ids, images = rng.integers(3, 97, (3, 12)), rng.normal(size=(3, 32, 32, 3)).astype(np.float32)
    ids[:, 7], ids[:, 9] = 99, 99
    with torch.no_grad():
        states = theirs.text_model(torch.tensor(ids))
        seen = theirs.visual_projection(theirs.vision_model(nchw(images)).pooler_output)
        read = theirs.text_projection(states.pooler_output)
    assert relative(network.apply(params, ids, method="get_text_features"), read.numpy()) <= 1e-4
    assert relative(network.apply(params, images, method="get_image_features"), seen.numpy()) <= 1e-4
    hidden = network.apply(params, ids, method="get_text_hidden_states")
    assert relative(hidden, states.last_hidden_state.numpy()) <= 1e-4


def test_a_text_encoder_given_embeddings_reads_them_in_place_of_tokens():
    config = CLIPTextConfig(50, 16, 32, 16, 1, 2, 8, eos_token_id=49)
    network = functional(lambda rngs: CLIPTextModel(config, rngs=rngs))
    params = network.init(jax.random.key(0))
    ids = np.array([[1, 5, 6, 49, 49, 49, 49, 49]])
    table = params["text_model"]["embeddings"]["token_embedding"]["embedding"]
    expected = network.apply(params, ids)
    given = network.apply(params, ids, inputs_embeds=table[ids])
    np.testing.assert_array_equal(expected.last_hidden_state, given.last_hidden_state)
    moved = network.apply(params, ids, inputs_embeds=-table[ids])
    assert np.abs(np.asarray(moved.pooler_output - expected.pooler_output)).max() > 1e-3


@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 1, 7), (3, 2, 8), (5, 2, 9), (5, 1, 6)])
def test_the_depthwise_convolution_is_pytorchs_grouped_one(kernel, stride, side):
    theirs = torch.nn.Conv2d(6, 6, kernel, stride, kernel // 2, groups=6, bias=False)
    network = functional(lambda rngs: DepthwiseConv(6, kernel, stride, rngs=rngs, dtype=None))
    params = from_torch(network.abstract, tensors(theirs))
    x = np.random.default_rng(0).normal(size=(2, side, side, 6)).astype(np.float32)
    with torch.no_grad():
        expected = nhwc(theirs(nchw(x)))
    assert relative(network.apply(params, x), expected) <= 1e-5


def test_mobilenet_has_torchvisions_sizes():
    """2,542,856 and 5,483,032 trained parameters, and a mean and a variance for each normalised channel."""
    for config, trained in ((MobileNetV3Config.small(1000), 2_542_856), (MobileNetV3Config.large(1000), 5_483_032)):
        abstract = functional(lambda rngs, config=config: MobileNetV3(config, rngs=rngs)).abstract
        paths = jax.tree_util.tree_leaves_with_path(abstract)
        assert sum(leaf.size for path, leaf in paths if path[-1].key not in ("mean", "var")) == trained


@pytest.mark.parametrize("train", [False, True])
def test_mobilenet(train):
    theirs = TorchMobileNetV3(7)
    torch.manual_seed(0)
    for name, tensor in theirs.named_parameters():
        tensor.data = torch.randn_like(tensor) * (0.3 if name.endswith("bias") else tensor[0].numel() ** -0.5)
    for name, tensor in theirs.named_buffers():
        if name.endswith("running_var"):
            tensor.data = torch.rand_like(tensor) + 0.5
        elif name.endswith("running_mean"):
            tensor.data = 0.1 * torch.randn_like(tensor)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data = torch.rand_like(module.weight) + 0.5
    theirs.train(train)
    network = functional(lambda rngs: MobileNetV3(MobileNetV3Config.large(7), rngs=rngs))
    state = {name: tensor for name, tensor in tensors(theirs).items() if not name.endswith("num_batches_tracked")}
    params = from_torch(network.abstract, state)
    images = np.random.default_rng(0).uniform(-1, 1, (3, 96, 96, 3)).astype(np.float32)
    apply = lambda params: network.apply(params, images, method="train")[0] if train else network.apply(params, images)  # noqa: E731
    ours = jax.jit(apply)(params)
    with torch.no_grad():
        expected = theirs(nchw(images)).numpy()
    assert relative(np.asarray(ours), expected) <= 1e-4


def test_batch_statistics_move_by_torchs_momentum_and_are_all_that_training_returns():
    config = MobileNetV3Config.small(10)
    network = functional(lambda rngs: MobileNetV3(config, rngs=rngs))
    params = network.init(jax.random.key(0))
    images = np.random.default_rng(0).uniform(-1, 1, (4, 32, 32, 3)).astype(np.float32)
    _, statistics = network.apply(params, images, method="train")
    convolution = torch.nn.Conv2d(3, 16, 3, 2, 1, bias=False)
    kernel = np.asarray(params["features"][0]["0"]["kernel"])
    convolution.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1))
    with torch.no_grad():
        mean = convolution(nchw(images)).mean((0, 2, 3)).numpy()
    np.testing.assert_allclose(statistics["features"][0]["1"]["mean"], 0.01 * mean, rtol=1e-4, atol=1e-7)
    leaves = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(statistics)}
    assert leaves == {"mean", "var"}


def test_stable_diffusion_has_its_sizes():
    """Parameter counts of Stable Diffusion 1.5, without allocating any."""
    vae = VAEConfig(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2,
    )  # fmt: skip
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    unet = UNetConfig(cross_attention_dim=768)
    assert num_params(functional(lambda rngs: UNet2DConditionModel(unet, rngs=rngs)).abstract) == 859_520_964
    assert num_params(functional(lambda rngs: AutoencoderKL(vae, rngs=rngs)).abstract) == 83_653_863
    assert num_params(functional(lambda rngs: CLIPTextModel(text, rngs=rngs)).abstract) == 123_060_480


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (UNetConfig, "resnet_time_scale_shift", "scale_shift"),
        (UNetConfig, "class_embed_type", "timestep"),
        (UNetConfig, "only_cross_attention", True),
        (VAEConfig, "act_fn", "tanh"),
        (VAEConfig, "shift_factor", 0.1),
        (CLIPTextConfig, "hidden_act", "relu6"),
    ],
)
def test_a_field_that_is_not_computed_is_refused_by_name(config, field, value):
    with pytest.raises(ValueError, match=rf"{field} = {value!r} is not supported"):
        config.from_dict({field: value})


def test_a_wholly_different_file_shows_every_kind_of_misfit():
    network = functional(lambda rngs: CLIPTextModel(CLIPTextConfig(50, 16, 32, 16, 1, 2, 8), rngs=rngs))
    missing = len(jax.tree.leaves(network.abstract))
    with pytest.raises(ValueError) as error:
        from_torch(network.abstract, {f"other.{n}": np.zeros(1) for n in range(5)})
    assert f"{missing + 5} tensors do not fit: {missing} missing (" in str(error.value)
    assert "; 5 unexpected (other.0, other.1, other.2, ...)" in str(error.value)


def test_tensors_that_do_not_fit_are_one_error_that_lists_them():
    network = functional(lambda rngs: CLIPTextModel(CLIPTextConfig(50, 16, 32, 16, 1, 2, 8), rngs=rngs))
    right = to_torch(network.init(jax.random.key(0)))
    wrong = dict(right)
    bias = "text_model.final_layer_norm.bias"
    del wrong["text_model.final_layer_norm.weight"]
    wrong[bias], wrong["surplus"] = np.zeros(3), np.zeros(1)
    with pytest.raises(ValueError) as error:
        from_torch(network.abstract, wrong)
    missing = "1 missing (text_model.final_layer_norm.weight)"
    for part in ("3 tensors", missing, f"{bias} has shape (3,)", "1 unexpected (surplus)"):
        assert part in str(error.value)
