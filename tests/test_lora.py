"""LoRA: merging is the low-rank branch, fresh adapters change nothing, targets are checked."""

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import scipy.stats
import torch

from fairjax.adapters import lora
from fairjax.models.functional import functional
from fairjax.models.unet import UNet2DConditionModel, UNetConfig


@pytest.fixture
def params():
    """A network of two linear layers, a 1x1 and a 3x3 convolution."""
    keys = jax.random.split(jax.random.key(0), 4)
    return {
        "layers": {
            0: {"proj": {"kernel": jax.random.normal(keys[0], (6, 4)), "bias": jnp.ones(4)}},
            1: {"proj": {"kernel": jax.random.normal(keys[1], (4, 5))}},
        },
        "mix": {"kernel": jax.random.normal(keys[2], (1, 1, 5, 5))},
        "conv": {"kernel": jax.random.normal(keys[3], (3, 3, 5, 5))},
    }


@pytest.fixture
def adapter(params):
    fresh = lora.init(params, 2, jax.random.key(1), [r"layers\.\d\.proj", "mix"])
    return jax.tree.map(lambda x: x + 0.1, fresh)


def test_targets_match_every_attention_projection_of_a_unet_and_nothing_else():
    config = UNetConfig(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=6,
    )
    network = functional(lambda rngs: UNet2DConditionModel(config, rngs=rngs))
    adapter = lora.init(network.abstract, 3, jax.random.key(0), lora.UNET_TARGETS)
    blocks = {path.rpartition(".attn")[0] for path in adapter}
    assert len(blocks) == 1 + 1 + 2  # one transformer down, one in the middle, two up
    assert set(adapter) == {f"{b}.attn{i}.to_{p}" for b in blocks for i in (1, 2) for p in ("q", "k", "v", "out.0")}
    for path, factors in adapter.items():
        inputs = 6 if "attn2.to_k" in path or "attn2.to_v" in path else 8
        assert factors["down"].shape == (inputs, 3) and factors["up"].shape == (3, 8)


def test_a_fresh_adapter_changes_nothing(params):
    fresh = lora.init(params, 2, jax.random.key(1), [".*proj"])
    jax.tree.map(np.testing.assert_array_equal, lora.merge(params, fresh), params)


def test_down_is_gaussian_with_deviation_one_over_rank():
    wide = {"a": {"kernel": jax.ShapeDtypeStruct((2000, 3), jnp.float32)}}
    down = lora.init(wide, 8, jax.random.key(0), ["a"])["a"]["down"]
    assert abs(float(down.mean())) < 4e-3 and float(down.std()) == pytest.approx(1 / 8, rel=0.03)


def test_a_fresh_adapter_is_distributed_as_pefts_gaussian_one():
    """`init_lora_weights="gaussian"`, which is what the paper's authors took; PEFT's default is another."""
    layer = torch.nn.Sequential(torch.nn.Linear(2000, 30, bias=False))
    torch.manual_seed(0)
    theirs = peft.get_peft_model(layer, peft.LoraConfig(r=8, target_modules=["0"], init_lora_weights="gaussian"))
    tensors = {name.split(".")[-3]: value.detach().numpy() for name, value in theirs.named_parameters()}
    shapes = {"a": {"kernel": jax.ShapeDtypeStruct((2000, 30), jnp.float32)}}
    ours = lora.init(shapes, 8, jax.random.key(0), ["a"])["a"]
    assert ours["down"].shape == tensors["lora_A"].T.shape and ours["up"].shape == tensors["lora_B"].T.shape
    assert (tensors["lora_B"] == 0).all() and (ours["up"] == 0).all()
    # Kolmogorov and Smirnov: below 1.63 / sqrt(n / 2) in 99 of 100 cases, where the distributions are the same
    distance = scipy.stats.ks_2samp(np.ravel(ours["down"]), tensors["lora_A"].ravel()).statistic
    assert distance < 1.63 / np.sqrt(2000 * 8 / 2)


def test_a_module_draws_the_same_whatever_else_is_adapted(params):
    some = lora.init(params, 2, jax.random.key(1), ["mix"])
    more = lora.init(params, 2, jax.random.key(1), [r"layers\.1\.proj", "mix"])
    np.testing.assert_array_equal(some["mix"]["down"], more["mix"]["down"])
    assert not np.allclose(more["mix"]["down"][:4], more["layers.1.proj"]["down"])


def test_merge_is_the_low_rank_branch_and_so_is_its_gradient(params, adapter):
    x = jax.random.normal(jax.random.key(2), (7, 6))

    def merged(adapter):
        p = lora.merge(params, adapter, 0.7)
        h = x @ p["layers"][0]["proj"]["kernel"]
        h = jnp.tanh(h) @ p["layers"][1]["proj"]["kernel"]
        return h @ p["mix"]["kernel"][0, 0]

    def branches(adapter):
        def layer(h, path, kernel):
            return h @ kernel + 0.7 * ((h @ adapter[path]["down"]) @ adapter[path]["up"])

        h = layer(x, "layers.0.proj", params["layers"][0]["proj"]["kernel"])
        h = layer(jnp.tanh(h), "layers.1.proj", params["layers"][1]["proj"]["kernel"])
        return layer(h, "mix", params["mix"]["kernel"][0, 0])

    np.testing.assert_allclose(merged(adapter), branches(adapter), atol=1e-5)  # float32 in another order
    ours, explicit = (jax.grad(lambda a, f=f: jnp.sum(f(a) ** 2))(adapter) for f in (merged, branches))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, explicit)


def test_merge_keeps_dtypes_and_what_is_not_adapted(params, adapter):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    merged = lora.merge(half, adapter)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(merged))
    np.testing.assert_array_equal(merged["conv"]["kernel"], half["conv"]["kernel"])
    np.testing.assert_array_equal(merged["layers"][0]["proj"]["bias"], half["layers"][0]["proj"]["bias"])


def test_a_target_that_matches_nothing_is_named(params):
    with pytest.raises(ValueError, match=r"LoRA target 'nowhere\.\*' matches none of the network's 4 layers"):
        lora.init(params, 2, jax.random.key(0), [".*proj", "nowhere.*"])


def test_wide_convolutions_and_ranks_below_one_are_refused(params):
    with pytest.raises(ValueError, match=r"only linear layers and 1x1 convolutions .* \(3, 3, 5, 5\)"):
        lora.init(params, 2, jax.random.key(0), ["conv"])
    with pytest.raises(ValueError, match="LoRA rank = 0 must be at least 1"):
        lora.init(params, 0, jax.random.key(0), ["mix"])


def test_an_adapter_of_another_network_is_refused(params, adapter):
    other = {**adapter, "head": adapter["mix"], "layers.1.proj": adapter["layers.0.proj"]}
    with pytest.raises(ValueError) as caught:
        lora.merge(params, other)
    assert str(caught.value).startswith("2 of 4 adapted layers do not fit: ")
    assert "layers.1.proj maps (4, 5) features, its adapter (6, 4)" in str(caught.value)
    assert "1 not in the network (head)" in str(caught.value)
