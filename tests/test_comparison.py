"""The results of a comparison, by hand; and what the marked grid shows where."""

import errno
import hashlib
import io
import json
import re
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import datasets
import jax
import numpy as np
import pytest
from rich.console import Console

from fairjax.config import Experiment
from fairjax.evaluation import data, grid, plots, run, summary
from fairjax.evaluation.columns import Column, Setting, Studio
from fairjax.evaluation.comparison import Comparison, Measured, Networks
from fairjax.evaluation.measuring import Seen, classify
from fairjax.evaluation.run import names, with_sweep
from fairjax.evaluation.scores import intervals
from fairjax.faces.classifier import Classifier
from fairjax.faces.judges import Judge
from fairjax.faces.located import FixedBox
from fairjax.fairness.attributes import Attribute, Target
from fairjax.fairness.intervals import corrected_interval
from fairjax.fairness.metrics import fair_floor
from fairjax.models.functional import to_pixels
from fairjax.models.mobilenet import MobileNetV3Config, Row
from fairjax.portraits import world
from fairjax.prompts import Prompt
from fairjax.schema import load

HEADS = {
    "gender": ("female", "male"),
    "age": ("young", "old"),
    "occupation": ("chef", "pilot"),
    "face": ("absent", "present"),
}
EVEN_GENDER = Target(("gender",), (0.5, 0.5))
PROMPTS = [Prompt("a chef", "chef", False), Prompt("a pilot", "pilot", True)]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    config = MobileNetV3Config((Row(3, 16, 16, False, False, 1),), 8, 8)
    judge = Judge(FixedBox(), (Classifier.make(config, HEADS, 8),), None)
    target = Target(("gender", "age"), (0.375, 0.125, 0.375, 0.125), {"pilot": (0.5, 0, 0.5, 0)})
    config = load(Experiment, None, {"evaluation.images_per_prompt": 4})
    pipeline, run = SimpleNamespace(revision="abc", digest="d1"), tmp_path_factory.mktemp("run")
    networks = Networks(revisions={"clip": "def"})
    return Comparison(pipeline, judge, {}, target, PROMPTS, config, run, networks=networks)


def one_hot(labels):
    return np.eye(2)[np.array(labels)]


SEEN = Seen(
    {
        "gender": one_hot([[0, 1, 1, 1], [0, 0, 1, 1]]),
        "age": one_hot([[0, 0, 0, 0], [0, 1, 1, 1]]),
    },
    np.array([[True, True, True, True], [True, True, True, False]]),
    np.array([[0, 0, 0, 1], [1, 1, 1, 1]]),
    np.tile(np.array([2.0, 1.0, 6.0, 7.0]), (2, 4, 1)),
)


def test_the_results_are_what_counting_gives(comparison):
    means = comparison._means(comparison._by_prompt(SEEN))
    trained, held_out = means["trained"], means["held_out"]
    assert trained["gender"]["bias"] == pytest.approx(0.5)  # 1 of 4 against 3 of 4
    assert trained["gender"]["frequencies"] == {"female": 0.25, "male": 0.75}
    assert trained["age"]["bias"] == pytest.approx(1)
    assert trained["age"]["total_variation"] == pytest.approx(0.25)  # wished is 75% young
    assert trained["gender x age"]["frequencies"]["male young"] == pytest.approx(0.75)
    assert trained["recognised"] == 0.75 and trained["no_face"] == 0
    # without the image that shows no face: 2 women, 1 man
    assert held_out["gender"]["bias"] == pytest.approx(1 / 3)
    assert held_out["no_face"] == 0.25 and held_out["recognised"] == 1
    # its own target: all young, of which one of three is
    assert held_out["age"]["total_variation"] == pytest.approx(2 / 3)


def test_intervals_and_what_stays_are_of_the_prompts_of_their_kind(comparison):
    """The pilot's target is all young; images of the chef are of four kinds and those of the pilot of two."""
    entries = comparison._by_prompt(SEEN)
    own = intervals(comparison.scoring, entries[1:], comparison.wished[1:])["age"]["total_variation_interval"]
    assert comparison._means(entries)["held_out"]["age"]["total_variation_interval"] == own
    embedded = {"a": np.eye(4)[[[0, 1, 2, 3], [0, 0, 0, 1]]]}
    kept = comparison._preserved("a", {"before": Measured(SEEN, embedded, {})}, PROMPTS, comparison._rows())
    # the chef's three young men differ; of the pilot's two women, one young and one old, none is like another
    assert kept["trained"]["diversity"] == {"before": pytest.approx(1)}
    assert kept["held_out"]["diversity"] == {"before": None}


