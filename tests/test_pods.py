"""The lines of README and docs, of those that launch pods too, are what a shell and our programs take; none is run."""

import re
import shutil
import subprocess
from pathlib import Path

import yaml

import eval as eval_program
import train
from fairjax import generate
from fairjax.config import Experiment
from fairjax.convert import __main__ as convert
from fairjax.faces import bank, detect, train_classifier
from fairjax.schema import load, parse

ROOT = Path(__file__).parent.parent
PODS, PAGES = ROOT / "docs" / "pods.md", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = {f"fairjax.faces.{module.__name__.rpartition('.')[2]}": module for module in (bank, detect, train_classifier)}
MODULES |= {"fairjax.generate": generate, "fairjax.convert": convert}
PROGRAMS = {"gcloud", "git", "ln", "pip", "python", "python3"}
SHELL = r"""
command_not_found_handle() { printf '%s\037' "$@"; printf '\036'; }  # all but what the shell has itself
cd() { :; }
.() { :; }
exec() { "$@"; }
"""


def blocks(language, page=PODS):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(script):
    """The words of each command that a script would start, those that `gcloud` and `srun` start among them."""
    bash = [shutil.which("bash"), "--norc", "-c", SHELL + script]
    done = subprocess.run(bash, env={"PATH": "/nowhere"}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    for told in done.stdout.split("\x1e")[:-1]:
        words = told.split("\x1f")[:-1]
        yield words[1:] if words[0] == "srun" else words
        for word in words:
            if word.startswith("--command="):
                yield from commands(word.removeprefix("--command="))


def pods():
    """Of each JobSet the job, and the container in it."""
    for text in blocks("yaml"):
        (workers,) = yaml.safe_load(text)["spec"]["replicatedJobs"]
        job = workers["template"]["spec"]
        (container,) = job["template"]["spec"]["containers"]
        yield job, container


def test_each_line_of_a_shell_is_a_whole_command_and_train_takes_its_options():
    """An option on a line of its own would be a command that is not there, and the run would go on without it."""
    scripts = [*blocks("sh"), *(script for _, container in pods() for script in container["args"])]
    found = [words for script in scripts for words in commands(script)]
    assert {words[0] for words in found} == PROGRAMS
    launches = [words[2:] for words in found if words[:2] == ["python", "train.py"]]
    assert len(launches) == "".join(blocks("sh") + blocks("yaml")).count(" train.py ")
    for argv in launches:
        config, options = parse(Experiment, [word for word in argv if word != "..."], "train.py", "", train._options)
        by_hand = argv[0] == "..."
        assert bool(options.coordinator) == by_hand
        assert by_hand or (config.training.images_per_prompt == 64 and config.output.endswith(("exp1", "exp4")))


def test_each_program_takes_the_options_that_the_pages_give_it(monkeypatch):
    """Whoever copies the line would be the first to hear of another name."""
    monkeypatch.chdir(ROOT)  # some name a configuration
    taken = []
    for words in (words for page in PAGES for script in blocks("sh", page) for words in commands(script)):
        words = [word for word in words if word != "..."]
        match words:
            case ["python", ("train.py" | "eval.py") as program, *argv]:
                parse(Experiment, argv, program, "", {"train.py": train, "eval.py": eval_program}[program]._options)
            case ["python", "-m", module, *argv] if module.startswith("fairjax."):
                MODULES[module]._parser().parse_args(argv)
            case _:
                continue
        taken.append(words[1] if words[1] != "-m" else words[2])
    assert set(taken) == {"train.py", "eval.py", *MODULES}


def test_the_configurations_on_the_page_of_prompts_are_ones(tmp_path):
    configurations = blocks("yaml", ROOT / "docs" / "prompts.md")
    for text in configurations:
        (tmp_path / "config.yaml").write_text(text)
        load(Experiment, tmp_path / "config.yaml")
    assert len(configurations) == 5


def test_jobs_are_of_as_many_processes_as_hosts_and_know_their_number():
    (tpus, tpu), (gpus, gpu) = pods()
    for job in (tpus, gpus):
        assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"]
    topology = tpus["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    rows, columns = map(int, topology.split("x"))
    assert rows * columns == tpus["completions"] * tpu["resources"]["limits"]["google.com/tpu"]
    variables = {variable["name"]: variable["value"] for variable in gpu["env"]}
    assert int(variables["JAX_NUM_PROCESSES"]) == gpus["completions"]
    assert gpu["args"][0].startswith("export JAX_PROCESS_ID=$JOB_COMPLETION_INDEX; exec python ")


def test_python_is_the_process_that_a_pod_is_ended_by():
    """A shell that stays would be told instead, and the run would be killed without a checkpoint."""
    assert all("exec python train.py " in container["args"][0] for _, container in pods())
    assert "srun python " in "".join(blocks("sh"))  # tells all processes of a task
