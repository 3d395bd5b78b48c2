"""Adapter files: diffusers loads ours, we load those of peft and older diffusers, outputs agree."""

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers import UNet2DConditionModel as TorchUNet
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fairjax.adapters import lora
from fairjax.convert import adapters, kohya, rules
from fairjax.models.functional import functional
from fairjax.models.unet import UNet2DConditionModel, UNetConfig

WIDTH, RANK = 8, 2
UNET = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": WIDTH,
}
TOKENS = torch.tensor([[0, 3, 4, 1]])
TARGETS = ["q_proj", "v_proj", "fc1"]


def make_text_encoder():
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=40, hidden_size=WIDTH, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return CLIPTextModel(config).eval()


def make_unet():
    torch.manual_seed(1)
    return TorchUNet(sample_size=8, **UNET).eval()


def tree(module, prefix=""):
    """A PyTorch module's weights as our nested dict, under the names of published files."""
    params = {}
    for name, tensor in module.state_dict().items():
        *path, leaf = (prefix + name).split(".")
        node = params
        for part in path:
            node = node.setdefault(int(part) if part.isdigit() else part, {})
        if leaf == "weight" and path[-1].endswith(("_proj", "fc1", "fc2")):
            node["kernel"] = jnp.asarray(tensor.numpy().T)
        else:
            node["embedding" if "embedding" in name else leaf] = jnp.asarray(tensor.numpy())
    return params


def encode(params, prefix=""):
    """The PyTorch text encoder's output with our parameters."""
    module = make_text_encoder()
    module.load_state_dict(
        {name.removeprefix(prefix): torch.tensor(array) for name, array in rules.to_torch(params).items()}
    )
    with torch.no_grad():
        return module(TOKENS).last_hidden_state.numpy()


def filled(params, targets, seed):
    """An adapter in which `up` is not zero."""
    fresh = lora.init(params, RANK, jax.random.key(seed), targets)
    return jax.tree.map(lambda leaf: leaf + 0.3 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), fresh)


@pytest.fixture(scope="module")
def text_params():
    return tree(make_text_encoder(), prefix="text_model.")


@pytest.fixture(scope="module")
def unet():
    return functional(lambda rngs: UNet2DConditionModel(UNetConfig(**UNET), rngs=rngs))


@pytest.fixture(scope="module")
def networks(text_params, unet):
    return {"text_encoder": text_params, "unet": unet.abstract}


@pytest.fixture
def loras(networks):
    return {
        "text_encoder": adapters.Lora(filled(networks["text_encoder"], lora.TEXT_ENCODER_TARGETS, 0), 1.5),
        "unet": adapters.Lora(filled(networks["unet"], lora.UNET_TARGETS, 1), 0.5),
    }


def unet_inputs():
    generator = torch.Generator().manual_seed(2)
    return (
        torch.randn(2, 4, 8, 8, generator=generator),
        torch.tensor([3, 700]),
        torch.randn(2, 5, WIDTH, generator=generator),
    )


def our_unet(unet, params):
    latents, timesteps, context = (jnp.asarray(x.numpy()) for x in unet_inputs())
    return np.asarray(unet.apply(params, latents.transpose(0, 2, 3, 1), timesteps, context)).transpose(0, 3, 1, 2)


def torch_unet(module):
    with torch.no_grad():
        return module(*unet_inputs()).sample.numpy()


def our_base(unet):
    return rules.from_torch(unet.abstract, {name: t.numpy() for name, t in make_unet().state_dict().items()})


def pipeline(text_encoder=None, tokenizer=None, unet=None):
    others = dict.fromkeys(("vae", "scheduler", "safety_checker", "feature_extractor"))
    return StableDiffusionPipeline(
        text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, requires_safety_checker=False, **others
    )


def assert_same(ours, theirs):
    assert set(ours) == set(theirs)
    for component in ours:
        assert ours[component].scale == pytest.approx(theirs[component].scale)
        assert set(ours[component].adapter) == set(theirs[component].adapter)
        jax.tree.map(np.testing.assert_array_equal, ours[component].adapter, theirs[component].adapter)


