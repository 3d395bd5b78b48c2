"""Every network against the PyTorch original with the same random weights, in float32: at most 1e-4 relative error."""

import dataclasses
import inspect
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from diffusers import AutoencoderKL as TorchAutoencoder
from diffusers import UNet2DConditionModel as TorchUNet
from flax import nnx

from benchmarks.torch_networks import TorchMobileNetV3, nchw, nhwc, randomised, relative, tensors
from fairjax.convert.rules import from_torch, to_torch
from fairjax.models.clip import CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig
from fairjax.models.functional import functional, num_params
from fairjax.models.mobilenet import DepthwiseConv, MobileNetV3, MobileNetV3Config, Row
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
    "every field away from its default": {
        "block_out_channels": (16, 24),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (5, 3),  # the first has no attention
        "cross_attention_dim": (10, 24),
        "layers_per_block": (1, 2),
        "transformer_layers_per_block": (3, 2),
        "norm_num_groups": 4,
        "norm_eps": 0.1,
        "act_fn": "gelu",
        "center_input_sample": True,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
        "mid_block_scale_factor": 1.5,
        "time_embedding_dim": 40,
    },
}
# Those of them that do not change the shape of any tensor, so that only the output tells whether they are followed.
UNSHAPED = {
    "attention_head_dim": 4, "norm_num_groups": 8, "norm_eps": 1e-5, "act_fn": "silu", "center_input_sample": False,
    "flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1, "mid_block_scale_factor": 1,
}  # fmt: skip


@pytest.mark.parametrize("kind", UNETS)
def test_a_unet_computes_once_what_two_prompts_of_an_image_have_in_common(kind):
    """As guidance asks: the same numbers, and the same gradients, as of the latents twice over, for less work."""
    fields = {"cross_attention_dim": 24, "sample_size": 8} | UNETS[kind]
    config = UNetConfig.from_dict(dict(TorchUNet(**fields).config))
    network = functional(lambda rngs: UNet2DConditionModel(config, rngs=rngs))
    rng, params = np.random.default_rng(0), network.init(jax.random.key(0))
    shapes = ((3, 8, 8, config.in_channels), (6, 7, 24), (6, 8, 8, config.out_channels))
    latents, words, g = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    timesteps = np.array([3, 900, 20])

    def both(times, params, latents, words):
        repeated = jnp.concatenate([latents] * times), np.concatenate([timesteps] * times)
        output, pull = jax.vjp(lambda params, words: network.apply(params, *repeated, words), params, words)
        return output, pull(g)

    once, twice = (jax.jit(partial(both, times)).lower(params, latents, words).compile() for times in (1, 2))
    assert once.cost_analysis()["flops"] < 0.98 * twice.cost_analysis()["flops"]
    for ours, theirs in zip(*(jax.tree.leaves(run(params, latents, words)) for run in (once, twice)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * max(np.abs(theirs).max(), 1e-6))


@pytest.mark.parametrize("kind", UNETS)
def test_unet(kind):
    """The 9x8 latents halve unevenly, so that the way up must be told the sizes."""
    fields = {"cross_attention_dim": 24, "sample_size": 8} | UNETS[kind]
    theirs = randomised(TorchUNet(**fields))
    config = UNetConfig.from_dict(dict(theirs.config))
    network = functional(lambda rngs: UNet2DConditionModel(config, rngs=rngs))
    params = from_torch(network.abstract, tensors(theirs))
    height = 8 if config.downsample_padding == 0 else 9  # diffusers cannot go up again from an odd size without it
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(2, height, 8, config.in_channels)).astype(np.float32)
    context, timesteps = rng.normal(size=(2, 7, 24)).astype(np.float32), np.array([3, 900])

    def by_torch(module):
        with torch.no_grad():
            return nhwc(module(nchw(latents), torch.tensor(timesteps), torch.tensor(context)).sample)

    expected = by_torch(theirs)
    assert relative(jax.jit(network.apply)(params, latents, timesteps, context), expected) <= 1e-4
    back = to_torch(params)
    assert back.keys() == theirs.state_dict().keys()
    for name, tensor in tensors(theirs).items():
        np.testing.assert_array_equal(back[name], tensor)
    for name in UNSHAPED.keys() & fields.keys() if kind == "every field away from its default" else ():
        other = TorchUNet(**fields | {name: UNSHAPED[name]}).eval()
        other.load_state_dict(theirs.state_dict())
        assert relative(by_torch(other), expected) > 1e-3, name  # or the comparison above says nothing of it


