"""`python -m fairjax.status`: what it says of runs in each of their states."""

import json
import os
import subprocess
import sys

import pytest

from fairjax import status
from fairjax.config import Experiment
from fairjax.files import SUMS
from fairjax.schema import dump, load

NOW = 1_700_000_000


@pytest.fixture
def run(tmp_path):
    """(steps taken, fields of a step) -> a run of 100 steps, of 2 s and 32 images each, the last a second ago."""

    def write(taken, ago=1, **fields):
        config = load(Experiment, None, {"training.steps": 100})
        (tmp_path / "config.yaml").write_text(dump(config))
        rows = [
            {"step": n + 1, "seconds": 2.0, "loss": 2 - n / 100, "bias/gender": 0.8 - n / 200, "gradient_norm": 1.0}
            for n in range(taken)
        ]
        for number, row in enumerate(rows):
            row |= {name: value(number) for name, value in fields.items()}
        log = tmp_path / "log.jsonl"
        log.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 1')  # as a kill leaves it
        os.utime(log, (NOW - ago,) * 2)
        return tmp_path

    return write


def test_of_a_target_that_is_not_even_the_distance_is_followed(run):
    folder = run(40, **{"distance/gender": lambda n: 0.3})
    assert "bias/gender" in told(folder) and "distance/gender" not in told(folder)
    uneven = load(Experiment, None, {"training.steps": 100, "target.distribution": [0.7, 0.3]})
    (folder / "config.yaml").write_text(dump(uneven))
    assert "bias/gender" not in told(folder) and "distance/gender          0.300" in told(folder)


def told(folder):
    return "\n".join(status.status(folder, NOW))


def test_a_run_under_way(run):
    folder = run(40)
    for step in ("20", "40"):
        (folder / "checkpoints" / step).mkdir(parents=True)
        (folder / "checkpoints" / step / SUMS).touch()
        os.utime(folder / "checkpoints" / step, (NOW - 5,) * 2)
    (folder / "checkpoints" / "60").mkdir()  # one that is being written
    text = told(folder)
    assert "step 40 of 100 (40%); 2 s a step, 16 images/s; 2 min left" in text
    assert "last checkpoint: step 40, 5 s ago" in text and "warning" not in text
    bias = next(line for line in text.splitlines() if line.startswith("bias/gender"))
    first, last = (float(bias.split()[i]) for i in (1, -1))  # means of the first and last twenty
    assert (first, last) == pytest.approx((0.7525, 0.6525), abs=1e-3)
    assert bias.split()[2][0] == "█" and len(bias.split()[2]) == 40


def test_a_step_that_takes_less_than_a_minute_longer_is_no_stall(run):
    assert "2 min left" in told(run(40, ago=59)) and "warning" not in told(run(40, ago=59))
    assert "not running" in told(run(40, ago=61)) and "no step for 61 s" in told(run(40, ago=61))


def test_how_the_machine_does_is_told(run):
    assert "16 images/s, 8 devices, 1.50 GiB; 2 min left" in told(
        run(40, devices=lambda n: 8, memory=lambda n: 3 * 2**29)
    )


@pytest.mark.faults("a log that is damaged, and looked at", lost="the damaged lines")
def test_lines_that_say_nothing_are_passed_over(run):
    folder = run(40, **{"bias/gender": lambda n: "much" if n == 3 else 0.5})
    with (folder / "log.jsonl").open("ab") as file:
        file.write(b'\n5\n{}\n\xff\xfe\n{"step": 50}\n')
    os.utime(folder / "log.jsonl", (NOW,) * 2)
    (folder / "validation.jsonl").write_text('{"step": 1}\n{"step": 2, "distance": 0.1, "warnings": 5}\n')
    text = told(folder)
    assert "step 40 of 100" in text and "bias/gender" in text and "validation" not in text


def test_looks_on_the_way_are_told_with_what_has_collapsed(run):
    folder, row = run(40), {"faces": 1.0, "similarity": 0.9, "diversity": 1.0}
    looks = [
        row | {"step": 20, "distance": 0.3, "warnings": []},
        row | {"step": 40, "distance": 0.1, "warnings": ["x"]},
    ]
    (folder / "validation.jsonl").write_text("".join(json.dumps(look) + "\n" for look in looks))
    text = told(folder)
    assert "validation: distance     0.300 █▃ 0.100  (the last at step 40)" in text
    assert "warning: validation at step 40: x" in text


