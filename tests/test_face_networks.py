"""The networks that look at faces and at what images mean, against PyTorch, and their files: at most 1e-4 apart."""

import pickle
import sys

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import save_file

from benchmarks.torch_networks import TorchMobileNetV3, TorchSFNet, nchw, randomised, relative, tensors
from fairjax.convert.pickles import read_bank, read_pickle, read_state_dict
from fairjax.convert.rules import from_torch, to_torch
from fairjax.convert.vision import load_clip_text, load_clip_vision, load_dinov2
from fairjax.faces.released import HEADS, load_classifier, load_face_embedding
from fairjax.models.clip import CLIPVisionConfig, CLIPVisionModel
from fairjax.models.dinov2 import Dinov2Config, Dinov2Model, bicubic
from fairjax.models.functional import functional, num_params
from fairjax.models.mobilenet import MobileNetV3, MobileNetV3Config
from fairjax.models.sfnet import SFNet, SFNetConfig

DINO = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "mlp_ratio": 3, "patch_size": 7}
CLIP = {"hidden_act": "gelu", "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 160}
H14 = {  # the vision part of laion/CLIP-ViT-H-14-laion2B-s32B-b79K's config.json
    "dropout": 0.0, "hidden_act": "gelu", "hidden_size": 1280, "intermediate_size": 5120, "patch_size": 14,
    "model_type": "clip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 32, "projection_dim": 1024,
}  # fmt: skip
DINOV2_BASE = {  # facebook/dinov2-base's
    "attention_probs_dropout_prob": 0.0, "drop_path_rate": 0.0, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
    "hidden_size": 768, "image_size": 518, "layer_norm_eps": 1e-06, "layerscale_value": 1.0, "mlp_ratio": 4,
    "num_attention_heads": 12, "num_channels": 3, "num_hidden_layers": 12, "patch_size": 14, "qkv_bias": True,
    "use_swiglu_ffn": False,
}  # fmt: skip
# Those that the paper measures with: laion/CLIP-ViT-bigG-14-laion2B-39B-b160k and facebook/dinov2-giant.
BIG_G = H14 | {
    "hidden_size": 1664, "intermediate_size": 8192, "num_hidden_layers": 48, "projection_dim": 1280,
}  # fmt: skip
DINOV2_GIANT = DINOV2_BASE | {
    "hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "use_swiglu_ffn": True,
}  # fmt: skip


def images_of(height, width, n=2):
    return np.random.default_rng(0).normal(size=(n, height, width, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    """A network that learned on 28 px (a grid of 4 x 4), and its folder as the hub has it."""
    theirs = randomised(transformers.Dinov2Model(transformers.Dinov2Config(image_size=28, **DINO)))
    folder = tmp_path_factory.mktemp("dinov2")
    theirs.save_pretrained(folder)
    return theirs, *load_dinov2(folder)


SIZES = {"its own": (28, 28), "down": (14, 14), "up": (63, 63), "not square": (21, 42), "cut off": (30, 29)}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_dinov2_at_any_size_of_image(dinov2, size):
    theirs, network, params = dinov2
    images = images_of(*size)
    with torch.no_grad():
        expected = theirs(nchw(images))
    assert relative(network.apply(params, images, method="hidden_states"), expected.last_hidden_state.numpy()) <= 1e-4
    assert relative(network.apply(params, images), expected.pooler_output.numpy()) <= 1e-4


@pytest.mark.parametrize(("size", "new"), [(37, 16), (16, 37), (4, 9), (1, 3)])
def test_positions_are_interpolated_as_pytorch_does_it(size, new):
    """37 and 16 are the patches of 518 and of 224 px."""
    line = np.random.default_rng(0).normal(size=size)
    torch_line = torch.tensor(line)[None, None, :, None].expand(1, 1, size, 4)
    expected = torch.nn.functional.interpolate(torch_line, (new, 4), mode="bicubic")[0, 0, :, 1].numpy()
    np.testing.assert_allclose(bicubic(size, new) @ line, expected, atol=1e-12)


def test_a_layer_of_dinov2_base_at_its_real_geometry(tmp_path):
    """768 wide with 12 heads; learned on 518 px, shown 224: positions go from a grid of 37 to one of 16."""
    theirs = randomised(transformers.Dinov2Model(transformers.Dinov2Config(**DINOV2_BASE | {"num_hidden_layers": 1})))
    theirs.save_pretrained(tmp_path)
    network, params = load_dinov2(tmp_path)
    images = images_of(224, 224, 1)
    with torch.no_grad():
        expected = theirs(nchw(images)).last_hidden_state.numpy()
    assert expected.shape == (1, 257, 768)
    states = jax.jit(network.apply, static_argnames="method")(params, images, method="hidden_states")
    assert relative(states, expected) <= 1e-4


def test_dinov2_with_a_gated_mlp(tmp_path):
    """ViT-g/14's: two thirds of 81 inner channels, brought to a multiple of 8, are 56."""
    config = transformers.Dinov2Config(**DINO | {"image_size": 28, "hidden_size": 27, "use_swiglu_ffn": True})
    theirs = randomised(transformers.Dinov2Model(config))
    theirs.save_pretrained(tmp_path)
    network, params = load_dinov2(tmp_path)
    with torch.no_grad():
        expected = theirs(nchw(images_of(28, 28))).pooler_output.numpy()
    assert relative(network.apply(params, images_of(28, 28)), expected) <= 1e-4


@pytest.mark.parametrize(("kind", "dimensions"), [(H14, 1024), (BIG_G, 1280)], ids=["H/14", "bigG/14"])
def test_a_layer_of_clip_at_its_real_geometry(kind, dimensions, tmp_path):
    """1280 and 1664 wide with 16 heads, 224 px in patches of 14, the exact gelu, projected."""
    config = transformers.CLIPVisionConfig(**kind | {"num_hidden_layers": 1})
    theirs = randomised(transformers.CLIPVisionModelWithProjection(config))
    theirs.save_pretrained(tmp_path)
    network, params = load_clip_vision(tmp_path)
    images = images_of(224, 224, 1)
    with torch.no_grad():
        expected = theirs(nchw(images)).image_embeds.numpy()
    assert expected.shape == (1, dimensions) and config.image_size == 224
    assert relative(jax.jit(network.apply)(params, images), expected) <= 1e-4


@pytest.mark.parametrize(
    ("dino_fields", "dino_size", "clip_fields", "clip_size"),
    [(DINOV2_BASE, 86_579_712, H14, 632_076_800), (DINOV2_GIANT, 1_136_479_232, BIG_G, 1_844_907_264)],
    ids=["that are listened to", "that the paper measures with"],
)
def test_dinov2_and_clip_have_their_sizes(dino_fields, dino_size, clip_fields, clip_size):
    """As PyTorch has them, without allocating any."""
    dino = functional(lambda rngs: Dinov2Model(Dinov2Config.from_dict(dino_fields), rngs=rngs)).abstract
    clip = functional(lambda rngs: CLIPVisionModel(CLIPVisionConfig.from_dict(clip_fields), rngs=rngs)).abstract
    with torch.device("meta"):
        torch_dino = transformers.Dinov2Model(transformers.Dinov2Config(**dino_fields))
        torch_clip = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**clip_fields))
    mask_token = dino_fields["hidden_size"]  # of pretraining, which fairjax does not do
    assert num_params(dino) == torch_dino.num_parameters() - mask_token == dino_size
    assert num_params(clip) == torch_clip.num_parameters() == clip_size


def test_the_two_towers_of_a_clip_are_read_apart(tmp_path):
    """Patches of 14, heads of 80 and gelu, as in ViT-H/14."""
    vision = transformers.CLIPVisionConfig(image_size=42, patch_size=14, intermediate_size=96, **CLIP)
    text = transformers.CLIPTextConfig(vocab_size=50, max_position_embeddings=8, intermediate_size=96, **CLIP)
    both = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
    theirs = randomised(transformers.CLIPModel(both))
    theirs.save_pretrained(tmp_path)
    network, params = load_clip_vision(tmp_path)
    images = images_of(42, 42)
    with torch.no_grad():
        expected = theirs.visual_projection(theirs.vision_model(nchw(images)).pooler_output).numpy()
    assert expected.shape == (2, 24)
    assert relative(network.apply(params, images), expected) <= 1e-4
    network, params, config = load_clip_text(tmp_path)
    ids = np.random.default_rng(0).integers(3, 49, (3, 8)).astype(np.int32)
    ids[np.arange(3), [2, 7, 4]] = 49  # where each text ends
    with torch.no_grad():
        hidden = theirs.text_model(torch.from_numpy(ids).long()).pooler_output
        expected = theirs.text_projection(hidden).numpy()
    assert config.projection_dim == 24 and expected.shape == (3, 24)
    assert relative(network.apply(params, ids), expected) <= 1e-4


def test_a_vision_tower_alone_is_read_too_and_gives_gradients(tmp_path):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    vision = transformers.CLIPVisionConfig(image_size=8, patch_size=4, hidden_act="gelu", projection_dim=8, **small)
    theirs = randomised(transformers.CLIPVisionModelWithProjection(vision))
    theirs.save_pretrained(tmp_path)
    network, params = load_clip_vision(tmp_path)
    images = images_of(8, 8)
    torch_images = nchw(images).requires_grad_()
    theirs(torch_images).image_embeds.square().sum().backward()
    gradient = jax.grad(lambda images: (network.apply(params, images) ** 2).sum())(images)
    assert relative(gradient, torch_images.grad.permute(0, 2, 3, 1).numpy()) <= 1e-4


def test_the_face_embedding_of_a_file_of_data_parallel(tmp_path):
    config = SFNetConfig((1, 2, 4, 1), (8, 12, 16, 20), 24, 48)
    theirs = TorchSFNet(config.layers, config.channels, config.out_channel, config.image_size)
    torch.save(torch.nn.DataParallel(theirs).state_dict(), tmp_path / "backbone.pth")
    network, params = load_face_embedding(tmp_path / "backbone.pth", config)
    faces = np.random.default_rng(0).uniform(-1, 1, (3, 48, 48, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(nchw(faces)).numpy()
    assert relative(network.apply(params, faces), expected) <= 1e-4
    with pytest.raises(ValueError, match=r"backbone\.pth: .*expected"):
        load_face_embedding(tmp_path / "backbone.pth")


def test_sfnet20_has_twenty_convolutions_and_pytorchs_names():
    with torch.device("meta"):
        theirs = TorchSFNet((1, 2, 4, 1), (64, 128, 256, 512), 512, 112)
    abstract = functional(lambda rngs: SFNet(SFNetConfig(), rngs=rngs)).abstract
    zeros = to_torch(jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract))
    assert {name: t.shape for name, t in zeros.items()} == {n: tuple(t.shape) for n, t in theirs.state_dict().items()}
    assert sum(tensor.ndim == 4 for tensor in zeros.values()) == 20
    assert num_params(abstract) == 24_500_992


@pytest.fixture(scope="module")
def mobilenet():
    """PyTorch's MobileNetV3-Large with 80 logits, whose last layer the tests cut."""
    torch.manual_seed(0)
    theirs = TorchMobileNetV3(80)
    for name, buffer in theirs.named_buffers():
        if name.endswith("running_var"):
            buffer.data = torch.rand_like(buffer) + 0.5
    theirs.classifier[3].weight.data *= 20
    images = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        logits = theirs.eval()(nchw(images)).numpy()
    return theirs.state_dict(), images, logits


def saved(state, rows, path):
    last = {f"classifier.3.{end}": state[f"classifier.3.{end}"][rows] for end in ("weight", "bias")}
    torch.save(state | last, path)
    return path


def test_the_papers_classifier_of_gender_race_and_age(mobilenet, tmp_path):
    state, images, logits = mobilenet
    classifier, params = load_classifier(saved(state, slice(0, 8), tmp_path / "c.pt"))
    found = jax.jit(classifier.logits)(params, images)
    for name, columns in {"gender": slice(0, 2), "race": slice(2, 6), "age": slice(6, 8)}.items():
        assert relative(found[name], logits[:, columns]) <= 1e-4
    assert classifier.heads["gender"] == ("female", "male")


@pytest.mark.parametrize(
    ("rows", "heads", "kept"),
    [
        (slice(0, 6), ("gender", "race"), slice(0, 6)),
        (slice(0, 80), ("gender",), slice(40, 42)),  # of CelebA: attribute 20 of 40
        (slice(4, 8), ("race",), slice(4, 8)),
        (slice(4, 6), ("age",), slice(4, 6)),
    ],
)
def test_the_papers_other_classifiers_have_their_heads(mobilenet, tmp_path, rows, heads, kept):
    state = mobilenet[0]
    classifier, params = load_classifier(saved(state, rows, tmp_path / "c.pt"), heads)
    assert classifier.heads == {name: HEADS[name] for name in heads}
    last = to_torch(params["classifier"])
    for end in ("weight", "bias"):
        np.testing.assert_array_equal(last[f"3.{end}"], state[f"classifier.3.{end}"][kept])


def test_heads_that_a_classifier_does_not_have_are_one_line(mobilenet, tmp_path):
    path = saved(mobilenet[0], slice(0, 8), tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"c\.pt has 8 logits, and the heads gender have 2"):
        load_classifier(path, ("gender",))
    with pytest.raises(ValueError, match="no head 'hair'; known are gender, race, age"):
        load_classifier(path, ("hair",))
    torch.save({"classifier.3.bias": torch.zeros(8)}, path)
    with pytest.raises(ValueError, match=r"c\.pt: \d+ tensors do not fit: \d+ missing \(classifier.0.bias"):
        load_classifier(path)


def test_mobilenet_reads_pytorchs_names_for_any_number_of_outputs(mobilenet):
    for outputs in (1, 80):
        abstract = functional(lambda rngs, n=outputs: MobileNetV3(MobileNetV3Config.large(n), rngs=rngs)).abstract
        ours = to_torch(jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract))
        theirs = {name for name in mobilenet[0] if not name.endswith("num_batches_tracked")}
        assert ours.keys() == theirs and ours["classifier.3.weight"].shape == (outputs, 1280)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["torch.save", "pickle"])