VAES = {
    "like SD": {"layers_per_block": 2},
    "another activation, no attention": {"layers_per_block": 2, "mid_block_add_attention": False, "act_fn": "mish"},
    "other channels, no quantisation layers": {
        "block_out_channels": (12, 20), "norm_num_groups": 4, "latent_channels": 3, "in_channels": 2, "out_channels": 5,
        "use_quant_conv": False, "use_post_quant_conv": False, "act_fn": "relu",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", VAES)
def test_autoencoder(kind):
    shape = {"block_out_channels": (16, 32), "norm_num_groups": 8}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    theirs = randomised(TorchAutoencoder(**blocks, **shape | VAES[kind]))
    config = VAEConfig.from_dict(dict(theirs.config))
    network = functional(lambda rngs: AutoencoderKL(config, rngs=rngs))
    params = from_torch(network.abstract, tensors(theirs))
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, config.in_channels)).astype(np.float32)
    with torch.no_grad():
        posterior = theirs.encode(nchw(images)).latent_dist
        decoded = theirs.decode(posterior.mean).sample
    encode, decode = (jax.jit(partial(network.apply, method=method)) for method in ("encode", "decode"))
    ours = encode(params, images)
    assert relative(ours.mean, nhwc(posterior.mean)) <= 1e-4
    assert relative(np.exp(0.5 * ours.log_variance), nhwc(posterior.std)) <= 1e-4
    assert relative(decode(params, nhwc(posterior.mean)), nhwc(decoded)) <= 1e-4


@pytest.mark.parametrize(("activation", "eos", "epsilon"), [("quick_gelu", 2, 1e-5), ("gelu", 99, 0.1)])
def test_clip(activation, eos, epsilon):
    """With the legacy `eos_token_id` of 2 the highest id ends the text; else the first that equals it."""
    sizes = {"hidden_size": 48, "intermediate_size": 96, "projection_dim": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "hidden_act": activation, "layer_norm_eps": epsilon}
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
    state = {n: np.array(tensor) for n, tensor in tensors(theirs).items() if not n.endswith("num_batches_tracked")}
    params = from_torch(network.abstract, state)
    images = np.random.default_rng(0).uniform(-1, 1, (3, 96, 96, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(nchw(images)).numpy()
    if not train:
        ours = jax.jit(network.apply)(params, images)
        assert relative(np.asarray(ours), expected) <= 1e-4
        return
    ours, moved = jax.jit(partial(network.apply, method="train"))(params, images)
    assert relative(np.asarray(ours), expected) <= 1e-4
    after = tensors(theirs)
    for name, statistic in to_torch(moved).items():
        added, wanted = statistic - 0.99 * state[name], after[name] - 0.99 * state[name]  # a hundredth of the batch's
        assert relative(added, wanted) <= 1e-4, name


def test_batch_statistics_move_by_torchs_momentum_and_are_all_that_training_returns():
    config = MobileNetV3Config((Row(3, 16, 16, True, False, 2), Row(5, 24, 16, False, True, 1)), 16, 10)
    network = functional(lambda rngs: MobileNetV3(config, rngs=rngs))
    params = network.init(jax.random.key(0))
    images = np.random.default_rng(0).uniform(-1, 1, (4, 32, 32, 3)).astype(np.float32)
    _, statistics = jax.jit(partial(network.apply, method="train"))(params, images)
    convolution = torch.nn.Conv2d(3, 16, 3, 2, 1, bias=False)
    kernel = np.asarray(params["features"][0]["0"]["kernel"])
    convolution.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1))
    with torch.no_grad():
        mean = convolution(nchw(images)).mean((0, 2, 3)).numpy()
    np.testing.assert_allclose(statistics["features"][0]["1"]["mean"], 0.01 * mean, rtol=1e-4, atol=1e-7)
    leaves = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(statistics)}
    assert leaves == {"mean", "var"}


