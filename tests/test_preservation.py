"""How alike images stay, and how varied: against their definitions."""

import importlib.metadata
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console
from small_world import fields

import fairjax
from fairjax.adapters import bundle as bundles
from fairjax.config import Experiment, JudgesSection
from fairjax.evaluation.preservation import diversity, features, frechet, preserved, text_features
from fairjax.evaluation.run import evaluate
from fairjax.faces import reading
from fairjax.faces.judges import Semantics
from fairjax.faces.semantics import CLIP, DINOV2
from fairjax.models.functional import digest, functional
from fairjax.portraits import world
from fairjax.portraits.occupations import OCCUPATIONS
from fairjax.schema import load


class Projection(nnx.Module):
    """Embeds an image as a linear function of its pixels."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(8 * 8 * 3, 5, rngs=rngs)

    def __call__(self, images):
        return self.dense(images.reshape(len(images), -1))


def portrait(occupation, seed):
    """A drawing of somebody, no picture that a model has made."""
    rng = np.random.default_rng(seed)
    person = world.sample_individual(rng, world.sample_labels(rng, occupation, biased=False))
    return world.render(person, world.sample_scene(rng, occupation)).image


def drawn(seed, shape):
    rows = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_frechet_distance_of_gaussians():
    """Two isotropic Gaussians: |m1 - m2|^2 + d (s1 - s2)^2, up to the sampling error of 20,000 draws."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, (20_000, 4)), rng.normal(1, 2, (20_000, 4))
    assert frechet(first, second) == pytest.approx(4 + 4, rel=0.05)
    assert frechet(first, first) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_fewer_images_than_features():
    """Their covariances are singular: by hand, two images each that vary along one axis, or along another."""
    apart = lambda axis: np.eye(5)[axis] * np.array([[1.0], [-1.0]])  # variance 2  # noqa: E731
    assert frechet(apart(0), 2 * apart(0)) == pytest.approx((np.sqrt(8) - np.sqrt(2)) ** 2)
    assert frechet(apart(0), 2 * apart(1)) == pytest.approx(8 + 2)
    assert frechet(apart(0), apart(0) + 1) == pytest.approx(5)


def test_diversity_is_the_mean_over_prompts_and_classes():
    own, labels = drawn(0, (3, 6, 4)), np.random.default_rng(1).integers(-1, 2, (3, 6))
    pairs = [
        [1 - own[p, i] @ own[p, j] for i in range(6) for j in range(i) if labels[p, i] == labels[p, j] == label]
        for p in range(3)
        for label in (0, 1)
    ]
    means = [np.mean(each) for each in pairs if each]
    assert len(means) > 2 and diversity(own, labels) == pytest.approx(np.mean(means), rel=1e-5)
    assert diversity(np.repeat(own[:, :1], 6, axis=1), np.zeros((3, 6), int)) == pytest.approx(0, abs=1e-6)
    assert diversity(own, np.full((3, 6), -1)) is None  # nobody is seen


def test_diversity_is_of_classes_and_not_of_their_shares():
    """Of one class all are alike, of the other all differ: as many of each, or nine of ten of the one."""
    apart = np.eye(20)
    even = np.concatenate([apart[:10], np.tile(apart[19], (10, 1))])
    most = np.concatenate([apart[:2], np.tile(apart[19], (18, 1))])
    classes = np.arange(20)
    assert diversity(even[None], (classes >= 10)[None].astype(int)) == pytest.approx(0.5)
    assert diversity(most[None], (classes >= 2)[None].astype(int)) == pytest.approx(0.5)


def test_nothing_changes_where_nothing_changed_and_another_model_is_told_from_chance():
    own, other = drawn(0, (4, 50, 3)), drawn(1, (4, 50, 3))
    other[..., 0] = np.abs(other[..., 0])
    columns, prompts = {"before": own, "same": own, "changed": other}, drawn(2, (4, 3))
    found = preserved(columns, dict.fromkeys(columns, np.zeros((4, 50), int)), prompts)
    assert set(found["similarity"]) == set(found["frechet"]) == {"same", "changed"}  # the first has nothing before it
    assert found["similarity"]["same"] == pytest.approx(1)
    assert found["frechet"]["same"] == pytest.approx(found["frechet_floor"])
    assert found["diversity"]["before"] == found["diversity"]["same"]
    assert found["similarity"]["changed"] == pytest.approx(np.mean(np.sum(own * other, -1)), rel=1e-5)
    assert found["frechet"]["changed"] > 3 * found["frechet_floor"] > 0
    assert found["diversity"]["changed"] < found["diversity"]["before"]
    aligned = np.mean([other[p, n] @ prompts[p] for p in range(4) for n in range(50)])
    assert found["alignment"]["changed"] == pytest.approx(aligned, abs=1e-6)