def test_a_malicious_pickle_is_one_line_and_runs_nothing(tmp_path, kind):
    path, trace = tmp_path / "weights.pt", tmp_path / "trace"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Malicious(trace)))
    else:
        torch.save({"weight": Malicious(trace)}, path)
    reason = f"it would run {open.__module__}.open"  # io, and _io from Python 3.12 on
    for read in (read_pickle, read_state_dict, read_bank, load_classifier, load_face_embedding):
        with pytest.raises(ValueError, match=rf"weights\.pt was not read: {reason}") as error:
            read(path)
        assert "\n" not in str(error.value)
    assert not trace.exists()


def test_without_pytorch_and_with_damaged_files_there_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "weights.pt"
    with pytest.raises(FileNotFoundError, match=r"weights\.pt does not exist"):
        read_state_dict(path)
    for content in (b"", b"PK\x03\x04", b"nonsense", b"\x80\x04N."):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"weights\.pt") as error:
            read_state_dict(path)
        assert "\n" not in str(error.value)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds no state dict"):
        read_state_dict(path)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch"):
        read_state_dict(path)


def test_half_precision_weights_are_read_as_float32(tmp_path):
    torch.save({"module.a": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "w.pt")
    found = read_state_dict(tmp_path / "w.pt")
    assert found["a"].dtype == np.float32 and found.keys() == {"a"}


def test_a_bank_of_faces_in_every_format(tmp_path):
    rng = np.random.default_rng(0)
    embeddings, genders, races = rng.normal(size=(5, 4)).astype(np.float32), np.arange(5) % 2, np.arange(5) % 4
    named = {"embeddings": embeddings, "gender": genders, "race": races}
    np.save(tmp_path / "bank.npy", embeddings)
    np.savez(tmp_path / "bank.npz", **named)
    save_file(named, tmp_path / "bank.safetensors")
    as_torch = [torch.tensor(value) for value in named.values()]
    logits = torch.zeros(5, 2)
    whole = (as_torch[0], as_torch[1], logits, as_torch[2], logits)
    (tmp_path / "bank.pkl").write_bytes(pickle.dumps(whole))  # as the authors wrote theirs
    torch.save(whole, tmp_path / "bank.pth")
    torch.save((as_torch[0], as_torch[1].tolist(), logits), tmp_path / "bank.pt")
    names = {"npy": named.keys() - {"gender", "race"}, "pt": named.keys() - {"race"}}
    for end in ("npy", "npz", "safetensors", "pkl", "pth", "pt"):
        bank = read_bank(tmp_path / f"bank.{end}")
        assert bank.keys() == names.get(end, named.keys())
        for name, value in bank.items():
            np.testing.assert_array_equal(value, named[name])
            assert value.dtype == (np.float32 if name == "embeddings" else np.int32)


def test_a_bank_that_is_none_is_one_line(tmp_path):
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "short.npz", embeddings=np.zeros((3, 2)), gender=np.zeros(2, int))
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps((np.zeros((2, 3)), [0, 1], None)))
    (tmp_path / "bank.csv").write_text("1,2")
    for name, problem in {
        "pickled.npy": "is no bank of faces: .*objects",
        "short.npz": "should have embeddings",
        "plain.pkl": "was not read",
        "bank.csv": "a bank of faces is",
        "none.npy": "does not exist",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=problem) as error:
            read_bank(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("hidden_dropout_prob", 0.1), ("hidden_act", "quick_gelu"), ("image_size", [224, 196]), ("drop_path_rate", 0.1)],
)
def test_a_field_of_dinov2_that_is_not_computed_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} = .* is not supported"):
        Dinov2Config.from_dict({field: value})


def test_dinov2_round_trips_but_for_the_token_of_pretraining(dinov2):
    _, network, params = dinov2
    again = from_torch(network.abstract, to_torch(params))
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert "embeddings.cls_token" in to_torch(params) and tensors(dinov2[0])["embeddings.cls_token"].shape == (1, 1, 24)