# The config.json files of Stable Diffusion 1.5, field by field as published.
SD15_UNET = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False, "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
    "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
SD15_VAE = {
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3,
    "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
SD15_TEXT = {
    "_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"], "attention_dropout": 0.0,
    "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 768,
    "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 12, "num_hidden_layers": 12,
    "pad_token_id": 1, "projection_dim": 768, "torch_dtype": "float32", "transformers_version": "4.22.0.dev0",
    "vocab_size": 49408,
}  # fmt: skip


def test_stable_diffusion_has_its_sizes():
    """Parameter counts and output shapes of Stable Diffusion 1.5, from its own files, without allocating any."""
    unet, vae = UNetConfig.from_dict(SD15_UNET), VAEConfig.from_dict(SD15_VAE)
    text = CLIPTextConfig.from_dict(SD15_TEXT)
    unet_network = functional(lambda rngs: UNet2DConditionModel(unet, rngs=rngs))
    vae_network = functional(lambda rngs: AutoencoderKL(vae, rngs=rngs))
    text_network = functional(lambda rngs: CLIPTextModel(text, rngs=rngs))
    assert num_params(unet_network.abstract) == 859_520_964
    assert num_params(vae_network.abstract) == 83_653_863
    assert num_params(text_network.abstract) == 123_060_480

    def shapes(network, *arguments, **how):
        arguments = (jax.ShapeDtypeStruct(shape, kind) for shape, kind in arguments)
        outputs = jax.eval_shape(partial(network.apply, **how), network.abstract, *arguments)
        return [leaf.shape for leaf in jax.tree.leaves(outputs)]

    latents, states = ((2, 64, 64, 4), np.float32), ((2, 77, 768), np.float32)
    assert shapes(text_network, ((2, 77), np.int32)) == [(2, 77, 768), (2, 768)]
    assert shapes(unet_network, latents, ((2,), np.int32), states) == [(2, 64, 64, 4)]
    assert shapes(vae_network, latents, method="decode") == [(2, 512, 512, 3)]
    assert shapes(vae_network, ((2, 512, 512, 3), np.float32), method="encode") == [(2, 64, 64, 4)] * 2


REFUSED = {
    UNetConfig: {
        "_class_name": "UNet2DModel",
        "act_fn": "tanh", "mid_block_type": "UNetMidBlock2D", "only_cross_attention": True, "dropout": 0.1,
        "mid_block_only_cross_attention": True, "dual_cross_attention": True, "encoder_hid_dim": 64,
        "encoder_hid_dim_type": "text_proj", "num_attention_heads": 8, "class_embed_type": "timestep",
        "num_class_embeds": 10, "addition_embed_type": "text_time", "class_embeddings_concat": True,
        "resnet_time_scale_shift": "scale_shift", "resnet_skip_time_act": True, "resnet_out_scale_factor": 2.0,
        "time_embedding_type": "fourier", "time_embedding_act_fn": "gelu", "timestep_post_act": "silu",
        "time_cond_proj_dim": 256, "conv_in_kernel": 5, "conv_out_kernel": 5, "attention_type": "gated",
        "cross_attention_norm": "layer_norm", "reverse_transformer_layers_per_block": [[1], [2]],
    },
    VAEConfig: {
        "_class_name": "AutoencoderTiny", "act_fn": "tanh", "shift_factor": 0.1, "latents_mean": [0.0] * 4,
        "latents_std": [1.0] * 4,
    },
    CLIPTextConfig: {"hidden_act": "relu6", "attention_dropout": 0.1, "dropout": 0.1, "use_attention_mask": True},
    CLIPVisionConfig: {"hidden_act": "relu6", "attention_dropout": 0.1},
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [(config, field, value) for config, fields in REFUSED.items() for field, value in fields.items()],
    ids=lambda part: getattr(part, "__name__", part) if isinstance(part, str | type) else "",
)
def test_a_field_that_is_not_computed_is_refused_by_name(config, field, value):
    with pytest.raises(ValueError, match=rf"{field} = {re.escape(repr(value))} is not supported") as refused:
        config.from_dict({field: value})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("config", "field", "kind"),
    [
        (UNetConfig, "down_block_types", "AttnDownBlock2D"),
        (UNetConfig, "up_block_types", "SimpleCrossAttnUpBlock2D"),
        (VAEConfig, "down_block_types", "AttnDownEncoderBlock2D"),
        (VAEConfig, "up_block_types", "AttnUpDecoderBlock2D"),
    ],
)
def test_a_kind_of_block_that_is_not_computed_is_refused_by_name(config, field, kind):
    with pytest.raises(ValueError, match=rf"{field} = .*{kind}.* must be"):
        config.from_dict({field: [kind] * len(config().block_out_channels)})


