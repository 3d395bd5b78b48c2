"""`python -m fairjax.convert`: what diffusers draws with what it writes is what fairjax draws, and files come back."""

import ast
import dataclasses
import json
import pickle
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import yaml
from diffusers import DPMSolverMultistepScheduler, PNDMScheduler, StableDiffusionPipeline
from running import full_disk
from safetensors.numpy import load_file, save_file

from benchmarks.torch_networks import nchw
from fairjax import schema
from fairjax.adapters import bundle as bundles
from fairjax.config import Experiment
from fairjax.convert import adapters, cards, kohya
from fairjax.convert.__main__ import main
from fairjax.convert.bundles import load_adapter, save_adapter, save_pipeline
from fairjax.hub import find
from fairjax.pipeline import Pipeline, image_keys

pytestmark = pytest.mark.usefixtures("read_once")

PROMPTS, STEPS, SEED = ["a portrait of a pilot", "a nurse at work"], 3, 3
KINDS = {
    "text encoder": ("text_encoder",),
    "unet": ("unet",),
    "both": ("text_encoder", "unet"),
    "soft tokens": ("soft_prompt",),
    "all": ("text_encoder", "unet", "soft_prompt"),
}


@pytest.fixture(scope="module")
def pipeline(read_once):
    return Pipeline.from_pretrained("portraits")


@pytest.fixture(scope="module")
def bundle(pipeline):
    """Adapters of every kind that change the images."""
    fresh = bundles.init(bundles.KINDS, pipeline.params, 4, 3, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: np.asarray(leaf + 0.03 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape)), fresh
    )


@pytest.fixture(scope="module")
def run(bundle, pipeline, tmp_path_factory):
    """(kinds) -> the folder of a run that left an adapter of these kinds."""

    def made(kinds):
        folder = tmp_path_factory.mktemp("run")
        save_adapter({kind: bundle[kind] for kind in kinds}, pipeline, folder / "adapter")
        (folder / "config.yaml").write_text(schema.dump(Experiment(adapter={"kinds": kinds})))
        return folder

    return made


def by_us(pipeline, bundle):
    made = pipeline.generate(PROMPTS, bundle=bundle, seed=SEED, num_steps=STEPS, guidance_scale=2.0)
    return made[:, 0].astype(int)


@pytest.fixture(scope="module")
def frozen(pipeline):
    """What is drawn without an adapter."""
    return by_us(pipeline, {})


def by_diffusers(pipe, pipeline, prefix):
    """The same images, from fairjax's noise."""
    noise = nchw(np.array(pipeline.noise(image_keys(jax.random.key(SEED), jnp.array([[0, 0], [1, 0]])))))
    pipe.set_progress_bar_config(disable=True)
    prompts = [prefix + prompt for prompt in PROMPTS]
    made = pipe(prompts, latents=noise, num_inference_steps=STEPS, guidance_scale=2.0, output_type="np").images
    return np.round(made * 255)


def base():
    return StableDiffusionPipeline.from_pretrained(find("portraits"), dtype=torch.float32)