def test_saved_lora_loads_exactly(tmp_path, networks, loras):
    adapters.save_lora(tmp_path / adapters.LORA_FILE, networks, loras)
    assert_same(adapters.load_lora(tmp_path / adapters.LORA_FILE, networks), loras)
    assert_same(adapters.load_lora(tmp_path, networks), loras)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_diffusers_loads_our_file_and_computes_the_same(tmp_path, networks, loras, unet, scale):
    loras = {component: adapters.Lora(each.adapter, scale) for component, each in loras.items()}
    adapters.save_lora(tmp_path / adapters.LORA_FILE, networks, loras)
    pipe = pipeline(text_encoder=make_text_encoder(), unet=make_unet())
    before = torch_unet(pipe.unet)
    pipe.load_lora_weights(str(tmp_path))

    theirs = torch_unet(pipe.unet)
    assert np.abs(theirs - before).max() > 1e-2  # the adapter does something
    merged = lora.merge(our_base(unet), *loras["unet"])
    np.testing.assert_allclose(our_unet(unet, merged), theirs, atol=1e-5)
    with torch.no_grad():
        theirs = pipe.text_encoder(TOKENS).last_hidden_state.numpy()
    base = networks["text_encoder"]
    assert np.abs(theirs - encode(base, "text_model.")).max() > 1e-2
    np.testing.assert_allclose(encode(lora.merge(base, *loras["text_encoder"]), "text_model."), theirs, atol=1e-5)


def test_diffusers_honours_modules_of_other_ranks(tmp_path, networks, unet):
    adapter = filled(networks["unet"], lora.UNET_TARGETS, 1)
    first = next(iter(adapter))
    adapter[first] = {"down": adapter[first]["down"][:, :1], "up": adapter[first]["up"][:1]}
    adapters.save_lora(tmp_path / "x.safetensors", networks, {"unet": adapters.Lora(adapter, 0.5)})
    assert_same(adapters.load_lora(tmp_path / "x.safetensors", networks), {"unet": adapters.Lora(adapter, 0.5)})
    pipe = pipeline(unet=make_unet())
    pipe.load_lora_weights(str(tmp_path / "x.safetensors"))
    np.testing.assert_allclose(
        our_unet(unet, lora.merge(our_base(unet), adapter, 0.5)), torch_unet(pipe.unet), atol=1e-5
    )