def test_shares_are_corrected_by_the_errors_of_the_judge(comparison, monkeypatch):
    """By kind of prompts and over all of their images, of attributes whose errors are known and of no others."""
    errors = np.array([[60, 40], [10, 90]])
    monkeypatch.setattr(comparison, "errors", {"gender": errors, "skin_tone": np.eye(4)})
    means = comparison._means(comparison._by_prompt(SEEN))
    for kind, counts in (("trained", [1, 3]), ("held_out", [2, 1])):  # women and men, as they are seen
        found = np.array([means[kind]["gender"]["corrected"][label] for label in HEADS["gender"]])
        np.testing.assert_allclose(found.T, corrected_interval(counts, errors, np.random.default_rng(0)))
        assert "corrected" not in means[kind]["age"] and "skin_tone" not in means[kind]
    # of 30 women and 70 men it takes 18 and 7 for women
    assert means["trained"]["gender"]["corrected"]["female"][0] == pytest.approx(0.3, abs=1e-3)
    assert means["trained"]["gender"]["frequencies"]["female"] == 0.25


def test_the_table_marks_what_is_to_change_and_measures_it_by_its_own_target(comparison, capsys):
    shown = dict.fromkeys((0, 1), np.zeros((4, 64, 64, 3), np.uint8))
    comparison.columns = {name: Column(name, {}) for name in ("before", "after")}
    comparison.measured = dict.fromkeys(comparison.columns, Measured(SEEN, {}, shown))
    results = comparison.finish(Console(width=120), {"steps": 3})
    *single, trained, held_out = plots.frequencies(results, comparison.attributes)
    assert len(single) == 4 and trained.title == "gender x age, trained prompts"
    assert trained.attribute.classes == ("female young", "female old", "male young", "male old")
    assert trained.wished == [0.375, 0.125, 0.375, 0.125] and held_out.wished == [0.5, 0, 0.5, 0]
    assert trained.bars[1].shares == [0.25, 0, 0.75, 0] and all(trained.bars[1].intervals)
    assert (comparison.folder / "report.html").read_text().count("female old") >= 4
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    # 4 images: |b - 2| / 2 on average, which is 0.375; and 3, which is 0.5
    assert ["gender", "*", "0.44", "0.50", "0.50", "0.33", "0.33"] in rows
    assert ["age", "0.44", "1.00", "1.00", "0.33", "0.33"] in rows  # no star: even is not what is wished
    assert ["age:", "distance", "to", "the", "target", "*", "0.16", "0.25", "0.25", "0.67", "0.67"] in rows
    below_gender = rows[rows.index(["gender", "*", "0.44", "0.50", "0.50", "0.33", "0.33"]) + 1]
    assert len(below_gender) == 4 and all(re.fullmatch(r"\d\.\d\d–\d\.\d\d", cell) for cell in below_gender)
    results = json.loads((comparison.folder / "results.json").read_text())
    assert results["steps"] == 3 and results["model"] == "portraits" and results["revision"] == "abc"
    assert results["network_revisions"] == {"clip": "def"}
    assert results["weights"] == {"model": "d1", "judge": hashlib.sha256().hexdigest()}  # a judge without any
    assert results["config"]["evaluation"]["images_per_prompt"] == 4
    assert results["fair_floor"]["gender x age"] == pytest.approx((fair_floor(4, 4) + fair_floor(3, 4)) / 2)
    assert results["per_prompt"][1]["before"]["gender"]["bias"] == pytest.approx(1 / 3)
    assert results["targets"]["age"] == pytest.approx({"young": (0.75 + 1) / 2, "old": 0.125})
    low, high = results["before"]["trained"]["gender"]["bias_interval"]
    assert low < 0.5 < high and results["before"]["trained"]["gender"]["bias_without_floor"] < 0.5
    page = (comparison.folder / "report.html").read_text()
    assert "a pilot (held out)" in page and page.count("<img") == 2 * 2 * 4


