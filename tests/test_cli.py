"""The programs: mistakes are one line with exit code 2, help is instant, a run leaves what it promises."""

import html
import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from running import states
from small_world import SIDE, arguments

import eval as eval_program
import fairjax
import train as train_program
from fairjax import generate, parallel
from fairjax.config import Experiment
from fairjax.convert.bundles import load_adapter
from fairjax.evaluation import run as evaluation_run
from fairjax.fairness.attributes import Attribute
from fairjax.pipeline import Pipeline
from fairjax.portraits import occupations
from fairjax.program import UserError
from fairjax.schema import dump, load
from fairjax.training import plan
from fairjax.training import run as training_run
from fairjax.training.finetuning import Finetuning, StepReport
from fairjax.training.interruption import TO_GO_ON
from fairjax.training.log import Log
from fairjax.training.watch import Watch

pytestmark = pytest.mark.usefixtures("read_once")
ROOT = Path(__file__).parent.parent
TINY = (
    *("--training.steps", "2", "--training.prompts_per_step", "2", "--training.images_per_prompt", "8"),
    *("--training.num_steps", "[2, 2]", "--training.grad_steps", "1", "--training.save_every", "1"),
    *("--evaluation.subjects", "2", "--evaluation.images_per_prompt", "4", "--evaluation.num_steps", "2"),
    *("--evaluation.batch_size", "8"),
)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "portraits").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_experiment_can_start(path):
    """Its fields are known, its target is one of the classifier's, and its images fit one device."""
    finetuning = Finetuning(load(Experiment, path), parallel.mesh(1))
    adapted = set(finetuning.initial().bundle)
    assert adapted == set(finetuning.config.adapter.kinds)
    assert finetuning.target.attributes == finetuning.config.target.attributes


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        (train_program, ["--training.stepz", "3"], "training.steps"),
        (train_program, ["--training.steps", "many"], "training.steps"),
        (train_program, ["--target.distribution", "[0.5, 0.6]"], "sums to 1.1"),
        (train_program, ["--target.attributes", "[race]"], "no attribute 'race'"),
        (train_program, ["--target.marginals", "{age: [0.5, 0.5]}"], "'age' is not among target.attributes"),
        (train_program, ["--target.cost_weights", "{age: [[1, 1], [2, 1]]}"], "cost_weights: 'age' is not among"),
        (train_program, ["--target.cost_weights", "{gender: [[1, 1]]}"], "gender = [[1.0, 1.0]] should be 2 rows"),
        (train_program, ["--model", "nowhere/at/all"], "model = 'nowhere/at/all': no such folder"),
        (train_program, ["--config", "nowhere.yaml"], "nowhere.yaml"),
        (train_program, ["--training.gradient", "steepest"], "uniform, unscaled, exact or truncated:K"),
        (train_program, ["--training.gradient", "exact"], "training.grad_steps and training.microbatch must be null"),
        (train_program, ["--training.images_per_prompt", "3"], "8 devices: images_per_prompt = 4 would fit"),
        (train_program, ["--prompts.templates", "[a pilot]"], "has no {occupation} in it"),
        (train_program, ["--training.num_steps", "[9, 7]"], "two rising counts"),
        (
            train_program,
            ["--loss.factor1", "{gendr: 0.9}"],
            "loss.factor1: no attribute 'gendr'; did you mean 'gender'?",
        ),
        (train_program, ["--loss.factor2", "{gender: 1.5}"], "loss.factor2.gender = 1.5: must be at most 1.0"),
        (train_program, ["--training.betas", "[0.9, 1.0]"], "training.betas.1 = 1.0: must be less than 1.0"),
        (
            train_program,
            ["--judges.box", "[50, 12, 14, 48]"],
            "judges.box = [50.0, 12.0, 14.0, 48.0] must be left, top",
        ),
        (train_program, ["--dry-run", "--judges.evaluation", "[a]"], "judges.evaluation = 'a': no such file or folder"),
        (train_program, ["--judges.face", "nowhere/at/all"], "judges.face = 'nowhere/at/all': no such file or folder"),
        (train_program, ["--target.marginals", "{gender: [0.5, 0.6]}"], "target.marginals.gender sums to 1.1"),
        (train_program, ["--target.prompts", "{chef: [0.5, 0.6]}"], "target.prompts.chef sums to 1.1"),
        (train_program, ["--prompts.held_out", "[]"], "prompts.held_out is empty: name one or more"),
        (
            train_program,
            ["--prompts.templates", "['a {occupation} {place}']"],
            "braces other than those of {occupation}",
        ),
        (
            train_program,
            ["--adapter.kinds", "[soft_prompt]", "--adapter.num_tokens", "31"],
            "adapter.num_tokens: 31 soft tokens do not fit",
        ),
        (eval_program, [], "--adapter is missing"),
        (eval_program, ["--adapter", "nowhere"], "nowhere"),
        (generate, ["a pilot", "--num", "0"], "--num = 0 must be at least 1"),
        (generate, ["a pilot", "--adapter", "nowhere"], "nowhere"),
        (generate, [], "required: prompts"),
        (
            generate,
            ["a pilot", "--steps", "2000"],
            "--steps = 2000 must be between 1 and 1000, the timesteps of",
        ),
        (train_program, ["--evaluation.num_steps", "2000"], "evaluation.num_steps = 2000 must be between 1 and 1000"),
        (train_program, ["--training.num_steps", "[5, 2000]"], "training.num_steps = 2000 must be between 1 and 1000"),
        (train_program, ["--validation.num_steps", "2000"], "validation.num_steps = 2000 must be between 1 and 1000"),
        (generate, ["a pilot", "--steps", "1000"], "--steps = 1000: 1000 solver steps cannot be told apart"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(program, arguments, message, mistake, tmp_path):
    assert message in mistake(program.main, *arguments, "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()  # nothing is left behind


@pytest.mark.parametrize(
    ("program", "module", "name", "given", "code"),
    [
        (train_program, training_run, "run", (), TO_GO_ON),
        (eval_program, evaluation_run, "evaluate", ("--adapter", "of/no/run"), 0),
    ],
)
def test_long_programs_go_on_where_what_they_print_is_taken_no_more(
    program, module, name, given, code, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(module, name, lambda *what: print("a step", flush=True))
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert program.main([*given, "--output", str(tmp_path / "run")]) == code
    told = capsys.readouterr().err
    assert told == "warning: not all that is told can be printed: no space left on device\n"


def test_other_settings_are_measured_where_a_sweep_is_asked_for(monkeypatch, tmp_path):
    settings = []
    monkeypatch.setattr(evaluation_run, "evaluate", lambda config, *_: settings.append(len(config.evaluation.sweep)))
    for more in ([], ["--sweep"]):
        assert eval_program.main(["--adapter", "of/no/run", "--output", str(tmp_path / "found"), *more]) == 0
    assert settings == [0, 6]


@pytest.mark.parametrize("original", [False, True])
def test_a_run_that_was_moved_or_copied_does_not_go_on_elsewhere(original, mistake, tmp_path):
    """By its own configuration, which says where it was: it would begin anew there, or go on with the original."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new) if original else (new,):
        (folder / "checkpoints").mkdir(parents=True)
    (new / "config.yaml").write_text(dump(load(Experiment, None, {"output": str(old), "model": "nowhere/at/all"})))
    for resume in ("--resume", "--resume-anyway"):
        told = mistake(train_program.main, "--config", new / "config.yaml", resume)
        assert f"output = {str(old)!r}" in told and f"--output {new} goes on with it here" in told
    go_on = ("--config", new / "config.yaml", "--resume", "--output", new)
    assert "no such folder" in mistake(train_program.main, *go_on)  # it has gone past that
    there = tmp_path / "link"
    there.symlink_to(new)  # another name of the same place
    (new / "config.yaml").write_text(dump(load(Experiment, None, {"output": str(there), "model": "nowhere/at/all"})))
    assert "no such folder" in mistake(train_program.main, *go_on[:3])


def test_an_evaluation_never_lands_in_a_trainings_folder(tmp_path):
    """However the adapter, the seed and the folder are written, and wherever the configuration comes from."""
    run, bare, other = tmp_path / "run", tmp_path / "bare", tmp_path / "other.yaml"
    (run / "adapter").mkdir(parents=True)
    bare.mkdir()
    (bare / "lora.safetensors").touch()
    (run / "config.yaml").write_text(f"output: {run}\nloss: {{image: 5}}\nevaluation: {{seed: 3}}\n")
    other.write_text(f"output: {run}\nloss: {{image: 6}}\n")

    def configured(*argv):
        config, _ = eval_program.configure(list(argv))
        return str(Path(config.output).relative_to(tmp_path)), config.loss.image

    assert configured("--adapter", f"{run}") == ("run/evaluation-3", 5)
    assert configured(f"--adapter={run}", "--evaluation.seed=7") == ("run/evaluation-7", 5)
    assert configured("--adapter", f"{run}/adapter", "--evaluation.seed", "7") == ("run/evaluation-7", 5)
    assert configured("--adapter", f"{run}/best") == ("run/evaluation-3-best", 5)
    assert configured(f"--output={tmp_path}/here", "--adapter", f"{run}") == ("here", 5)
    assert configured("--config", f"{other}", "--adapter", f"{run}") == ("run/evaluation-1000", 6)
    assert configured("--config", f"{other}", "--adapter", f"{bare}") == ("bare/evaluation-1000", 6)
    assert configured("--adapter", f"{bare}/lora.safetensors") == ("bare/evaluation-1000", 4)


def test_weights_and_biases_is_told_what_tensorboard_is(tmp_path, monkeypatch):
    """The client is a stand-in: it is no dependency, and an account is needed to run it."""
    told, started = [], []

    class Run:
        def log(self, values, step):
            told.append((step, values))

        def finish(self):
            told.append("finished")

    stand_in = types.ModuleType("wandb")
    stand_in.init = lambda **how: started.append(how) or Run()
    stand_in.Image = lambda pixels: pixels.shape
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    log = Log(tmp_path, start=0, images=8, wandb="fairness")
    for step, images in ((1, None), (2, np.zeros((2, 3, 8, 8, 3), np.uint8))):
        log(StepReport(step, 2, {"loss": 1.0 / step}, [], lambda: None), images)
    log.close()
    assert started[0]["project"] == "fairness" and started[0]["resume"] == "allow"
    assert told == [(1, {"loss": 1.0}), (2, {"loss": 0.5}), (2, {"images": (16, 24, 3)}), "finished"]


def test_weights_and_biases_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # what import then finds is nothing
    with pytest.raises(UserError, match="training.wandb = 'fairness' needs Weights & Biases: pip install wandb"):
        Log(tmp_path, start=0, images=8, wandb="fairness")


def test_weights_and_biases_that_is_not_installed_is_told_before_the_run_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert train_program.main(["--training.wandb", "fairness", "--output", str(tmp_path / "run")]) == 2
    assert "training.wandb = 'fairness' needs Weights & Biases" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("program", ["train.py", "eval.py"])
def test_help_starts_no_jax(program):
    code = (
        f"import sys; sys.argv = ['{program}', '--help']; import runpy\n"
        f"try: runpy.run_path('{program}', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'jax' not in sys.modules and 'transformers' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--training.steps" in shown and "optimizer steps" in shown


def test_windows_is_told_where_it_works(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ImportError, match="on Windows, install it inside of WSL"):
        importlib.reload(fairjax)


def installed_without_fairjax(name, version=importlib.metadata.version):
    """As after `pip install -r requirements.txt`, README's first command."""
    if name == "fairjax":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)


def assert_the_average_is_exported(run, world):
    """In `adapter/` is the moving average of the last checkpoint, and not the adapter of the last step."""
    kept, moved = states(run), []
    exported = load_adapter(run, Pipeline.from_pretrained(str(world)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(exported):
        average, last = (kept[max(kept)][f"['{tree}']{jax.tree_util.keystr(path)}"] for tree in ("ema", "bundle"))
        np.testing.assert_array_equal(leaf, average)
        moved.append(np.any(leaf != last))
    assert any(moved)


def test_a_run_leaves_what_it_promises_and_can_be_measured_again(small_world, tmp_path, capsys, mistake, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", installed_without_fairjax)
    run = tmp_path / "run"
    measures = shutil.copytree(small_world / "image_semantics", tmp_path / "clip")  # a network that measures alone
    asked = [*TINY, *arguments(small_world), f"--judges.evaluation_semantics=[{measures}]", "--output", str(run)]
    how = ["--training.keep", "1", "--training.keep_every", "1", "--training.images_every", "1"]
    looked = []
    monkeypatch.setattr(Watch, "alive", lambda watch: looked.append(watch))
    assert train_program.main([*asked, *how]) == 0
    told = capsys.readouterr().out
    assert (
        "an exactly fair model measures" in told
        and "first step after" in told
        and re.search(r"loss \d.*bias/gender\s+\d.*\simages/s", told, re.DOTALL)  # in a column, of as many lines
    )
    left = {path.name for path in run.iterdir()}
    assert left >= {"config.yaml", "checkpoints", "adapter", "log.jsonl", "results.json", "before_after.png"}
    assert looked and load_adapter(run / "best", Pipeline.from_pretrained(str(small_world)))  # of the look at the end
    assert {"1", "2"} <= {path.name for path in (run / "checkpoints").iterdir()}
    board = b"".join(path.read_bytes() for path in (run / "tensorboard").iterdir())
    assert board.count(b"\x89PNG") == 2 and b"validation/distance" in board
    assert_the_average_is_exported(run, small_world)
    assert "## Measured" in (run / "adapter" / "README.md").read_text()
    card = (run / "best" / "README.md").read_text()  # which nothing has measured yet
    assert 'load_lora_weights("best")' in card and "seed 0" in card and "## Measured" not in card
    results = json.loads((run / "results.json").read_text())
    for name in ("before", "after"):
        for kind in ("trained", "held_out"):
            gender = results[name][kind]["gender"]
            assert 0 <= gender["bias"] <= 1 and sum(gender["frequencies"].values()) == pytest.approx(1)
    assert len(results["per_prompt"]) == 4 and results["images_per_prompt"] == 4
    assert list(results["preservation"]) == ["clip"]
    kept = results["preservation"]["clip"]["held_out"]
    assert -1 <= kept["similarity"]["after"] <= 1 and kept["frechet"]["after"] >= 0
    assert "like the one before" in told and "varied within a class" in told
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 2]
    assert np.asarray(Image.open(run / "before_after.png")).std() > 10
    page = (run / "report.html").read_text()
    assert 'id="training"' in page and f"python train.py {shlex.join(asked)}" in html.unescape(page)

    assert train_program.main(asked) == 2
    assert "holds a run already: add --resume" in capsys.readouterr().err
    changed = ["--training.learning_rate", "1e-4", "--loss.face", "0.2"]
    assert train_program.main([*asked, *changed, "--resume"]) == 2
    told = "training.learning_rate = 0.0001, but the run has 0.001, loss.face = 0.2, but the run has 0.1"
    assert f"--resume: {told}; a run continues as it was configured" in capsys.readouterr().err

    measured, asked_again = tmp_path / "measured", ["--adapter", str(run), "--evaluation.seed", "7"]
    assert eval_program.main([*asked_again, "--output", str(measured)]) == 0
    again = json.loads((measured / "results.json").read_text())
    assert again["evaluation_seed"] == 7 and again["adapter"] == str(run)
    assert again["command"] == f"python eval.py {shlex.join(asked_again)} --output {measured}"
    page = html.unescape((measured / "report.html").read_text())
    assert 'id="training"' in page and again["command"] in page  # the run's curves, wherever the results go
    pictures = {path.name for path in (measured / "figures").iterdir()}
    assert pictures == {"by-prompt-gender.png", "classes.png", "training.png", "pictures.png"}
    assert set(again["nobody"]["faces"]) == {"before", "after"} and again["nobody"]["prompts"]
    assert again["preservation"]["clip"]["held_out"]["alignment"].keys() == {"before", "after"}

    longer = ["--training.steps", "3", "--training.save_every", "7", *changed, "--resume-anyway"]
    assert train_program.main([*asked, *longer]) == 0
    assert f"warning: --resume-anyway: {told}\n" in capsys.readouterr().err
    longer = json.loads((run / "results.json").read_text())
    assert longer["steps"] == 3 and longer["before"] == results["before"]
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 2, 3]

    drawn = tmp_path / "images"
    prompt = ("a chef", "--num", "2", "--steps", "2", "--adapter", str(run))  # of the run's own model
    assert generate.main([*prompt, "--output", str(drawn)]) == 0
    before, after = (np.asarray(Image.open(drawn / f"00-a-chef-000-{name}.png"), int) for name in ("before", "after"))
    assert 0 < np.abs(before - after).mean() < 64  # the same noise, another adapter
    assert Image.open(drawn / "grid.png").size == (2 * 2 * SIDE, 2 * 2 * SIDE)  # twice their size

    (tmp_path / "file").write_text("whatever")
    for program, asked in ((generate, prompt), (eval_program, ("--adapter", run))):
        assert f"output = '{tmp_path}/file': file exists" in mistake(
            program.main, *asked, "--output", tmp_path / "file"
        )
    message = mistake(eval_program.main, "--adapter", run, "--evaluation.num_steps", 2000, "--output", tmp_path / "no")
    assert "evaluation.num_steps = 2000 must be between 1 and 1000" in message and not (tmp_path / "no").exists()


@pytest.mark.faults("all checkpoints of a run damaged", lost="the run, which is told")
def test_a_run_without_a_whole_checkpoint_is_not_begun_anew_unasked(small_world, tmp_path, capsys):
    run = tmp_path / "run"
    asked = [*TINY, *arguments(small_world), "--output", str(run), "--resume"]
    (run / "checkpoints" / "2").mkdir(parents=True)
    (run / "checkpoints" / "2" / "sha256.json").write_text("[]")
    (run / "log.jsonl").write_text('{"step": 2}\n')
    for told in ("warning: checkpoint 2 has an unreadable sha256.json", ""):  # it is put aside once, and stays refused
        assert train_program.main(asked) == 2
        *warnings, error = capsys.readouterr().err.splitlines()
        assert "\n".join(warnings).startswith(told)
        assert error.startswith("error: --resume: every checkpoint in ") and "--resume-anyway begins anew" in error
    assert (run / "log.jsonl").read_text() == '{"step": 2}\n' and not (run / "adapter").exists()


def test_a_second_program_in_a_folder_is_refused(small_world, tmp_path, mistake):
    asked, run = [*TINY, *arguments(small_world)], tmp_path / "run"
    with parallel.alone(run):
        assert "another program is at work in it" in mistake(train_program.main, *asked, "--output", run)
        words = ("--evaluation.interventions", "{even: '{prompt}, evenly'}")
        assert "another program is at work in it" in mistake(eval_program.main, *asked, *words, "--output", run)
    assert {path.name for path in run.iterdir()} == {parallel.LOCK}


def test_adapters_and_other_words_are_compared_in_one_evaluation(small_world, tmp_path, capsys, mistake):
    run, other, found = tmp_path / "run", tmp_path / "other", tmp_path / "found"
    assert train_program.main([*TINY, *arguments(small_world), "--output", str(run)]) == 0
    shutil.copytree(run, other)
    asked = ["--adapter", str(run), "--adapter", str(other / "adapter")]
    words = ["--evaluation.interventions", "{even: '{prompt}, evenly'}", "--evaluation.sweep", "[{num_steps: 3}]"]
    assert "--output is missing: name a folder for what is found of 2 adapters" in mistake(eval_program.main, *asked)
    capsys.readouterr()
    assert eval_program.main([*asked, *words, "--output", str(found)]) == 0
    told, results = capsys.readouterr().out, json.loads((found / "results.json").read_text())
    columns = ["before", "after: run", "after: other", "asked: even"]
    assert list(results["columns"]) == columns and "prompts that ask for nobody, asked: even" in told
    assert results["columns"]["asked: even"]["words"] == "{prompt}, evenly"
    assert results["after: run"] == results["after: other"] != results["asked: even"]
    same = [row for row in results["paired"] if (row["first"], row["second"]) == ("after: run", "after: other")]
    assert len(same) == 2 and all(
        row["value"] == row["low"] == row["high"] == 0 and row["p_value"] == 1 for row in same
    )
    (swept,) = results["sweep"]
    assert swept["num_steps"] == 3 and list(swept["columns"]) == columns
    assert {path.name.split("-")[0] for path in (found / "data").iterdir()} == {"before", "after", "asked"}
    message = mistake(eval_program.main, *asked, "--evaluation.interventions", "{x: evenly}", "--output", str(found))
    assert "evaluation.interventions: x = 'evenly' must have {prompt} in it" in message
    (tmp_path / "jobs").mkdir()
    for split, job in (("train", "smith"), ("test", occupations.TRAINED[0].upper())):  # in whatever letters
        (tmp_path / "jobs" / f"{split}.txt").write_text(job)
    others = ["--prompts.sources", json.dumps([{"name": str(tmp_path / "jobs")}]), "--output", str(found)]
    told = f"--adapter: {run} was trained on '{occupations.TRAINED[0].upper()}', which the prompts hold out"
    assert told in mistake(eval_program.main, *asked, *others)


def test_generate_writes_a_grid_and_images_that_do_not_overwrite_each_other(small_world, tmp_path):
    """Of prompts that begin alike, too."""
    start = "a portrait of a person who works at " + "the very same place " * 3
    asked = [start + "as chef", start + "as pilot", "--num", "2", "--steps", "1", "--model", str(small_world)]
    assert generate.main([*asked, "--output", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*-before.png"))) == 4
    assert Image.open(tmp_path / "grid.png").size == (2 * 2 * SIDE, 2 * 2 * SIDE)


@pytest.mark.parametrize(
    ("told", "weight", "said"),
    [
        (("gender", "age", "skin_tone"), 0.1, "age, skin_tone"),
        (("gender", "age"), 0, "none (loss.other_attributes = 0)"),
        (("gender",), 0.1, "none: the classifiers tell no others than the target's"),
    ],
)
def test_a_plan_says_which_attributes_are_kept(told, weight, said):
    attributes = tuple(Attribute(name, ("this", "that")) for name in told)
    config = Experiment(loss={"other_attributes": weight})
    finetuning = types.SimpleNamespace(attributes=attributes, target=config.target, config=config)
    assert plan.attributes_kept(finetuning) == said


def test_a_dry_run_says_what_would_be_downloaded_and_leaves_nothing(models, tmp_path, monkeypatch, capsys, mistake):
    """What is on the machine is read: a file that is not there is one line, before anything is downloaded."""
    monkeypatch.setenv("COLUMNS", "160")
    config = ROOT / "configs" / "sd15" / "exp3-gender-race-unet.yaml"
    asked = ["--config", str(config), "--dry-run", "--output", str(tmp_path / "run")]
    for field in ("classifiers", "evaluation"):
        asked += [f"--judges.{field}", f"[{models}/classifier.pt]"]
    asked += ["--judges.face", f"{models}/face.pth"]
    message = f"judges.bank = '{tmp_path}/none.npy': no such file or folder"
    assert message in mistake(train_program.main, *asked, "--judges.bank", f"{tmp_path}/none.npy")
    assert train_program.main([*asked, "--judges.bank", f"{models}/bank.npy"]) == 0
    told = capsys.readouterr().out
    for said in ("1 prompts x 32, 19 to 23 solver steps", "15,000", "gender x race, uniform", "facebook/dinov2-base"):
        assert said in told
    assert not (tmp_path / "run").exists()