def test_of_modules_of_any_ranks_diffusers_reads_kohyas_names_too(tmp_path, networks, loras, unet):
    """It takes the alpha of one module for another's, where they differ."""

    def fewer(adapter):
        ranks = {module: 1 + number % RANK for number, module in enumerate(sorted(adapter))}
        return {m: {"down": f["down"][:, : ranks[m]], "up": f["up"][: ranks[m]]} for m, f in adapter.items()}

    loras = {component: adapters.Lora(fewer(adapter), scale) for component, (adapter, scale) in loras.items()}
    adapters.save_lora(tmp_path / "x.safetensors", networks, loras, names="kohya")
    pipe = pipeline(text_encoder=make_text_encoder(), unet=make_unet())
    pipe.load_lora_weights(str(tmp_path / "x.safetensors"))
    read = adapters.load_lora(tmp_path / "x.safetensors", networks)
    for each in (loras, read):
        merged = lora.merge(our_base(unet), *each["unet"])
        np.testing.assert_allclose(our_unet(unet, merged), torch_unet(pipe.unet), atol=1e-5)
        with torch.no_grad():
            theirs = pipe.text_encoder(TOKENS).last_hidden_state.numpy()
        merged = lora.merge(networks["text_encoder"], *each["text_encoder"])
        np.testing.assert_allclose(encode(merged, "text_model."), theirs, atol=1e-5)


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_peft_folders_load_and_compute_the_same(tmp_path, networks, rank_stabilised):
    config = peft.LoraConfig(
        r=RANK, lora_alpha=6, use_rslora=rank_stabilised, init_lora_weights=False,
        alpha_pattern={"^encoder.layers.0.mlp.fc1": 1, "layers.1.mlp.fc2": 2, "mlp.fc2": 9},  # the first that fits
        target_modules=["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    )  # fmt: skip
    model = peft.get_peft_model(make_text_encoder(), config)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        theirs = model(input_ids=TOKENS).last_hidden_state.numpy()
    loaded = adapters.load_lora(tmp_path, networks)
    assert set(loaded) == {"text_encoder"} and len(loaded["text_encoder"].adapter) == 12
    merged = lora.merge(networks["text_encoder"], *loaded["text_encoder"])
    np.testing.assert_allclose(encode(merged, "text_model."), theirs, atol=1e-5)


def test_peft_adapters_of_a_unet_with_convolutions_compute_the_same(tmp_path, networks, unet):
    config = peft.LoraConfig(
        r=RANK, lora_alpha=3, init_lora_weights=False, target_modules=["to_q", "to_out.0", "proj_in"]
    )
    model = peft.get_peft_model(make_unet(), config)
    model.save_pretrained(tmp_path)
    loaded = adapters.load_lora(tmp_path, networks)
    merged = lora.merge(our_base(unet), *loaded["unet"])
    np.testing.assert_allclose(our_unet(unet, merged), torch_unet(model), atol=1e-5)

    adapters.save_lora(tmp_path / "again.safetensors", networks, loaded)
    assert_same(adapters.load_lora(tmp_path / "again.safetensors", networks), loaded)
    pipe = pipeline(unet=make_unet())
    pipe.load_lora_weights(str(tmp_path / "again.safetensors"))
    np.testing.assert_allclose(torch_unet(pipe.unet), torch_unet(model), atol=1e-5)


def test_networks_without_the_text_model_prefix_take_the_same_files(tmp_path, networks, loras):
    adapters.save_lora(tmp_path / "x.safetensors", networks, {"text_encoder": loras["text_encoder"]})
    bare = adapters.load_lora(tmp_path / "x.safetensors", {"text_encoder": networks["text_encoder"]["text_model"]})
    expected = {path.removeprefix("text_model."): f for path, f in loras["text_encoder"].adapter.items()}
    assert_same(bare, {"text_encoder": adapters.Lora(expected, 1.5)})


def old_names(loras, unet_name, text_name, prefixed):
    """Tensors as older versions of diffusers named them."""
    tensors = {}
    for component, (adapter, _) in loras.items():
        for module, factors in adapter.items():
            for factor in ("down", "up"):
                name = (unet_name if component == "unet" else text_name)(module, factor)
                tensors[f"{component}.{name}" if prefixed else name] = np.ascontiguousarray(
                    np.asarray(factors[factor]).T
                )
    return tensors


def processor(module, factor):
    parent, _, projection = module.removesuffix(".0").rpartition(".")
    return f"{parent}.processor.{projection}_lora.{factor}.weight"


def test_the_oldest_releases_wrote_pickles(tmp_path, networks, loras):
    """In folders and alone, and textual inversions as well."""
    loras = {"unet": adapters.Lora(loras["unet"].adapter, 1.0)}
    tensors = old_names(loras, lambda m, f: f"{m}.lora.{f}.weight", None, False)
    torch.save({name: torch.tensor(tensor) for name, tensor in tensors.items()}, tmp_path / "pytorch_lora_weights.bin")
    assert adapters.has_lora(tmp_path)
    for source in (tmp_path, tmp_path / "pytorch_lora_weights.bin"):
        assert_same(adapters.load_lora(source, networks), loras)
    vectors = torch.arange(16.0).reshape(2, 8)
    torch.save({"<cat>": vectors}, tmp_path / "learned_embeds.bin")
    file = adapters.embeddings_in(tmp_path)
    assert adapters.is_soft_prompt(file)
    token, soft = adapters.load_soft_prompt(file)
    assert token == "<cat>"
    np.testing.assert_array_equal(soft["embedding"], vectors.numpy())


@pytest.mark.parametrize("prefixed", [True, False])
@pytest.mark.parametrize(
    "unet_name",
    [
        processor,
        lambda m, f: f"{m}.lora.{f}.weight",
        lambda m, f: f"{m.replace('attn1.', 'attn1.processor.')}.lora.{f}.weight",
    ],
)
def test_older_diffusers_formats_load(tmp_path, networks, loras, unet_name, prefixed):
    loras = {component: adapters.Lora(each.adapter, 1.0) for component, each in loras.items()}
    tensors = old_names(loras, unet_name, lambda m, f: f"{m}.lora_linear_layer.{f}.weight", prefixed)
    save_file(tensors, tmp_path / "x.safetensors")
    assert_same(adapters.load_lora(tmp_path / "x.safetensors", networks), loras)


def test_the_oldest_text_encoder_names_load(networks, loras):
    def oldest(module, factor):
        attention, _, projection = module.rpartition(".")
        return f"{attention}.to_{projection.removesuffix('_proj')}_lora.{factor}.weight"

    adapter = {path: factors for path, factors in loras["text_encoder"].adapter.items() if "self_attn" in path}
    expected = {"text_encoder": adapters.Lora(adapter, 1.0)}
    assert_same(adapters.lora_from_torch(old_names(expected, None, oldest, True), networks, {}), expected)


def test_alphas_of_single_modules_are_folded_into_their_factors(networks, loras):
    adapter = loras["unet"].adapter
    tensors = old_names({"unet": (adapter, 1.0)}, lambda m, f: f"{m}.lora.{f}.weight", None, True)
    first, *others = adapter
    tensors[f"unet.{first}.alpha"] = np.float32(1.0)
    loaded = adapters.lora_from_torch(tensors, networks, {})["unet"]
    assert loaded.scale == 1.0
    np.testing.assert_allclose(loaded.adapter[first]["up"], adapter[first]["up"] / RANK)
    np.testing.assert_array_equal(loaded.adapter[others[0]]["up"], adapter[others[0]]["up"])


Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.clear(), "there are no LoRA weights in it"),
        (lambda t: t.pop(f"{Q}.lora.up.weight"), f"{Q} has no up factor"),
        (lambda t: t.update({f"{Q}.lora.up.weight": np.zeros((8, 5))}), f"{Q} has factors of rank 2 and 5"),
        (lambda t: t.update({"unet.x.weight": np.zeros(3)}), "unet.x.weight is not of a known LoRA format"),
        (lambda t: t.update({f"{Q}.lora.down.weight": np.zeros((2, 16))}),
         "made for another unet: 1 of 32 adapted layers do not fit: 1 misshapen "
         "(mid_block.attentions.0.transformer_blocks.0.attn1.to_q maps (8, 8) features, its adapter (16, 8)"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_says_why_in_one_line(tmp_path, networks, loras, change, message):
    tensors = old_names({"unet": loras["unet"]}, lambda m, f: f"{m}.lora.{f}.weight", None, True)
    change(tensors)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError) as caught:
        adapters.load_lora(tmp_path / "x.safetensors", networks)
    assert message in str(caught.value) and "x.safetensors: " in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "other",  # Stable Diffusion XL's second text encoder, the names of its UNet, and a deeper text encoder
    ["lora_te2_text_model_encoder_layers_0_mlp_fc1", "lora_unet_input_blocks_4_1_proj_in",
     "lora_te_text_model_encoder_layers_11_mlp_fc1"],
)  # fmt: skip
def test_a_file_of_kohyas_for_another_model_is_refused_as_one(tmp_path, networks, loras, other):
    adapters.save_lora(tmp_path / "x.safetensors", networks, loras, names="kohya")
    tensors = load_file(tmp_path / "x.safetensors")
    count = sum(name.endswith(".alpha") for name in tensors) + 1
    tensors |= {f"{other}.lora_down.weight": np.zeros((2, 8)), f"{other}.lora_up.weight": np.zeros((8, 2))}
    save_file(tensors, tmp_path / "y.safetensors")
    told = f"y.safetensors: made for another model: 1 of {count} adapted layers do not fit: 1 not in its networks"
    with pytest.raises(ValueError, match=rf"{told} \({other}\)$"):
        adapters.load_lora(tmp_path / "y.safetensors", networks)