def test_many_models_are_shown_in_tables_that_fit_each_beside_the_base(comparison, capsys):
    names = ["before", *(f"after: a-longer-name-{i}" for i in range(7))]
    shown = dict.fromkeys((0, 1), np.zeros((4, 64, 64, 3), np.uint8))
    comparison.columns = {name: Column(name, {}) for name in names}
    comparison.measured = dict.fromkeys(names, Measured(SEEN, {}, shown))
    comparison.finish(Console(width=80), {})
    told = capsys.readouterr().out
    assert "\N{HORIZONTAL ELLIPSIS}" not in told  # nothing is cut off
    rows = [line.replace("│", " ").split() for line in told.splitlines()]
    assert rows.count(["gender", "*", "0.44", "0.50", "0.50", "0.50"]) == 3  # the base and two of seven
    assert rows.count(["gender", "*", "0.44", "0.50", "0.50"]) == 1  # the base and the seventh
    assert rows.count(["gender", "*", "0.44", "0.33", "0.33", "0.33"]) == 3  # and the same held out
    assert "".join(told.split()).count("before") == 8


@pytest.mark.parametrize("width", [40, 60, 80])
def test_no_number_is_cut_off_however_narrow_the_terminal_is(comparison, capsys, width):
    shown = dict.fromkeys((0, 1), np.zeros((4, 64, 64, 3), np.uint8))
    comparison.columns = {name: Column(name, {}) for name in ("before", "after")}
    comparison.measured = dict.fromkeys(comparison.columns, Measured(SEEN, {}, shown))
    comparison.finish(Console(width=width), {})
    told = capsys.readouterr().out
    assert "\N{HORIZONTAL ELLIPSIS}" not in told
    rows = [line.replace("│", " ").split() for line in told.splitlines()]
    trained, held_out = ["0.50", "0.50"], ["0.33", "0.33"]
    for cells in [[*trained, *held_out]] if width == 80 else [trained, held_out]:
        assert ["gender", "*", "0.44", *cells] in rows


def test_what_an_evaluation_replaces_is_told(tmp_path, capsys):
    config, about = load(Experiment, None), {"adapter": "runs/one", "command": "python eval.py --adapter runs/one"}

    def told(config, **about):
        run._tell_what_is_replaced(tmp_path, config, {"adapter": "runs/one"} | about, Console(width=80))
        return capsys.readouterr().out

    assert told(config) == ""
    (tmp_path / "results.json").write_text("[]")
    assert told(config) == ""
    (tmp_path / "results.json").write_text(json.dumps(about | {"config": config.model_dump(mode="json")}))
    assert told(config) == ""
    line = (
        f"{tmp_path} holds an earlier evaluation, which this one replaces (--output keeps both): {about['command']}\n"
    )
    assert told(config, adapter="runs/two") == line
    assert told(load(Experiment, None, {"evaluation.num_steps": 3})) == line


@pytest.mark.faults("a full disk, drawing the picture")
def test_a_picture_that_is_half_written_does_not_take_the_place_of_the_one_before(comparison, monkeypatch):
    def save(path, kind):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    picture = comparison.folder / "before_after.png"
    picture.write_bytes(b"whole")
    comparison.columns, comparison.measured = {"before": Column("before", {})}, {"before": Measured(SEEN, {}, {})}
    monkeypatch.setattr(comparison, "_picture", lambda: SimpleNamespace(save=save))
    with pytest.raises(OSError) as refused:
        comparison.finish(Console(quiet=True), {})
    assert refused.value.filename == str(picture) and picture.read_bytes() == b"whole"