def test_what_is_wrong_is_said(run):
    folder = run(40, ago=100, loss=lambda n: None if n % 10 == 3 else 1.0, prompts_without_target=lambda n: 4)
    (folder / "checkpoints" / "damaged" / "20-0").mkdir(parents=True)
    (folder / "stalls.txt").write_text("2026-11-26 06:00:00: no step for 100 s, where one takes 2.0 s\nThread 1:\n")
    text = told(folder)
    assert "it stood still 1 time; stalls.txt says where" in text
    assert "4 steps were skipped, the last of them 34" in text and "not running" in text
    assert "of most prompts no image has a target" in text and "no step for 2 min" in text
    assert "20-0: a checkpoint that was damaged" in text and "no checkpoint yet" in text


def test_a_run_that_has_ended_or_not_begun(run):
    assert "no step taken yet" in told(run(0))
    folder = run(100, ago=10_000)
    assert "all 100 steps taken, not yet measured" in told(folder) and "warning" not in told(folder)
    (folder / "results.json").write_text("{}")
    assert "all 100 steps taken and measured" in told(folder) and "warning" not in told(folder)


def test_a_folder_without_a_run_is_one_line(tmp_path, mistake):
    assert "holds no run: no config.yaml in it" in mistake(status.main, tmp_path)


def test_of_several_runs_all_are_told_before_what_is_wrong_with_some(run, capsys):
    folder = run(40)
    asked = [str(path) for path in (folder / "none", folder, folder / "nothing", folder)]
    assert status.main(asked) == 2
    told = capsys.readouterr()
    assert told.out.count("step 40 of 100") == 2 and not told.out.startswith("\n")
    assert told.err.startswith("error: ") and told.err.count("\n") == 1 and told.err.count("holds no run") == 2


def test_a_file_server_whose_clock_is_ahead_is_of_now(run):
    folder = run(40, ago=-3600)
    (folder / "checkpoints" / "40").mkdir(parents=True)
    (folder / "checkpoints" / "40" / SUMS).touch()
    os.utime(folder / "checkpoints" / "40", (NOW + 3600,) * 2)
    assert "last checkpoint: step 40, 0 s ago" in told(folder) and "warning" not in told(folder)


def test_it_answers_without_jax(run):
    folder = run(3)
    code = (
        f"import sys; from fairjax import status; status.main(['{folder}']); "
        "assert 'jax' not in sys.modules and 'numpy' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 0 and "step 3 of 100" in shown.stdout, shown.stderr


def test_who_reads_no_further_hears_no_more(run):
    """`| head`: the end of the pipe that is read is closed."""
    run(40)
    for unbuffered in ("", "1"):  # it is written at the end, or line by line
        for asked in (["-m", "fairjax.status", str(run(40))], ["-m", "fairjax.status", "--help"]):
            reading, writing = os.pipe()
            os.close(reading)
            environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
            ended = subprocess.run(
                [sys.executable, *asked], stdout=writing, stderr=subprocess.PIPE, env=environment, check=False
            )
            os.close(writing)
            assert ended.stderr == b"" and ended.returncode in (0, 1)


def test_a_mistake_is_told_though_nobody_reads_what_was_printed_before_it():
    said = "from fairjax.program import UserError, command\ndef main(argv): print(3); raise UserError('wrong')\n"
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-c", f"{said}raise SystemExit(command(main)([]))"],
        stdout=writing, stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": ""},
    )  # fmt: skip
    os.close(writing)
    assert ended.stderr == b"error: wrong\n" and ended.returncode == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_of_the_output_will_do(run, encoding):
    asked = [sys.executable, "-m", "fairjax.status", str(run(40))]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    told = subprocess.run(asked, capture_output=True, env=environment, check=True).stdout.decode(encoding)
    (loss,) = (line for line in told.splitlines() if line.startswith("loss"))
    assert ("█" in loss) == (encoding == "utf-8") and ("8877" in loss) == (encoding != "utf-8")


def test_curves_are_means_of_parts():
    assert status.curve([0, 1]) == "▁█" and status.curve([1] * 100, 10) == "█" * 10
    assert status.curve([0] * 50 + [4] * 50, 4) == "▁▁██" and status.curve([0.0, 0.0]) == "▁▁"


def test_what_a_terminal_would_obey_is_escaped(run, capsys):
    """Of a folder that somebody else made."""
    folder = run(3)
    obeyed = "\x1b]52;c;ZXZpbA==\x07"
    row = {"step": 3, "distance": 0.1, "warnings": [f"{obeyed}\u202e"]}
    (folder / "validation.jsonl").write_text(json.dumps(row))
    (folder / "checkpoints" / "damaged" / "\x1b[2J").mkdir(parents=True)
    assert status.main([str(folder)]) == 0
    shown = capsys.readouterr().out
    assert all(line.isprintable() for line in shown.splitlines())
    assert "validation at step 3: \\x1b]52;c;ZXZpbA==\\x07\\u202e" in shown