def test_a_file_for_a_further_network_is_refused(tmp_path, networks, loras):
    adapters.save_lora(tmp_path / "x.safetensors", networks, loras)
    with pytest.raises(ValueError, match="x.safetensors: it adapts the unet too, which is not wanted here$"):
        adapters.load_lora(tmp_path / "x.safetensors", {"text_encoder": networks["text_encoder"]})


def test_files_that_are_missing_or_something_else_are_named(tmp_path, networks):
    with pytest.raises(FileNotFoundError, match=adapters.LORA_FILE):
        adapters.load_lora(tmp_path, networks)
    (tmp_path / "x.safetensors").write_text("hello, this is text")
    with pytest.raises(ValueError, match="x.safetensors is not a whole safetensors file"):
        adapters.load_soft_prompt(tmp_path / "x.safetensors")


def tiny_tokenizer():
    letters = "abcdefghijklmnop"
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *letters, *(f"{c}</w>" for c in letters)])}
    return CLIPTokenizer(
        vocab=vocabulary, merges=[], bos_token="<s>", eos_token="</s>", unk_token="</s>", pad_token="</s>"
    )


def test_diffusers_loads_our_soft_prompt_under_one_token(tmp_path):
    soft = {"embedding": np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)}
    adapters.save_soft_prompt(tmp_path / adapters.EMBEDDINGS_FILE, soft)
    token, loaded = adapters.load_soft_prompt(tmp_path / adapters.EMBEDDINGS_FILE)
    assert token == "<fair>"
    np.testing.assert_array_equal(loaded["embedding"], soft["embedding"])

    tokenizer, encoder = tiny_tokenizer(), make_text_encoder()
    encoder.resize_token_embeddings(len(tokenizer))
    pipe = pipeline(text_encoder=encoder, tokenizer=tokenizer)
    first = len(tokenizer)
    pipe.load_textual_inversion(str(tmp_path))
    ids = tokenizer(pipe.maybe_convert_prompt("<fair> a", tokenizer)).input_ids
    assert ids == [0, first, first + 1, first + 2, tokenizer.convert_tokens_to_ids("a</w>"), 1]
    rows = pipe.text_encoder.get_input_embeddings().weight[first : first + 3].detach().numpy()
    np.testing.assert_array_equal(rows, soft["embedding"])