def test_the_images_are_a_dataset_with_what_was_predicted(comparison):
    images = np.random.default_rng(0).integers(0, 255, (2, 4, 8, 8, 3)).astype(np.uint8)
    adapter = Column("after", {"unet": {"layer": {"down": np.ones((2, 1)), "up": np.zeros((1, 2))}}})
    comparison.columns = {"before": Column("before", {}), "after": adapter}
    comparison.measured = dict.fromkeys(comparison.columns, Measured(SEEN, {}, {}))
    comparison.studio = SimpleNamespace(images=lambda *how: iter([images[:1], images[1:]]))  # a prompt at a time
    comparison.keep_data()
    rows = datasets.load_dataset(str(comparison.folder / "data"), split="train", cache_dir=str(comparison.folder / "c"))
    assert len(rows) == 16 and set(rows["model"]) == {"before", "after"}
    assert len(list((comparison.folder / "data").glob("*.parquet"))) == 2  # small sets are not in pieces
    row = next(r for r in rows if r["model"] == "after" and r["prompt"] == "a pilot" and r["number"] == 2)
    np.testing.assert_array_equal(np.asarray(row["image"]), images[1, 2])
    assert rows.features["gender"].int2str(row["gender"]) == "male" and row["gender_probs"] == [0, 1]
    assert (row["adapter"], row["seed"], row["held_out"], row["has_face"]) == (adapter.digest, 1000, True, True)
    assert row["box"] == [2, 1, 6, 7] and row["solver"] == "dpm-solver++"


