"""Configuration: YAML and command line give typed, frozen values; every mistake is said in one line."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
import pydantic
import pytest
from pydantic import Field

from fairjax import schema
from fairjax.program import UserError, blame, command


class Attribute(schema.Section):
    name: str
    target: tuple[float, ...] = (0.5, 0.5)


class Training(schema.Section):
    """How the adapter is
    trained.

    This is not for users.
    """

    steps: int = Field(10, ge=1, description="Steps, 100% of them.")
    rate: float = Field(5e-5, gt=0)
    gradient: Literal["adjusted", "exact"] = "adjusted"
    size: int | tuple[int, ...] = 3

    @pydantic.model_validator(mode="after")
    def _check(self):
        if self.gradient == "exact" and self.steps > 100:
            raise ValueError("exact gradients take at most 100 steps")
        return self


class Span(schema.Section):
    ends: tuple[int, int] = (1, 2)
    learning_rate: float = 1.0


class Experiment(schema.Section):
    name: str = "x"
    out: Path | None = None
    training: Training = Training()
    tuning: Training | None = None
    attributes: tuple[Attribute, ...] = (Attribute(name="gender"),)
    weights: dict[str, float] = {"image": 8.0}
    verbose: bool = False
    span: Span = Span()
    words: tuple[Literal["a", "b"], ...] = Field(("a",), min_length=1)

    @pydantic.field_validator("name")
    @classmethod
    def _named(cls, name: str) -> str:
        if " " in name:
            raise ValueError("must be one word")
        return name


def parse(*argv):
    return schema.parse(Experiment, list(argv), "train.py", "Trains.")[0]


def load(tmp_path, text, overrides=None):
    (tmp_path / "c.yaml").write_text(text)
    return schema.load(Experiment, tmp_path / "c.yaml", overrides)


@pytest.mark.parametrize(
    "config",
    [
        Experiment(),
        Experiment(name="1e-5", out=Path("runs/ä"), tuning=Training(rate=1e300, size=(1, 2)), attributes=()),
        Experiment(
            name="no",
            weights={"null": 1e-12, "yes": -3.0, "1": 0.0},
            attributes=(Attribute(name="", target=()),),
        ),
        Experiment(name="0o17:30", weights={}, training=Training(steps=10**12, rate=1e22)),
    ],
)
def test_dump_loads_back_equal(tmp_path, config):
    assert load(tmp_path, schema.dump(config)) == config


def test_a_list_in_python_is_as_good_as_a_tuple():
    lists = Experiment(training={"size": [1, 2]}, attributes=[{"name": "a", "target": [0.5, 0.5]}])
    assert lists == Experiment(training=Training(size=(1, 2)), attributes=(Attribute(name="a", target=(0.5, 0.5)),))
    assert isinstance(lists.attributes[0].target, tuple)


def test_arrays_and_their_numbers_are_as_good_as_pythons():
    arrays = Experiment(
        training={"steps": np.int64(3), "rate": jnp.float32(0.5), "size": (np.int32(1), 2)},
        attributes=[{"name": "a", "target": np.array([0.5, 0.5])}], verbose=np.True_,
    )  # fmt: skip
    assert arrays == Experiment(
        training=Training(steps=3, rate=0.5, size=(1, 2)), attributes=(Attribute(name="a", target=(0.5, 0.5)),),
        verbose=True,
    )  # fmt: skip
    with pytest.raises(ValueError, match="^training.steps = 3.0: must be an integer$"):
        Experiment(training={"steps": np.float64(3)})


IN_PYTHON = [
    ({"training": {"stepz": 3}}, "unknown field training.stepz (did you mean training.steps?)"),
    ({"steps": 3}, "unknown field steps (did you mean training.steps?)"),
    ({"training": {"steps": "3"}}, "training.steps = '3': must be an integer"),
    ({"training": 3}, "training = 3: must be a section of fields"),
    ({"attributes": ({"name": "a", "target": ("x",)},)}, "attributes.0.target.0 = 'x': must be a number"),
    ({"attributes": "a"}, "attributes = 'a': must be a list"),
    ({"name": 3, "span": Span(), "verbose": 4}, "name = 3: must be text; verbose = 4: must be true or false"),
]


@pytest.mark.parametrize(("fields", "message"), IN_PYTHON)
def test_mistakes_in_python_are_told_in_one_line(fields, message):
    with pytest.raises(ValueError) as caught:
        Experiment(**fields)
    assert str(caught.value) == message


def test_yaml_numbers_are_those_one_expects(tmp_path):
    config = load(tmp_path, "training: {rate: 5e-5, steps: 010}\nname: no\nweights: {a: 1, b: 1.e3, c: -.5E2}\n")
    assert config.training == Training(rate=5e-5, steps=10) and config.name == "no"
    assert config.weights == {"a": 1.0, "b": 1000.0, "c": -50.0}


def test_defaults_without_a_file_and_from_an_empty_one(tmp_path):
    assert schema.load(Experiment, None) == load(tmp_path, "") == parse() == Experiment()


def test_the_command_line_wins_over_the_file(tmp_path):
    (tmp_path / "c.yaml").write_text("training: {steps: 5, rate: 1e-3}\ntuning:\n")
    config = parse("--config", str(tmp_path / "c.yaml"), "--training.steps", "7", "--tuning.steps=9")
    assert config == Experiment(training=Training(steps=7, rate=1e-3), tuning=Training(steps=9))


def test_command_line_values_are_yaml_and_text_stays_text():
    config = parse(
        "--name", "123", "--out", "null", "--training.size", "[1, 2]", "--training.rate=1e-3",
        "--verbose", "true", "--weights", "{face: 0.1}",
        "--attributes", "[{name: age, target: [0.75, 0.25]}]",
    )  # fmt: skip
    assert config == Experiment(
        name="123", training=Training(size=(1, 2), rate=1e-3), verbose=True, weights={"face": 0.1},
        attributes=(Attribute(name="age", target=(0.75, 0.25)),),
    )  # fmt: skip


def test_a_configuration_cannot_be_changed():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        Experiment().training.steps = 3


def test_the_programs_own_options_come_beside_the_configuration():
    config, options = schema.parse(
        Experiment,
        ["--dry", "--name", "y"],
        "p",
        "",
        lambda parser: parser.add_argument("--dry", action="store_true"),
    )
    assert config.name == "y" and vars(options) == {"config": None, "dry": True, "given": {"name"}}


COMMAND_LINES = [
    ("--training.steps abc", "training.steps = 'abc': must be an integer"),
    ("--training.steps 1.5", "training.steps = 1.5: must be an integer"),
    ("--training.steps true", "training.steps = True: must be an integer"),
    ("--training.steps 0", "training.steps = 0: must be at least 1"),
    ("--training.rate=-1e-3", "training.rate = -0.001: must be greater than 0.0"),
    ("--training.rate fast", "training.rate = 'fast': must be a number"),
    ("--training.gradient ajusted", "training.gradient = 'ajusted': must be 'adjusted' or 'exact'"),
    ("--training.size a", "training.size = 'a': must be an integer or a list"),
    (
        "--training.size [1,b]",
        "training.size = [1, 'b']: must be an integer; training.size.1 = 'b': must be an integer",
    ),
    ("--span.ends [1]", "span.ends = [1]: must be a list of 2"),
    ("--span.ends []", "span.ends = []: must be a list of 2"),
    ("--span.ends [1,2,3]", "span.ends = [1, 2, 3]: must be a list of 2"),
    ("--words []", "words = []: must be a list of 1 or more"),
    ("--words [x]", "words.0 = 'x': must be 'a' or 'b'"),
    ("--verbose yes", "verbose = 'yes': must be true or false"),
    ("--weights {a}", "weights.a = None: must be a number"),
    (
        "--weights [1",
        "--weights, line 1, column 3: not valid YAML: expected ',' or ']', but got '<stream end>'",
    ),
    ("--weights {a,a}", "--weights, line 1, column 1: not valid YAML: 'a' is given twice"),
    ("--training.stepz 3", "unknown field training.stepz (did you mean training.steps?)"),
    ("--steps=3", "unknown field steps (did you mean training.steps?)"),
    ("--tuning.ends 3", "unknown field tuning.ends (did you mean span.ends?)"),
    ("--span.rate 3", "unknown field span.rate (did you mean span.learning_rate?)"),
    ("--qqqqq 3", "unknown field qqqqq"),
    ("--training.steps", "argument --training.steps: expected one argument"),
    ("surplus", "unexpected argument 'surplus'"),
    ("--config nowhere.yaml", "cannot read nowhere.yaml: no such file or directory"),
]


@pytest.mark.parametrize(("line", "message"), COMMAND_LINES)
def test_command_line_mistakes_are_told_in_one_line(line, message):
    with pytest.raises(UserError) as caught:
        parse(*line.split(" "))
    assert str(caught.value) == message


FILES = [
    ("training: {stepz: 3}", "unknown field training.stepz (did you mean training.steps?)"),
    ("steps: 3", "unknown field steps (did you mean training.steps?)"),
    ("training: 3", "training = 3: must be a section of fields"),
    ("tuning: {gradent: exact}", "unknown field tuning.gradent (did you mean tuning.gradient?)"),
    (
        "attributes: [{name: a, taget: 3}]",
        "unknown field attributes.0.taget (did you mean attributes.0.target?)",
    ),
    ("attributes: [{target: [1]}]", "attributes.0.name is missing"),
    ("attributes: [{name: a, target: [x]}]", "attributes.0.target.0 = 'x': must be a number"),
    ("name: 3", "name = 3: must be text"),
    ("name: a b", "name = 'a b': must be one word"),
    ("weights: {image: heavy}", "weights.image = 'heavy': must be a number"),
    ("training: {gradient: exact, steps: 101}", "training: exact gradients take at most 100 steps"),
    ("{name: 3, verbose: 4}", "name = 3: must be text; verbose = 4: must be true or false"),
    ("[1, 2]", "must be a mapping of fields, not [1, 2]"),
    ("name: 'x", "not valid YAML: found unexpected end of stream"),
    ("training: {steps: 3}\ntraining: {}", "not valid YAML: 'training' is given twice"),
]


@pytest.mark.parametrize(("text", "message"), FILES)
def test_mistakes_in_a_file_are_told_with_its_name(tmp_path, text, message):
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    said = str(caught.value)
    assert said.startswith(str(tmp_path / "c.yaml")) and said.endswith(f": {message}") and "\n" not in said


def test_overriding_inside_something_that_is_no_section_is_refused(tmp_path):
    with pytest.raises(UserError, match="^training = 3: must be a section$"):
        load(tmp_path, "training: 3", {"training.steps": 4})


def test_blame_names_the_subject_of_bad_data_and_missing_files():
    with pytest.raises(UserError, match="^weights: too short$"), blame("weights"):
        raise ValueError("too short")
    with (
        pytest.raises(UserError, match="^weights: .*nowhere.*: no such file or directory$"),
        blame("weights"),
    ):
        open("/nowhere/at/all").close()


def test_blame_keeps_the_letters_of_a_path_and_tells_what_is_not_installed():
    with pytest.raises(UserError, match="^weights: A/Folder does not exist$"), blame("weights"):
        raise FileNotFoundError("A/Folder does not exist")
    with pytest.raises(UserError, match="^detector: pip install it$"), blame("detector"):
        raise ImportError("pip install it")


def test_exit_codes(capsys):
    @command
    def program(argv):
        """A program."""
        if argv == ["interrupt"]:
            raise KeyboardInterrupt
        if argv == ["wrong"]:
            raise UserError("two\nlines")
        if argv == ["full"]:
            raise OSError(errno.ENOSPC, "No space left on device", "results.json")
        if argv == ["unsaved"]:
            raise OSError("checkpoint 3 could not be saved")
        if argv == ["fault"]:
            raise KeyError("ours")

    assert program([]) == 0 and program(["wrong"]) == 2 and program(["interrupt"]) == 130
    assert program(["full"]) == 2 and program(["unsaved"]) == 2
    assert capsys.readouterr().err == (
        "error: two lines\ninterrupted\n"
        "error: results.json: no space left on device\nerror: checkpoint 3 could not be saved\n"
    )
    with pytest.raises(KeyError):
        program(["fault"])


def test_a_program_exits_with_one_line_and_code_2_without_importing_jax():
    source = (
        "import sys\nfrom fairjax import program, schema\n"
        "class C(schema.Section):\n    steps: int = 3\n"
        "@program.command\ndef main(argv):\n    assert 'jax' not in sys.modules\n"
        "    schema.parse(C, argv, 'p', '')\n"
        "sys.exit(main())"
    )
    run = subprocess.run([sys.executable, "-c", source, "--steps", "x"], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (2, "", "error: steps = 'x': must be an integer\n")


def test_ctrl_c_while_python_tidies_up_is_no_traceback():
    source = (
        "import atexit, sys, time\nfrom fairjax import program\n"
        "@atexit.register\ndef tidy():\n    print('over', flush=True)\n    time.sleep(60)\n"
        "@program.command\ndef main(argv):\n    pass\n"
        "sys.exit(main())"
    )
    run = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "over\n"
    run.send_signal(signal.SIGINT)
    assert run.communicate(timeout=20)[1] == "" and run.returncode == -signal.SIGINT


@pytest.mark.faults("an output that takes no more", lost="what would have been printed, which is told")
@pytest.mark.parametrize("gone", ["a full disk", "a full disk for errors", "nobody reads"])
def test_long_work_goes_on_where_what_it_prints_is_taken_no_more(gone):
    """To its own exit code, and what it must not miss; of both outputs the other tells, once."""
    source = (
        "import os, signal, sys\nfrom fairjax import program\n"
        "from fairjax.training.interruption import interruption\n"
        "@program.command\ndef main(argv):\n"
        "    with program.lasting(), interruption() as asked:\n"
        "        for _ in range(2):\n            print('a step', flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n        print('over')\n"
        "    return 75 if asked.asked else 3\n"
        "sys.exit(main())"
    )
    reading, writing = os.pipe()
    os.close(reading)
    with open("/dev/full", "w") as full, os.fdopen(writing, "w") as unread:
        outputs = {
            "a full disk": {"stdout": full, "stderr": subprocess.PIPE},
            "a full disk for errors": {"stdout": subprocess.PIPE, "stderr": full},
            "nobody reads": {"stdout": unread, "stderr": subprocess.PIPE},
        }
        run = subprocess.run([sys.executable, "-c", source], text=True, **outputs[gone])
    assert run.returncode == 75
    if run.stdout is not None:
        assert run.stdout == "a step\na step\nover\n"
    else:
        reason = "broken pipe" if gone == "nobody reads" else "no space left on device"
        told, *asked = run.stderr.splitlines()
        assert told == f"warning: not all that is told can be printed: {reason}"
        assert "SIGTERM: ending after what is under way" in "".join(asked) and "warning" not in "".join(asked)


def test_help_is_grouped_by_section_with_descriptions_and_defaults(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("--help")
    said = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    assert "training: How the adapter is trained. --training.steps INT Steps, 100% of them. (default: 10)" in said
    assert "--training.gradient adjusted|exact (default: adjusted)" in said
    assert "--attributes [{...}, ...] (default: [{name: gender, target: [0.5, 0.5]}])" in said