def test_only_a_row_of_zeros_stands_for_other_words(tmp_path):
    """The first of the prefix that the authors released; of another's table of tokens it is a token."""
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    for first, tokens in ((rows[:1] + 1, 4), (np.zeros((1, 4), np.float32), 3)):
        table = np.concatenate([first, rows])
        torch.save({"token_embedding.weight": torch.tensor(table)}, tmp_path / "prefix.pth")
        _, soft = adapters.load_soft_prompt(tmp_path / "prefix.pth")
        np.testing.assert_array_equal(soft["embedding"], table[-tokens:])


def test_a_file_of_many_tensors_is_no_soft_prompt(tmp_path):
    save_file({"a": np.zeros(3), "b": np.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="this file holds 2"):
        adapters.load_soft_prompt(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "how", [{"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"alora_invocation_tokens": [3]}]
)
def test_what_peft_computes_otherwise_from_the_same_factors_is_refused(tmp_path, networks, how):
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, **how)
    peft.get_peft_model(make_text_encoder(), config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"its configuration: {next(iter(how))} = .* is not supported"):
        adapters.load_lora(tmp_path, networks)


def test_the_adapter_that_a_network_saves_by_itself_computes_the_same(tmp_path, networks, unet):
    module = make_unet()
    module.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=5, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    module.save_lora_adapter(tmp_path)
    merged = lora.merge(our_base(unet), *adapters.load_lora(tmp_path, networks)["unet"])
    np.testing.assert_allclose(our_unet(unet, merged), torch_unet(module), atol=1e-5)


@pytest.mark.parametrize("name", ["", "adapter_model.bin"])
def test_pickles_of_peft_have_their_configuration_too(tmp_path, networks, name):
    config = peft.LoraConfig(r=RANK, lora_alpha=7, init_lora_weights=False, target_modules=TARGETS)
    model = peft.get_peft_model(make_text_encoder(), config)
    model.save_pretrained(tmp_path, safe_serialization=False)
    with torch.no_grad():
        theirs = model(input_ids=TOKENS).last_hidden_state.numpy()
    merged = lora.merge(networks["text_encoder"], *adapters.load_lora(tmp_path / name, networks)["text_encoder"])
    np.testing.assert_allclose(encode(merged, "text_model."), theirs, atol=1e-5)


def test_several_adapters_in_one_file_are_refused(tmp_path, networks):
    module = make_unet()
    for name in ("a", "b"):
        module.add_adapter(peft.LoraConfig(r=RANK, target_modules=["to_q"]), adapter_name=name)
    tensors = {name: tensor.numpy() for name, tensor in module.state_dict().items() if "lora_" in name}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="is a second down of its layer"):
        adapters.load_lora(tmp_path / "x.safetensors", networks)


def test_alphas_of_kohya_may_be_whole_numbers(networks):
    module = "unet.mid_block.attentions.0.proj_in"
    tensors = {f"{module}.lora_A.weight": np.ones((4, 8)), f"{module}.lora_B.weight": np.ones((8, 4))}
    written = kohya.to_kohya(tensors, {"unet": 0.5})
    written = {name: tensor.astype(np.int64) if name.endswith("alpha") else tensor for name, tensor in written.items()}
    assert adapters.lora_from_torch(written, networks, {})["unet"].scale == 0.5


def test_patterns_are_matched_with_the_names_of_the_networks_layers_alone(tmp_path, networks, monkeypatch):
    """With a long name of somebody else's, a pattern with a gap takes the square of its length."""
    name = "unet" + ".x" * 40_000
    factors = {f"{name}.lora_{factor}.weight": np.zeros((1, 1), np.float32) for factor in "AB"}
    save_file(factors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"alpha_pattern": {"x.*y": 1}}')
    monkeypatch.setattr(adapters, "_scale", lambda *layer: pytest.fail("it was matched"))
    with pytest.raises(ValueError, match="1 of 1 adapted layers do not fit"):
        adapters.load_lora(tmp_path, networks)