def test_the_dataset_of_a_second_evaluation_holds_nothing_of_the_first(comparison, tmp_path, monkeypatch):
    """With fewer models and prompts: `load_dataset` reads every file that there is. Files of others stay."""
    images = np.zeros((2, 4, 8, 8, 3), np.uint8)
    monkeypatch.setattr(data, "_SHARD", 4)  # a prompt fills a file
    monkeypatch.setattr(comparison, "folder", tmp_path)
    for models, prompts in ((("before", "after", "asked: <even>"), 2), (("before", "after"), 1)):
        monkeypatch.setattr(comparison, "columns", {name: Column(name, {}) for name in models})
        monkeypatch.setattr(comparison, "measured", dict.fromkeys(models, Measured(SEEN, {}, {})))
        made = [images[place : place + 1] for place in range(prompts)]
        monkeypatch.setattr(comparison, "studio", SimpleNamespace(images=lambda *how, made=made: iter(made)))
        comparison.keep_data()
        if prompts == 2:
            (tmp_path / "data" / "README.md").write_text("mine")
            assert len(list((tmp_path / "data").glob("*.parquet"))) == 6
            both = datasets.load_dataset(str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "both"))
            base = [[row for row in both if (row["prompt"], row["model"]) == (p.text, "before")] for p in PROMPTS]
            ages = [[row["age"] for row in rows] for rows in base]
            assert ages == SEEN.probs["age"].argmax(-1).tolist()  # each picture's own
            assert [row["has_face"] for row in base[1]] == [True, True, True, False]
    rows = datasets.load_dataset(str(tmp_path / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 8 and set(rows["model"]) == {"before", "after"} and set(rows["prompt"]) == {"a chef"}
    assert (tmp_path / "data" / "README.md").read_text() == "mine"


class Painter:
    """Stands for a pipeline: paints how often it was asked, the prompt's place and the image's number."""

    def __init__(self):
        self.asked, self.digest, self.dtype, self.image_size = [], "d1", "float32", (32, 32)

    def draw(self, texts, rows, *, first, batch_size, bundle, **how):
        self.asked.append((first, tuple(texts)))
        self.how = how
        for start in range(0, len(rows), batch_size):
            painted = [(len(self.asked), first + place, number) for place, number in rows[start : start + batch_size]]
            yield np.broadcast_to(np.array(painted, np.uint8)[:, None, None], (len(painted), 32, 32, 3))

    def images_at_once(self, count, **how):
        return count


def test_images_are_kept_for_the_same_weights_and_settings_only(comparison, tmp_path):
    """Pictures of an earlier adapter, or of another model in the same folder, must not be measured for those of now."""
    painter, told = Painter(), []
    (classifier,) = comparison.judge.classifiers
    params = {"locator": {}, "classifiers": [classifier.network.init(jax.random.key(0))]}

    def asked(bundle, **evaluation):
        section = {"images_per_prompt": 2, "batch_size": 2} | evaluation
        config = load(Experiment, None, {f"evaluation.{name}": value for name, value in section.items()})
        again = Comparison(painter, comparison.judge, params, EVEN_GENDER, PROMPTS, config, tmp_path)
        before = len(painter.asked)
        again.measure(Column("after", bundle), told.append)
        return painter.asked[before:]

    adapter = {"unet": {"layer": {"down": np.ones((2, 1)), "up": np.zeros((1, 2))}}}
    changed = {"unet": {"layer": {"down": np.ones((2, 1)), "up": np.full((1, 2), 1e-6)}}}
    both = [(0, ("a chef", "a pilot"))]
    assert asked(adapter) == both and asked(adapter) == []
    (tmp_path / "samples" / "after-0001.npz").unlink()  # killed before the second prompt
    assert asked(adapter) == [(1, ("a pilot",))]
    assert asked(changed) == both and asked(changed) == []
    painter.digest = "d2"
    assert asked(changed) == both and asked(changed) == asked(changed, batch_size=4) == []
    painter.dtype = "bfloat16"
    assert asked(changed) == both
    for setting in ({"seed": 7}, {"num_steps": 3}, {"guidance_scale": 2.0}, {"solver": "ddim"}):
        assert asked(changed, **setting) == both, setting
    assert sum(told) == 4 * 13  # kept or made, every image is counted


def test_what_is_seen_of_each_picture_is_what_the_judge_says_of_it(comparison):
    """Pictures of one colour each, no multiple of the devices."""
    judge, colours = comparison.judge, np.random.default_rng(0).integers(0, 256, (3, 5, 1, 1, 3), np.uint8)
    images = np.tile(colours, (1, 1, 8, 8, 1))
    params = {"locator": {}, "classifiers": [judge.classifiers[0].network.init(jax.random.key(0))]}
    seen, said = classify(judge, params, images), judge.look(params, to_pixels(images.reshape(15, 8, 8, 3)))
    things = np.asarray(said.recognised).argmax(1)
    assert set(things) == {0, 1} and seen.recognised.ravel().tolist() == things.tolist()
    assert seen.has_face.ravel().tolist() == said.has_face.tolist()
    np.testing.assert_allclose(seen.probs["age"].reshape(15, 2), said.probs["age"], atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 20, None])
def test_prompts_that_are_not_kept_are_made_together_whatever_is_kept_between_them(batch_size, tmp_path):
    """Each prompt's images are its own, in order, however many are made at once; those of others stay untouched."""
    section = {"evaluation.images_per_prompt": 4, "evaluation.batch_size": batch_size}
    studio = Studio(Painter(), load(Experiment, None, section).evaluation, tmp_path)
    prompts, told = ["a", "b", "c", "d", "e"], []
    everything = lambda: np.concatenate([  # noqa: E731
        *studio.images(Column("before", {}), prompts, Setting(3, 1.0, "ddim"), told.append)
    ])  # fmt: skip
    whole = everything()
    for place in (0, 2, 3):
        (tmp_path / "samples" / f"before-000{place}.npz").unlink()
    again = everything()
    assert studio.pipeline.asked == [(0, tuple("abcde")), (0, ("a",)), (2, ("c", "d"))] and sum(told) == 2 * 5 * 4
    for images, calls in ((whole, [1] * 5), (again, [2, 1, 3, 3, 1])):
        expected = [[(call, place, number) for number in range(4)] for place, call in enumerate(calls)]
        np.testing.assert_array_equal(images[:, :, 0, 0], expected)
    studio.pipeline.images_at_once = lambda *what, **how: pytest.fail("asked though all is kept")
    np.testing.assert_array_equal(everything(), again)


def test_who_is_told_of_a_batch_finds_what_is_whole_kept(tmp_path):
    """What asks an evaluation to end there: of what was made, only the beginning of a prompt is made again."""
    section = {"evaluation.images_per_prompt": 4, "evaluation.batch_size": 6}
    studio = Studio(Painter(), load(Experiment, None, section).evaluation, tmp_path)
    kept = []
    studio_images = studio.images(
        Column("before", {}), ["a", "b", "c"], Setting(3, 1.0, "ddim"),
        lambda images: kept.append(len(list((tmp_path / "samples").glob("*.npz")))),
    )  # fmt: skip
    assert sum(map(len, studio_images)) == 3 and kept == [1, 3]


@pytest.mark.faults("a damaged file of images", count=5)
def test_damaged_images_are_made_again(tmp_path, capsys):
    """Whatever happened to a file: the evaluation goes on, says so, and measures what it would have."""
    painter, column, texts = Painter(), Column("before", {}), ["a chef"]
    studio = Studio(painter, load(Experiment, None, {"evaluation.images_per_prompt": 2}).evaluation, tmp_path)
    made = lambda: next(studio.images(column, texts, Setting(3, 1.0, "ddim"), lambda count: None))  # noqa: E731
    whole = made()
    (path,) = (tmp_path / "samples").iterdir()
    content = path.read_bytes()
    middle = len(content) // 3
    array = io.BytesIO()
    np.save(array, whole)
    damaged = (
        b"", content[:middle], content[:middle] + bytes(40) + content[middle + 40 :], array.getvalue(), b"[]" * 99
    )  # fmt: skip
    for number, bad in enumerate(damaged, 2):
        path.write_bytes(bad)
        np.testing.assert_array_equal(made()[..., 0], number)
        assert f"warning: {path} is damaged (" in capsys.readouterr().err
        np.testing.assert_array_equal(made()[..., 0], number)  # and kept, whole
    assert not capsys.readouterr().err


@pytest.mark.faults("a bomb in a file of images")
def test_of_a_file_of_images_no_more_is_unpacked_than_they_are(tmp_path, capsys):
    """A stranger's folder of results may be gone on with: its labels are read, too."""
    painter, column = Painter(), Column("before", {})
    studio = Studio(painter, load(Experiment, None, {"evaluation.images_per_prompt": 2}).evaluation, tmp_path)
    made = lambda: list(studio.images(column, ["a", "b"], Setting(3, 1.0, "ddim"), lambda count: None))  # noqa: E731
    whole = np.concatenate(made())
    first, second = sorted((tmp_path / "samples").iterdir())
    np.savez_compressed(first, images=np.zeros((2**13, 32, 32, 3), np.uint8), made_by=np.load(first)["made_by"])
    np.savez_compressed(second, images=whole[1], made_by=np.full(2**23, "a"))
    tracemalloc.start()
    np.testing.assert_array_equal(np.concatenate(made())[:, :, 0, 0, 1:], whole[:, :, 0, 0, 1:])
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()
    error = capsys.readouterr().err  # another's label is no damage
    assert error.count("\n") == 1 and f"{first} is damaged (there is something else in it than its images)" in error


def test_other_words_and_settings_and_prompts_of_nobody_start_from_the_same_noise(comparison, tmp_path):
    """Noise is of a prompt's place: the same in every column and setting, another for what asks for nobody."""
    painter, (classifier,) = Painter(), comparison.judge.classifiers
    params = {"locator": {}, "classifiers": [classifier.network.init(jax.random.key(0))]}
    config = load(Experiment, None, {"evaluation.images_per_prompt": 2, "evaluation.batch_size": 4})
    nobody = [Prompt("an empty room", "", False)]
    again = Comparison(
        painter, comparison.judge, params, EVEN_GENDER, PROMPTS, config, tmp_path, nobody=nobody
    )  # fmt: skip
    told = []
    again.measure(Column("before", {}), told.append)
    again.measure(Column("asked: <even>/..", {}, "{prompt}, {prompt} evenly"), told.append)
    assert sum(told) == 2 * again.num_images == 2 * 3 * 2
    again.sweep([Setting(3, 1.0, "ddim")], told.append)
    assert {name: painter.how[name] for name in Setting._fields} == Setting(3, 1.0, "ddim")._asdict()
    of_nobody = classify(again.judge, again.params, np.load(tmp_path / "samples" / "before-0002.npz")["images"][None])
    jax.tree.map(np.testing.assert_array_equal, again.measured_nobody["before"].seen, of_nobody)
    plain, empty = ("a chef", "a pilot"), ("an empty room",)
    words, no_words = ("a chef, a chef evenly", "a pilot, a pilot evenly"), ("an empty room, an empty room evenly",)
    assert painter.asked == [(0, (*plain, *empty)), (0, (*words, *no_words)), (0, plain), (0, words)]
    names = {path.name for path in (tmp_path / "samples").iterdir()}
    assert len(names) == 10 and all(re.fullmatch(r"[A-Za-z0-9_.+-]+\.npz", name) for name in names)
    (swept,) = again.swept
    assert (swept["num_steps"], swept["solver"]) == (3, "ddim") and set(swept["columns"]) == set(again.columns)
    told_of_nobody = again._about_nobody()
    assert set(again.measured_nobody) == set(again.columns) and told_of_nobody["prompts"] == ["an empty room"]
    assert told_of_nobody["faces"]["before"] == of_nobody.has_face.mean() != 0.5


def test_adapters_are_called_by_their_runs_and_told_apart():
    assert names([Path("runs/a")]) == ["after"]
    several = [Path("runs/a/adapter"), Path("runs/b"), Path("other/b"), Path("x/b"), Path("runs/a/best")]
    assert names(several) == ["after: a", "after: b", "after: b (2)", "after: b (3)", "after: a (best)"]


def test_the_usual_sweep_turns_one_thing_at_a_time():
    config = load(Experiment, None, {"training.guidance_scale": 7.5})
    usual = Setting.of(config)
    settings = [Setting.of(config, otherwise) for otherwise in with_sweep(config).evaluation.sweep]
    assert all(sum(a != b for a, b in zip(usual, setting, strict=True)) == 1 for setting in settings)
    assert {setting.guidance_scale for setting in settings} == {3, 5, 7.5, 10, 12}
    assert {setting.num_steps for setting in settings} == {12, 15, 50} and "ddim" in {s.solver for s in settings}
    own = load(Experiment, None, {"evaluation.sweep": ({"num_steps": 4},)})
    assert with_sweep(own) is own


def test_a_model_that_is_used_without_guidance_is_swept_over_smaller_scales():
    """As the embedded one, whose pictures fall apart at those that Stable Diffusion wants."""
    config = load(Experiment, None)
    settings = [Setting.of(config, otherwise) for otherwise in with_sweep(config).evaluation.sweep]
    assert Setting.of(config).guidance_scale == 1
    assert [setting.guidance_scale for setting in settings] == [1.5, 2, 3, 1, 1, 1]
    assert [setting.num_steps for setting in settings] == [12, 12, 12, 15, 50, 12]
    assert [setting.solver for setting in settings] == ["dpm-solver++"] * 5 + ["ddim"]


def test_subjects_that_the_classifier_does_not_know_are_not_called_unrecognised(comparison):
    prompts, comparison.prompts = comparison.prompts, [Prompt("a king", "king", False)] * 2
    try:
        assert comparison._recognised(SEEN) is None
    finally:
        comparison.prompts = prompts


def test_a_bar_tells_class_and_confidence():
    attributes = (Attribute("gender", ("female", "male")),)
    images = np.full((1, 2, 64, 64, 3), 128, np.uint8)
    probs = {"gender": np.array([[[0.5, 0.5], [0.0, 1.0]]])}
    side = grid.Side("before", images, probs, np.array([[True, False]]))
    sheet = np.asarray(grid.marked([side, side], ["a chef"], attributes))
    colour = tuple(int(grid.palette(0, ("a", "b"))[0][i : i + 2], 16) for i in (1, 3, 5))
    rows, columns = np.nonzero((sheet == colour).all(-1))
    bars = rows < sheet.shape[0] - 2 * grid._TITLE  # the legend stands below
    # the first image of each side has a bar of half the height; the one without a face has none
    assert np.ptp(rows[bars]) + 1 == pytest.approx(grid._BAR / 2, abs=1.5)
    left = np.unique(columns[bars])
    assert left.min() < grid._MARGIN + 128 and left.max() > sheet.shape[1] // 2
    assert len(left) == pytest.approx(2 * 126, abs=6)


def test_any_number_of_classes_has_colours_of_its_own():
    for number in range(4):
        assert grid.palette(number, "ab") == grid.palette(number, "abcd")[:2]
        tones = grid.palette(number, world.ATTRIBUTES["skin_tone"])
        assert tones[0] == "#F5D5B5" and not set(tones) & set(
            grid.palette(number, ("WMELH", "Black", "Asian", "Indian"))
        )
        for count in (1, 2, 4, 5, 9, 40):
            colours = grid.palette(number, ["a"] * count)
            assert len(set(colours)) == count and all(re.fullmatch("#[0-9A-F]{6}", colour) for colour in colours)


def test_a_plain_grid_has_every_image_in_its_place():
    images = [np.full((4, 4, 3), value, np.uint8) for value in (0, 100, 200)]
    sheet = np.asarray(grid.image_grid(images, columns=2))
    assert sheet.shape == (16, 16, 3)
    # the resampling rings at edges
    assert [int(sheet[y, x, 0]) for y, x in ((1, 1), (1, 14), (14, 1))] == pytest.approx([0, 100, 200], abs=4)
    assert (sheet[14, 14] > 250).all()


def write_results(folder, content):
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(content | {"columns": dict.fromkeys(content)}))