def parameters(module):
    return set(inspect.signature(module.__init__).parameters) - {"self"}


def own_fields(config):
    """Those of a transformers config that not every other has, too."""
    return set(config().to_dict()) - set(transformers.PretrainedConfig().to_dict())


START = {"initializer_range", "initializer_factor", "bos_token_id", "pad_token_id", "model_type"}
"""How fresh weights are drawn, and tokens that the tokenizer brings with it."""


@pytest.mark.parametrize(
    ("config", "published", "idle"),
    [
        (
            UNetConfig,
            parameters(TorchUNet),
            {
                "upcast_attention",  # attention in float32, as it always is here
                # of embeddings that `class_embed_type` and `addition_embed_type` would bring
                *("addition_time_embed_dim", "addition_embed_type_num_heads", "projection_class_embeddings_input_dim"),
            },
        ),
        (VAEConfig, parameters(TorchAutoencoder), {"sample_size", "force_upcast"}),
        (CLIPTextConfig, own_fields(transformers.CLIPTextConfig), START),
        (CLIPVisionConfig, own_fields(transformers.CLIPVisionConfig), START),
    ],
    ids=lambda part: part.__name__ if isinstance(part, type) else "",
)
def test_every_field_of_the_originals_is_followed_refused_or_known_to_change_nothing(config, published, idle):
    followed = {field.name for field in dataclasses.fields(config)}
    assert published - followed - REFUSED[config].keys() <= idle


def test_a_wholly_different_file_shows_every_kind_of_misfit():
    network = functional(lambda rngs: CLIPTextModel(CLIPTextConfig(50, 16, 32, 16, 1, 2, 8), rngs=rngs))
    missing = len(jax.tree.leaves(network.abstract))
    with pytest.raises(ValueError) as error:
        from_torch(network.abstract, {f"other.{n}": np.zeros(1) for n in range(5)})
    assert f"{missing + 5} tensors do not fit: {missing} missing (" in str(error.value)
    assert "; 5 unexpected (other.0, other.1, other.2, ...)" in str(error.value)


def test_fresh_parameters_are_those_that_flax_draws():
    """Keys are counted apart from NNX's, and stay the same: what was pretrained is made again from its seed."""
    make = lambda rngs: CLIPTextModel(CLIPTextConfig(50, 16, 32, 16, 1, 2, 8), rngs=rngs)  # noqa: E731
    drawn, usual = functional(make).init(jax.random.key(3)), nnx.to_pure_dict(nnx.state(make(nnx.Rngs(3))))
    assert jax.tree.structure(drawn) == jax.tree.structure(usual)
    # one is drawn in one program, the other op by op, which may round otherwise
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), drawn, usual)


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
