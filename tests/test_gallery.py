"""Images of prompts: written as they are made, not made again by who made them, whole whatever happens."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from devices import flags
from PIL import Image
from small_world import fields

from fairjax import gallery, generate
from fairjax.config import Experiment
from fairjax.convert.bundles import save_adapter
from fairjax.pipeline import Pipeline
from fairjax.schema import dump, load

pytestmark = pytest.mark.usefixtures("read_once")


@pytest.fixture
def asked(monkeypatch):
    """Stands for the making of images, two at a time: what was asked for, call by call."""
    calls = []

    def draw(self, prompts, rows, *, seed, **how):
        assert len(rows)  # of none there is no last one, to fill up a batch with
        calls.append([tuple(map(int, row)) for row in rows])
        shown = 10 * rows[:, 0] + rows[:, 1] + seed
        for start in range(0, len(rows), 2):
            yield np.tile(shown[start : start + 2, None, None, None], (1, 8, 8, 3)).astype(np.uint8)

    monkeypatch.setattr(Pipeline, "draw", draw)
    return calls


def pixels(folder):
    return {path.name: np.asarray(Image.open(path)) for path in folder.glob("*-before.png")}


def test_only_what_is_not_there_is_made(asked, small_world, tmp_path, capsys):
    def made(*more):
        argv = ["a chef", "a pilot", "--num", "3", "--model", str(small_world), "--output", str(tmp_path), *more]
        asked.clear()
        assert generate.main(argv) == 0
        return asked[-1] if asked else [], re.search(r"^wrote (.*) to \S+?(, .*)?$", capsys.readouterr().out)[2]

    everything = [(place, number) for place in range(2) for number in range(3)]
    assert made() == (everything, None) and made() == ([], ", which had 6 of them already")
    cut, other = tmp_path / "00-a-chef-002-before.png", tmp_path / "01-a-pilot-000-before.png"
    cut.write_bytes(cut.read_bytes()[:-20])
    Image.fromarray(np.zeros((8, 8, 3), "uint8")).save(other)  # somebody else's
    assert made() == ([(0, 2), (1, 0)], ", which had 4 of them already")
    assert made("--num", "4")[0] == [(0, 3), (1, 3)]
    assert made("--seed", "1") == (everything, ", beside 2 that were there")  # of another seed, as they may be
    (tmp_path / "notes.png").write_bytes(b"somebody else's")
    assert made("--seed", "1") == ([], ", which had 6 of them already, beside 2 that were there")
    assert made("--num", "4")[1] == ", which had 2 of them already"
    assert made("--seed", "1")[0] == made("--steps", "3", "--seed", "1")[0] == made("--solver", "ddim")[0] == everything
    assert all((image == 10 * int(name[:2]) + int(name[-14:-11])).all() for name, image in pixels(tmp_path).items())
    assert np.asarray(Image.open(tmp_path / "grid.png")).shape == (2 * 2 * 8, 2 * 3 * 8, 3)


def test_an_adapter_is_sampled_at_the_guidance_of_its_run(small_world, tmp_path, monkeypatch):
    pipeline, heard = Pipeline.from_pretrained(str(small_world)), []

    def draw(self, prompts, rows, *, guidance_scale, **how):
        heard.append(guidance_scale)
        yield np.zeros((len(rows), 8, 8, 3), "uint8")

    monkeypatch.setattr(Pipeline, "draw", draw)
    run, bundle = tmp_path / "run", {"soft_prompt": {"embedding": np.zeros((5, 16), np.float32)}}
    save_adapter(bundle, pipeline, run / "adapter")
    config = load(Experiment, None, fields(small_world) | {"training.guidance_scale": 3.5})
    (run / "config.yaml").write_text(dump(config))
    argv = ["a chef", "--num", "1", "--adapter", str(run), "--output", str(tmp_path / "images")]
    assert generate.main(argv) == generate.main([*argv, "--guidance", "2"]) == 0
    assert heard == [3.5, 3.5, 2, 2]  # without the adapter, and with it


@pytest.mark.faults("a generation ended between two images", lost="the images under way")
def test_images_are_written_as_they_are_made(asked, small_world, tmp_path, monkeypatch):
    keep, written = gallery._keep, []

    def ended(path, *arguments):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        keep(path, *arguments)

    argv = ["a chef", "--num", "5", "--model", str(small_world), "--output", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(gallery, "_keep", ended)
        assert generate.main(argv) == 130
    assert sorted(tmp_path.iterdir()) == written
    assert generate.main(argv) == 0 and asked[-1] == [(0, 3), (0, 4)]


def test_a_grid_shows_no_more_than_fits(asked, small_world, tmp_path):
    """However many images there are, they are not all in memory."""
    prompts = [f"a chef {number}" for number in range(20)]
    assert generate.main([*prompts, "--num", "18", "--model", str(small_world), "--output", str(tmp_path)]) == 0
    assert len(pixels(tmp_path)) == 20 * 18 and Image.open(tmp_path / "grid.png").size == (2 * 16 * 8, 2 * 16 * 8)


@pytest.mark.slow
@pytest.mark.faults("a generation killed", lost="the images under way")
def test_a_killed_generation_goes_on_to_the_same_images(small_world, tmp_path):
    def launched(folder, *how):
        argv = ["a chef", "a pilot", "--num", "150", "--steps", "2", "--model", small_world, "--output", folder]
        command = [sys.executable, *how, *map(str, argv)]
        return subprocess.Popen(command, env=os.environ | {"XLA_FLAGS": flags(2)}, stdout=subprocess.PIPE, text=True)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    by_itself = ("tests/signalled.py", "SIGKILL", "fairjax.gallery:_keep", "70", "fairjax/generate.py")
    launched(killed, *by_itself).communicate()
    left = {path.name: path.stat().st_mtime_ns for path in killed.glob("*.png")}
    assert 70 <= len(left) < 300
    for folder, told in ((killed, f"wrote {300 - len(left)} images"), (whole, "wrote 300 images")):
        process = launched(folder, "-m", "fairjax.generate")
        assert process.communicate(timeout=300)[0].startswith(told) and process.returncode == 0
    assert all((killed / name).stat().st_mtime_ns == when for name, when in left.items())
    wished, found = pixels(whole), pixels(killed)
    assert wished.keys() == found.keys() and len(wished) == 300
    for name, image in wished.items():
        assert np.abs(image.astype(int) - found[name]).max() <= 1, name  # rounding to bytes