def test_another_draw_of_the_same_model_is_as_far_as_chance_says():
    """Of as many images: small sets measure larger distances, so that halves are compared with halves."""
    none, ratios = dict.fromkeys(("before", "again"), np.full((12, 64), -1)), []
    for seed in range(5):
        found = preserved({"before": drawn(seed, (12, 64, 32)), "again": drawn(100 + seed, (12, 64, 32))}, none)
        ratios.append(found["frechet"]["again"] / found["frechet_floor"])
    assert np.mean(ratios) == pytest.approx(1, abs=0.1), ratios


def test_one_image_has_no_distance_and_no_diversity():
    own = drawn(0, (1, 1, 3))
    columns = {"before": own, "after": own}
    found = preserved(columns, dict.fromkeys(columns, np.zeros((1, 1), int)))
    assert found == {
        "similarity": {"after": pytest.approx(1)}, "diversity": {"before": None, "after": None},
        "frechet": {"after": None}, "frechet_floor": None,
    }  # fmt: skip


def test_embeddings_are_those_of_each_image_and_of_length_one():
    part = Semantics(functional(lambda rngs: Projection(rngs)), CLIP, 8)
    params = part.network.init(jax.random.key(0))
    images = np.random.default_rng(0).integers(0, 256, (3, 23, 8, 8, 3), np.uint8)  # no multiple of the devices
    found = features(part, params, images)
    wished = part.embed(params, jnp.asarray(images[2, 5:6], jnp.float32) / 127.5 - 1)[0]
    np.testing.assert_allclose(found[2, 5], wished / jnp.linalg.norm(wished), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, rtol=1e-5)


def test_the_embedded_clip_tells_which_prompt_a_picture_shows():
    """What is called CLIP-T: the shipped towers agree on who is drawn, so that the figure says something."""
    section = JudgesSection()
    (network,) = reading.evaluation_semantics(section).values()
    (tower,) = reading.text_towers(section).values()
    chosen = OCCUPATIONS[::9]
    prompts = [f"a photo of a {occupation.name}" for occupation in chosen]
    people = [[portrait(occupation, seed) for seed in range(4)] for occupation in chosen]
    images, texts = features(*network, np.array(people)), text_features(tower, prompts)
    similarity = np.einsum("pnd,qd->pnq", images, texts)
    assert (similarity.argmax(-1) == np.arange(len(chosen))[:, None]).mean() > 0.9
    np.testing.assert_allclose(np.linalg.norm(texts, axis=-1), 1, rtol=1e-5)