def same(first, second):
    assert first.keys() == second.keys()
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_diffusers_draws_the_same_with_the_adapter_and_with_the_merged_pipeline(
    kinds, run, bundle, pipeline, frozen, tmp_path
):
    """At most 1e-3 of the range of pixels apart on average, both rounded to bytes."""
    folder, chosen = run(kinds), {kind: bundle[kind] for kind in kinds}
    ours = by_us(pipeline, chosen)
    assert np.abs(ours - frozen).mean() > 2  # of 255: the adapter does something
    prefix = "<fair> " if "soft_prompt" in kinds else ""

    assert main([str(folder), "--output", str(tmp_path / "files")]) == 0
    pipe = base()
    if set(kinds) & {"text_encoder", "unet"}:
        pipe.load_lora_weights(str(tmp_path / "files"))
    if prefix:
        pipe.load_textual_inversion(str(tmp_path / "files"), weight_name=adapters.EMBEDDINGS_FILE, token="<fair>")
    assert np.abs(by_diffusers(pipe, pipeline, prefix) - ours).mean() / 255 <= 1e-3

    assert main([str(folder), "--to", "pipeline", "--output", str(tmp_path / "whole")]) == 0
    whole = StableDiffusionPipeline.from_pretrained(tmp_path / "whole")
    assert isinstance(whole.scheduler, DPMSolverMultistepScheduler)
    assert np.abs(by_diffusers(whole, pipeline, prefix) - ours).mean() / 255 <= 1e-3


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_fairjax_reads_the_merged_pipeline_back_in_either_precision(dtype, run, bundle, pipeline, tmp_path):
    kinds = KINDS["both"]
    assert main([str(run(kinds)), "--to", "pipeline", "--dtype", dtype, "--output", str(tmp_path / "whole")]) == 0
    merged = bundles.merge(pipeline.params, {kind: bundle[kind] for kind in kinds})
    expected = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype).astype(np.float32), merged)
    whole = Pipeline.from_pretrained(tmp_path / "whole")
    same(whole.params, expected)
    assert whole.guidance_scale == pipeline.guidance_scale == 1  # else `generate` would draw something else
    written = {
        tensor.dtype for path in (tmp_path / "whole").rglob("*.safetensors") for tensor in load_file(path).values()
    }
    assert written == {np.dtype(dtype)}