def test_a_summary_has_what_there_is(tmp_path, capsys):
    """Several adapters of one evaluation, other words, no held-out prompts, prompts without a face."""
    moment = {"gender": {"bias": None, "frequencies": {"female": None, "male": None}}, "recognised": None}
    better = {"gender": {"bias": 0.25, "frequencies": {"female": 0.5, "male": 0.5}}, "recognised": None}
    columns = {"after: a-0": better, "after: a-1": better, "asked: even": better}
    content = {"before": moment} | columns
    write_results(tmp_path / "both", {name: {"trained": found} for name, found in content.items()})
    write_results(tmp_path / "b" / "evaluation-3-best", {"before": {"trained": moment}, "after": {"trained": better}})
    assert summary.main([str(tmp_path / "both"), str(tmp_path / "b" / "evaluation-3-best")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| | | trained, before | trained, after |"
    assert "recognised" not in "".join(lines)  # nobody was to be
    assert [line for line in lines if "bias" in line] == [
        f"| {name} | bias: gender | - | 0.25{seeds} |"
        for name, seeds in (
            ("a (2 seeds)", " (0.25 to 0.25)"), ("asked: even (1 seed)", ""), ("b (best) (1 seed)", ""),
        )
    ]  # fmt: skip


def test_a_summary_tells_the_distance_to_a_target_that_is_not_even():
    """Its bias is no measure of success: where nine in ten are to be women, it is 0.8 when all is well."""

    def shown(women, distance):
        shares = {"female": women, "male": 1 - women}
        return {"gender": {"bias": abs(2 * women - 1), "frequencies": shares, "total_variation": distance}}

    measured = {"before": {"held_out": shown(0.5, 0.4)}, "after": {"held_out": shown(0.9, 0.02)}}
    lines = summary.table({"run": [measured | {"even": {"gender": False}}]}).splitlines()
    assert "| run (1 seed) | distance to the target: gender | 0.40 | 0.02 |" in lines and "bias" not in "".join(lines)


def test_a_summary_of_something_else_is_one_line(tmp_path, mistake):
    write_results(tmp_path / "base", {"before": {"trained": {}}})
    write_results(tmp_path / "odd", {"before": {"trained": {"gender": 3}}, "after": {}})
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "results.json").write_text('{"before')
    assert "only the base model was measured" in mistake(summary.main, tmp_path / "base")
    assert "odd/results.json is not what an evaluation measures" in mistake(summary.main, tmp_path / "odd")
    assert "cut/results.json is not JSON" in mistake(summary.main, tmp_path / "cut")
    assert "--nme" in mistake(summary.main, tmp_path, "--nme", "x")


def test_a_summary_gives_the_mean_and_range_over_seeds_of_a_configuration(tmp_path, capsys):
    def results(gender, light):
        moment = {
            "gender": {"bias": gender, "frequencies": {"female": gender, "male": 1 - gender}, "total_variation": 0.1},
            "skin_tone": {"bias": 0.1, "frequencies": {"light": light, "deep": 1 - light}},
            "recognised": 0.99,
        }
        return {"trained": moment, "held_out": moment}

    for seed, after in ((0, 0.1), (1, 0.3)):
        content = {"before": results(0.6, 0.5), "after": results(after, 0.5 + after)}
        write_results(tmp_path / f"gender-{seed}" / "evaluation-1000", content)
    folders = [str(path) for path in sorted(tmp_path.glob("*/evaluation-1000"))]
    assert summary.main(folders) == 0
    table = capsys.readouterr().out
    assert "| gender (2 seeds) | bias: gender | 0.60 (0.60 to 0.60) | 0.20 (0.10 to 0.30) |" in table
    assert "| largest move of a class share that is no target | 0.00 (0.00 to 0.00) | 0.20 (0.10 to 0.30) |" in table
    assert "99.0%" in table
    assert summary.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