def test_an_evaluation_says_how_images_stay_by_clip_and_dinov2_each(small_world, models, tmp_path):
    """CLIP-I, DINO and CLIP-T are of the network that they are called by, and its weights are told."""
    clip = shutil.copytree(small_world / "image_semantics", tmp_path / "clip")
    config = load(Experiment, None, fields(small_world) | {
        "judges.semantics": (str(clip), str(models / "dinov2")), "output": str(tmp_path / "run"),
        "evaluation.subjects": 2, "evaluation.images_per_prompt": 4, "evaluation.num_steps": 2,
        "prompts.nobody": ("an empty room",),
    })  # fmt: skip
    pipeline = fairjax.Pipeline.from_pretrained(small_world)
    adapter = jax.tree.map(lambda leaf: leaf + 0.1, bundles.init(("unet",), pipeline.params, 2, 1, jax.random.key(0)))
    fairjax.save_adapter(adapter, pipeline, tmp_path / "adapter")
    results = evaluate(config, [tmp_path / "adapter"], Console(quiet=True))

    (clip_part, clip_params), (dino_part, dino_params) = reading.semantics_of(config.judges)
    (tower,) = reading.text_towers(config.judges).values()
    kept = {name: sorted((tmp_path / "run" / "samples").glob(f"{name}-0*.npz")) for name in ("before", "after")}
    images = {name: np.stack([np.load(path)["images"] for path in paths]) for name, paths in kept.items()}
    texts = text_features(tower, [entry["prompt"] for entry in results["per_prompt"]])
    for name, part, params in (("clip", clip_part, clip_params), ("dinov2", dino_part, dino_params)):
        before, after = (features(part, params, images[when]) for when in ("before", "after"))
        for kind, held_out in (("trained", False), ("held_out", True)):
            found = results["preservation"][name][kind]
            rows = [i for i, entry in enumerate(results["per_prompt"]) if entry["held_out"] == held_out]
            alike = np.sum(before[rows] * after[rows], axis=-1).mean()
            assert found["similarity"]["after"] == pytest.approx(alike, abs=1e-5) and alike < 0.9999
            if name == "clip":
                asked = np.einsum("pnd,pd->pn", after[rows], texts[rows]).mean()
                assert found["alignment"]["after"] == pytest.approx(asked, abs=1e-5)
            else:
                assert "alignment" not in found  # it knows no words
        of_nobody = np.sum(before[-1] * after[-1], axis=-1).mean()  # it is asked for last
        found = results["nobody"]["preservation"][name]["similarity"]["after"]
        assert found == pytest.approx(of_nobody, abs=1e-5) and of_nobody < 0.9999
    assert results["weights"] == {
        "model": pipeline.digest, "judge": digest(reading.evaluation_judge(config.judges)[1]),
        "clip": digest(clip_params), "clip, texts": digest(tower.params), "dinov2": digest(dino_params),
    }  # fmt: skip
    assert len(set(results["weights"].values())) == 5
    installed = {name: importlib.metadata.version(name) for name in ("jax", "flax", "numpy")}
    assert results["versions"] == installed | {"fairjax": fairjax.__version__}


def test_pictures_are_prepared_as_the_folder_of_a_network_says(models, tmp_path):
    """Where it says nothing, as for the networks that were published first; DINOv2 sees as large ones as CLIP."""
    clip = shutil.copytree(models / "clip", tmp_path / "clip")
    said = clip / "preprocessor_config.json"
    said.write_text(json.dumps({"image_mean": (0.1, 0.2, 0.3), "image_std": (0.4, 0.5, 0.6)}))
    section = JudgesSection(semantics=(str(clip), str(models / "dinov2")))
    own, dino = (part for part, _ in reading.semantics_of(section))
    assert own.statistics == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)) and dino[1:] == (DINOV2, 224)
    said.unlink()
    (usual, _), _ = reading.semantics_of(section)
    assert usual[1:] == (CLIP, 56) and own.image_size == 56  # what its configuration says


def test_a_network_of_another_kind_is_read_by_its_entry_alone(models, tmp_path, monkeypatch):
    """Of what its configuration says, CLIP's, which refuses this activation and these patches, is not asked."""
    folder = shutil.copytree(models / "dinov2", tmp_path / "other")
    fields = json.loads((folder / "config.json").read_text())
    said = fields | {"model_type": "other", "hidden_act": "gelu_pytorch_tanh", "image_size": 60, "side": 40}
    (folder / "config.json").write_text(json.dumps(said))

    def load(folder, dtype, *, weights):
        return reading.vision.load_dinov2(models / "dinov2", dtype, weights=weights)

    kind = reading._VISION["dinov2"]._replace(load=load, image_size=lambda fields: fields["side"])
    monkeypatch.setitem(reading._VISION, "other", kind)
    ((other, _),) = reading.semantics_of(JudgesSection(semantics=(str(folder),)))
    assert other[1:] == (DINOV2, 40)


def test_networks_of_one_name_are_told_apart_and_none_is_asked_twice(models, tmp_path):
    folders = [shutil.copytree(models / "dinov2", tmp_path / owner / "net") for owner in ("a", "b")]
    section = JudgesSection(semantics=(*map(str, folders), str(models / "clip")))
    assert list(reading.evaluation_semantics(section)) == [*map(str, folders), "clip"]
    again = JudgesSection(evaluation_semantics=(str(models / "clip"), f"{models}/clip/"))
    twice = f"^judges.evaluation_semantics names {models}/clip twice: each network should be named"
    with pytest.raises(ValueError, match=twice):
        reading.evaluation_semantics(again)