def test_soft_tokens_are_the_words_that_the_tokenizer_makes_of_them(bundle, pipeline, tmp_path):
    """Where the table of words is longer than the tokenizer, as some pad it, too; and no others' are lost."""
    soft = {"soft_prompt": bundle["soft_prompt"]}
    padded = tmp_path / "padded"
    save_pipeline({}, pipeline, padded)
    weights = load_file(padded / "text_encoder" / "model.safetensors")
    (name,) = (name for name in weights if "token_embedding" in name)
    weights[name] = np.pad(weights[name], ((0, 17), (0, 0)))
    save_file(weights, padded / "text_encoder" / "model.safetensors")
    config = json.loads((padded / "text_encoder" / "config.json").read_text())
    config["vocab_size"] = len(weights[name])
    (padded / "text_encoder" / "config.json").write_text(json.dumps(config))

    wider = Pipeline.from_pretrained(padded)
    save_pipeline(soft, wider, tmp_path / "whole")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "whole")
    words = pipe.tokenizer("<fair> <fair>_1 <fair>_2 a pilot", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        theirs = pipe.text_encoder(words)[0].numpy()
    ours = pipeline.encode(pipeline.params, soft, pipeline.token_ids(["a pilot"], soft))
    np.testing.assert_allclose(theirs, np.asarray(ours), atol=2e-5)
    with pytest.raises(ValueError, match="has soft tokens of its own already, <fair>, which"):
        save_pipeline(soft, Pipeline.from_pretrained(tmp_path / "whole"), tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


def test_of_a_pipeline_with_a_safety_checker_the_index_names_what_is_written(pipeline, tmp_path):
    """diffusers reads every part that an index names, and Stable Diffusion's names two more than are written."""
    source = tmp_path / "source"
    shutil.copytree(find("portraits"), source, ignore=shutil.ignore_patterns("*.safetensors"))
    pipeline = dataclasses.replace(pipeline, folder=source)
    theirs = {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    (source / "model_index.json").write_text(json.dumps(theirs))
    save_pipeline({}, pipeline, tmp_path / "with")
    whole = StableDiffusionPipeline.from_pretrained(tmp_path / "with")
    assert whole.safety_checker is whole.feature_extractor is None and not whole.config.requires_safety_checker
    assert isinstance(whole.scheduler, PNDMScheduler)  # the one that the source has

    (source / "model_index.json").unlink()  # fairjax reads a folder without one, diffusers does not
    save_pipeline({}, pipeline, tmp_path / "without")
    whole = StableDiffusionPipeline.from_pretrained(tmp_path / "without")
    assert isinstance(whole.scheduler, DPMSolverMultistepScheduler)


def test_diffusers_importer_reads_kohyas_names(run, bundle, pipeline, tmp_path):
    kinds = KINDS["both"]
    assert main([str(run(kinds)), "--to", "kohya", "--output", str(tmp_path / "fair.safetensors")]) == 0
    names = load_file(tmp_path / "fair.safetensors")
    first = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    assert {f"{first}.lora_down.weight", f"{first}.lora_up.weight", f"{first}.alpha"} <= set(names)
    pipe = base()
    pipe.load_lora_weights(str(tmp_path / "fair.safetensors"))
    chosen = {kind: bundle[kind] for kind in kinds}
    assert np.abs(by_diffusers(pipe, pipeline, "") - by_us(pipeline, chosen)).mean() / 255 <= 1e-3


def test_every_format_comes_back_as_it_was(run, bundle, pipeline, tmp_path):
    folder = run(KINDS["all"])
    same(load_adapter(folder, pipeline), bundle)
    assert main([str(folder), "--output", str(tmp_path / "files")]) == 0
    same(load_adapter(tmp_path / "files", pipeline), bundle)
    same(load_adapter(tmp_path / "files" / adapters.EMBEDDINGS_FILE, pipeline), {"soft_prompt": bundle["soft_prompt"]})
    loras = {kind: bundle[kind] for kind in KINDS["both"]}
    assert main([str(run(KINDS["both"])), "--to", "kohya", "--output", str(tmp_path / "k.safetensors")]) == 0
    same(load_adapter(tmp_path / "k.safetensors", pipeline), loras)


@pytest.mark.parametrize("names", ["diffusers", "kohya"])
def test_what_alpha_says_of_the_change_is_in_the_adapter_that_is_read(names, bundle, pipeline, tmp_path):
    """A file of somebody else's, whose alpha is half its rank: a bundle has no scale beside its factors."""
    networks = {"unet": pipeline.params["unet"]}
    adapters.save_lora(tmp_path / "half.safetensors", networks, {"unet": adapters.Lora(bundle["unet"], 0.5)}, names)
    found = load_adapter(tmp_path / "half.safetensors", pipeline)["unet"]
    for module, factors in bundle["unet"].items():
        change = found[module]["down"] @ found[module]["up"]
        np.testing.assert_allclose(change, 0.5 * factors["down"] @ factors["up"], atol=1e-6)


def test_an_alpha_of_kohyas_scales_the_change():
    tensors = {"unet.a.to_q.lora_A.weight": np.ones((4, 8)), "unet.a.to_q.lora_B.weight": np.ones((8, 4))}
    written = kohya.to_kohya(tensors, {"unet": 0.5})
    assert written["lora_unet_a_to_q.alpha"] == 2  # half of the rank
    networks = {"unet": {"a": {"to_q": {"kernel": np.zeros((8, 8))}}}}
    assert set(kohya.from_kohya(written, networks)) == {*tensors, "unet.a.to_q.alpha"}
    (found,) = adapters.lora_from_torch(written, networks, {}).values()
    assert found.scale == 0.5


def released(bundle, folder):
    """What the paper's authors released: state dicts of diffusers 0.19's modules."""
    text, unet = {}, {}
    for module, factors in bundle["text_encoder"].items():
        for name, factor in factors.items():
            text[f"{module}.lora_linear_layer.{name}.weight"] = torch.tensor(np.asarray(factor).T)
    for module, factors in bundle["unet"].items():
        parent, _, projection = module.removesuffix(".0").rpartition(".")
        for name, factor in factors.items():
            unet[f"{parent}.processor.{projection}_lora.{name}.weight"] = torch.tensor(np.asarray(factor).T)
    soft = torch.tensor(np.concatenate([np.zeros((1, 128), np.float32), bundle["soft_prompt"]["embedding"]]))
    prefix = {"token_embedding.weight": soft, "position_embedding.weight": torch.zeros(32, 128)}
    prefix["position_ids"] = torch.arange(32)[None]  # a buffer, of int64
    for name, tensors in (("text_encoder_lora_EMA", text), ("unet_lora_EMA", unet), ("prefix_embedding_EMA", prefix)):
        torch.save(tensors, folder / f"{name}.pth")
    return [folder / f"{name}.pth" for name in ("text_encoder_lora_EMA", "unet_lora_EMA", "prefix_embedding_EMA")]


def test_the_authors_adapters_are_read_as_one(bundle, pipeline, tmp_path):
    files = released(bundle, tmp_path)
    assert main([*map(str, files), "--model", "portraits", "--output", str(tmp_path / "files")]) == 0
    same(load_adapter(tmp_path / "files", pipeline), bundle)
    card = (tmp_path / "files" / "README.md").read_text()
    assert header(card)["base_model"] == "portraits" and "# A fairer portraits\n" in card
    assert "Which distribution, its maker has to say." in card  # the files do not


RESULTS = {
    "before": {"trained": {"gender": {"bias": 0.6, "bias_interval": [0.5, 0.7]}}},
    "after": {"trained": {"gender": {"bias": 0.25, "bias_interval": [0.2, 0.31]}}},
    "fair_floor": {"gender": 0.1}, "paired": [{"of": "gender", "measure": "bias"}], "per_prompt": [{}] * 8,
    "images_per_prompt": 64, "evaluation_seed": 1, "num_steps": 12, "guidance_scale": 1.0, "classifiers": ["judge"],
    "steps": 1500,
}  # fmt: skip


@pytest.fixture(scope="module")
def measured(run):
    """(kinds) -> the folder of a run that measured its adapter, and kept its best one."""

    def made(kinds):
        folder = run(kinds)
        (folder / "results.json").write_text(json.dumps(RESULTS))
        shutil.copytree(folder / "adapter", folder / "best")
        return folder

    return made


def header(card):
    return yaml.safe_load(card.split("---\n")[1])


def converted(output, *sources):
    """The card of what is written."""
    assert main([*map(str, sources), "--output", str(output)]) == 0
    return (output / "README.md").read_text()


@pytest.mark.parametrize(
    ("to", "name", "card_name", "kinds"),
    [
        ("diffusers", "fair", "fair/README.md", KINDS["all"]),
        ("kohya", "fair.safetensors", "fair.md", KINDS["both"]),
        ("pipeline", "fair", "fair/README.md", KINDS["all"]),
    ],
    ids=("diffusers", "kohya", "pipeline"),
)
def test_the_command_on_the_card_draws(to, name, card_name, kinds, measured, tmp_path, monkeypatch):
    """In fewer steps than diffusers takes unasked, and otherwise as it is; of weights in half precision, too."""
    asked = [str(measured(kinds)), "--to", to, "--output", str(tmp_path / name)]
    assert main([*asked, "--dtype", "float16"]) == 0
    card = (tmp_path / card_name).read_text()
    assert header(card)["library_name"] == "diffusers" and header(card)["base_model"] == "portraits"
    assert ("lora" in header(card)["tags"]) == (to != "pipeline")
    assert "0.60 (0.50 to 0.70)" in card and "## Limits" in card and "licence" in card
    prompts, call = [], StableDiffusionPipeline.__call__

    def quickly(pipe, prompt, **how):
        prompts.append(prompt)
        return call(pipe, prompt, num_inference_steps=2, **how)

    monkeypatch.setattr(StableDiffusionPipeline, "__call__", quickly)
    monkeypatch.chdir(tmp_path)
    exec(card.split("```python\n")[1].split("```")[0], drawn := {})
    assert drawn["image"].size == (64, 64) and np.asarray(drawn["image"]).std() > 10
    assert prompts[0].startswith("<fair> a photo") == ("soft_prompt" in kinds)
    assert bool(drawn["pipe"].get_active_adapters()) == (to != "pipeline")
    assert ("<fair>" in drawn["pipe"].tokenizer.get_vocab()) == ("soft_prompt" in kinds)


def test_the_card_says_which_shares_were_wished():
    fields = {
        "target.attributes": ("gender", "age"), "target.marginals": {"gender": (0.3, 0.7)},
        "target.prompts": {"chef": (0.1, 0.2, 0.3, 0.4)},
    }  # fmt: skip
    use = cards.Use(model="portraits", name="x", code="", merged=False)
    told = cards.card({"unet": {}}, schema.load(Experiment, None, fields | {"loss.other_attributes": 0}), None, use)
    assert "was held near" not in told
    assert (
        "Here: gender x age, gender 0.3 : 0.7 (classes in the classifier's order), and 1 subject with shares of" in told
    )


def test_the_card_says_what_it_is_and_what_was_measured(measured, tmp_path):
    folder = measured(KINDS["all"])
    card = converted(tmp_path / "files", folder / "adapter")
    assert card.startswith('---\nlibrary_name: "diffusers"\nbase_model: "portraits"\ntags: [')
    assert "LoRA of the text encoder and LoRA of the UNet and soft tokens before the prompt for `portraits`." in card
    assert "gender, evenly" in card
    assert "| | a fair model measures | prompts | before | after 1,500 steps |" in card
    assert "| gender (target) | 0.10 | trained | 0.60 (0.50 to 0.70) | 0.25 (0.20 to 0.31) |" in card
    assert "distance to the target" not in card and "What is no target" not in card
    assert "What else the classifiers tell of people was held near what it had been." in card


def test_the_card_says_what_should_stay(measured, tmp_path):
    """A bias that is not the target's is none to be judged by."""
    folder, results = measured(KINDS["text encoder"]), json.loads(json.dumps(RESULTS))
    for when in ("before", "after"):
        results[when]["trained"]["age"] = {"bias": 0.31, "bias_interval": [0.2, 0.4]}
    results["fair_floor"]["age"] = 0.1
    (folder / "results.json").write_text(json.dumps(results))
    card = converted(tmp_path / "files", folder)
    assert "| age | 0.10 | trained | 0.31 (0.20 to 0.40) | 0.31 (0.20 to 0.40) |" in card
    assert "What is no target should stay" in card


def test_of_an_uneven_target_the_card_has_the_distance(measured, tmp_path):
    folder, results = measured(KINDS["text encoder"]), json.loads(json.dumps(RESULTS))
    results["paired"][0]["measure"] = "total_variation"
    for when, distance in (("before", 0.4), ("after", 0.12)):
        results[when]["trained"]["gender"] |= {
            "total_variation": distance, "total_variation_interval": [distance - 0.2, distance + 0.1],
            "fair_total_variation": 0.05,
        }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    card = converted(tmp_path / "files", folder)
    assert "| gender: distance to the target | 0.05 | trained | 0.40 (0.20 to 0.50) | 0.12 (0.00 to 0.22) |" in card
    assert "the distance to it is what counts" in card

    for name in list(results["before"]["trained"]["gender"]):  # as of images that show no face
        results["before"]["trained"]["gender"][name] = None
    (folder / "results.json").write_text(json.dumps(results))
    card = converted(tmp_path / "none", folder)
    assert "| gender: distance to the target | no faces | trained | no faces | 0.12 (0.00 to 0.22) |" in card


def test_what_a_run_measured_is_said_of_its_adapter_on_its_model_alone(measured, tmp_path):
    folder, other = measured(KINDS["text encoder"]), measured(KINDS["unet"])
    assert "## Measured" in converted(tmp_path / "own", folder, "--model", "portraits")

    together = converted(tmp_path / "together", folder, other)
    assert "Which distribution, its maker has to say." in together and "## Measured" not in together
    best = converted(tmp_path / "best", folder / "best")  # which the run did not measure
    assert "gender, evenly" in best and "## Measured" not in best and "steps" not in best
    elsewhere = str(find("portraits"))
    card = converted(tmp_path / "elsewhere", folder, "--model", elsewhere)
    assert header(card)["base_model"] == elsewhere and f"# A fairer {elsewhere}\n" in card
    assert "finetuned with fairjax on `portraits`" in card and "## Measured" not in card


def test_what_cannot_be_converted_is_one_line(run, small_world, mistake, tmp_path):
    folder, new = run(KINDS["text encoder"]), tmp_path / "new"
    soft = run(KINDS["soft tokens"])
    lora = folder / "adapter" / adapters.LORA_FILE
    cut, text, code = tmp_path / "cut.safetensors", tmp_path / "text.safetensors", tmp_path / "code.pth"
    cut.write_bytes(lora.read_bytes()[:2000])
    text.write_text("hello")
    torch.save({"f": print}, code)
    judge, faces = tmp_path / "gender_race_age_MobileNetLarge.pt", tmp_path / "faces.pkl"
    torch.save({"features.0.0.weight": torch.zeros(16, 3, 3, 3), "classifier.3.bias": torch.zeros(8)}, judge)
    faces.write_bytes(pickle.dumps((torch.zeros(3, 512), [0, 1, 0], torch.zeros(3, 2))))
    card = tmp_path / "named.md"
    card.write_text("something else")
    ranks = load_file(lora)
    name = next(name for name in ranks if name.endswith("lora_B.weight"))
    save_file(ranks | {name: ranks[name][:, :2].copy()}, tmp_path / "ranks.safetensors")
    model = ("--model", "portraits", "--output", new)
    cases = {
        (tmp_path / "nothing", *model): "nothing: no such file or folder",
        (folder, "--output", tmp_path): "exists already: choose a new name",
        (folder, "--to", "kohya", "--output", new): "must end in .safetensors",
        (folder, "--to", "kohya", "--output", card.with_suffix(".safetensors")): "named.md, its card, exists already",
        (soft, "--to", "kohya", "--output", tmp_path / "k.safetensors"): "soft tokens have no place in kohya's format",
        (lora, "--output", new): "--model is missing",
        (folder, folder, *model): "holds a second text_encoder adapter",
        (folder, "--model", small_world, "--output", new): "made for another text_encoder",
        (soft, "--model", small_world, "--output", new): "made for another model: the soft tokens are 128 wide",
        (cut, *model): "not a whole safetensors file",
        (text, *model): "not a whole safetensors file",
        (code, *model): "it would run",
        (judge, "--output", new): "a classifier needs no conversion: name it in judges.classifiers",
        (faces, "--output", new): "a bank of faces needs no conversion: name it as judges.bank",
        (tmp_path / "ranks.safetensors", *model): "has factors of rank 4 and 2",
        (folder, "--to", "nowhere", "--output", new): "argument --to: invalid choice: 'nowhere'",
    }
    for argv, message in cases.items():
        assert message in mistake(main, *argv), argv
    assert not new.exists()


@pytest.mark.faults("a full disk, converting", count=3)
def test_a_full_disk_is_one_line(run, mistake, tmp_path):
    folder = run(KINDS["both"])
    for kind, name in (("diffusers", "x"), ("kohya", "x.safetensors"), ("pipeline", "whole")):
        with full_disk(100):
            error = mistake(main, folder, "--to", kind, "--output", tmp_path / name)
        assert f"error: --output = '{tmp_path / name}': " in error and error.endswith(": file too large\n")
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_help_shows_the_whole_map(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    formats = "diffusers", "kohya", "pipeline", "text_encoder_lora_EMA.pth", "PEFT", "textual inversions"
    for word in (*formats, "keep the run"):
        assert word in told
    assert max(map(len, told.splitlines())) <= 120


def test_what_others_named_is_text_on_a_card(measured, tmp_path):
    """A card is published: what a stranger's run calls its model, say, must be no link, HTML, or step to follow."""
    folder, evil = measured(KINDS["unet"]), "x`\n\n# Now\n\n```sh\nrm x\n```\n<img src=a> [b](c) | `"
    fields = json.loads((Experiment(adapter={"kinds": KINDS["unet"]})).model_dump_json())
    fields |= {"model": evil, "target": {"attributes": ["gender"], "table": evil}}
    (folder / "config.yaml").write_text(json.dumps(fields))
    blocks = lambda card: [line for line in card.splitlines() if re.match("#|```|<", line)]  # noqa: E731
    plain = blocks(cards.card({"unet": {}}, None, None, cards.Use("portraits", "fair", "pass")))
    card = converted(tmp_path / "fair", folder, "--model", "portraits")
    assert blocks(card) == plain and "\\<img src=a\\> \\[b\\](c) \\|" in card
    found = RESULTS | {"classifiers": [evil], "num_steps": evil}
    assert sorted(blocks(cards.card({"unet": {}}, None, found, cards.Use("portraits", evil, "pass")))) == sorted(
        [*plain, "## Measured"]
    )


def test_the_code_of_a_card_names_a_model_as_python_does():
    use = cards.use_of_folder({"unet": {}}, 'a"); exit("', "b\\")
    assert [ast.literal_eval(line.partition(" = ")[2]) for line in use.code.splitlines() if line[:4] == "base"] == [
        'a"); exit("'
    ]
    compile(use.code, "card", "exec")
