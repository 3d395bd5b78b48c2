"""Training classifiers of faces on the user's own pictures: labels, faces, balance, and what is held out."""

import csv
import dataclasses
import json

import datasets
import jax
import numpy as np
import pyarrow.parquet
import pytest
import skimage.data
import yaml
from PIL import EpsImagePlugin, Image
from rich.console import Console

from fairjax import parallel
from fairjax.convert import pickles
from fairjax.faces import (
    bank,
    chips,
    classifier_training,
    detection,
    labelled,
    learning,
    reading,
    train_classifier,
)
from fairjax.faces import classifier as classifiers
from fairjax.faces.classifier import Classifier
from fairjax.fairness.losses import normalise
from fairjax.models.functional import to_pixels
from fairjax.models.mobilenet import MobileNetV3Config, Row
from fairjax.portraits import world
from fairjax.training.fit import Fit

MAPPING = {name: {value: (value,) for value in classes} for name, classes in world.ATTRIBUTES.items()}
TINY = (Row(3, 16, 16, False, False, 2),)


def write_folder(folder, pictures, rows):
    """An image folder as `datasets` has it: pictures, and metadata.csv beside them."""
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:04d}.png")
    with open(folder / "metadata.csv", "w", newline="") as file:
        table = csv.DictWriter(file, ["file_name", *rows[0]])
        table.writeheader()
        table.writerows({"file_name": f"{number:04d}.png", **row} for number, row in enumerate(rows))
    return folder


@pytest.fixture(scope="module")
def portraits(tmp_path_factory):
    """Portraits with people in them, as a user's pictures."""
    drawn = world.render_many(range(240), 5, biased=False)
    shown = np.flatnonzero(drawn["face"])
    rows = [{name: world.ATTRIBUTES[name][drawn[name][i]] for name in MAPPING} for i in shown]
    return write_folder(tmp_path_factory.mktemp("data") / "portraits", drawn["image"][shown], rows)


def plain(count, size=8):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def test_fairface_labels_become_the_papers_classes(tmp_path):
    told = [
        ("Male", "White", "more than 70", (1, 0, 1)),
        ("Female", "Middle Eastern", "0-2", (0, 0, 0)),
        ("Female", "Latino_Hispanic", "30-39", (0, 0, 0)),
        ("Male", "Black", "40-49", (1, 1, 1)),
        ("Male", "Indian", "3-9", (1, 2, 0)),
        ("Female", "East Asian", "60-69", (0, 3, 1)),
        ("Female", "Southeast Asian", "20-29", (0, 3, 0)),
        ("", "unheard of", "", (-1, -1, -1)),
    ]
    rows = [dict(zip(("gender", "race", "age"), row[:3], strict=True)) for row in told]
    folder = tmp_path / "faces"
    write_folder(folder / "train", plain(8), rows)
    write_folder(folder / "validation", plain(3), rows[:3])
    trained, held_out = labelled.read(str(folder))
    assert trained.classes == {
        "gender": ("female", "male"),
        "race": ("WMELH", "Black", "Indian", "Asian"),
        "age": ("young", "old"),
    }
    for name, column in zip(trained.classes, zip(*[row[3] for row in told], strict=True), strict=True):
        assert trained.labels[name].tolist() == list(column)
    assert len(held_out) == 3 and held_out.labels["age"].tolist() == [1, 0, 0]
    np.testing.assert_array_equal(np.asarray(trained.picture(4)), plain(8)[4])


def test_fairface_classes_are_those_of_the_released_classifiers():
    from fairjax.faces.released import HEADS

    assert {name: tuple(classes) for name, classes in labelled.FAIRFACE.items()} == HEADS


def test_folders_are_classes_and_a_tenth_is_held_out(tmp_path):
    for name in ("cats", "dogs"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number, picture in enumerate(plain(20)):
            Image.fromarray(picture).save(tmp_path / "pets" / name / f"{name}{number}.png")
    trained, held_out = labelled.read(str(tmp_path / "pets"))
    assert trained.classes == {"label": ("cats", "dogs")} and (len(trained), len(held_out)) == (36, 4)
    assert sorted([*trained.labels["label"], *held_out.labels["label"]]) == [0] * 20 + [1] * 20


@pytest.mark.parametrize("slip", ["a name", "a link"])
def test_pictures_that_would_not_be_read_are_told(tmp_path, slip):
    for name in ("cats", "dogs", "hens"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number, picture in enumerate(plain(4)):
            Image.fromarray(picture).save(tmp_path / "pets" / name / f"{number}.png")
    if slip == "a name":
        for name in ("cats", "dogs"):
            (tmp_path / "pets" / name / "0.png").rename(tmp_path / "pets" / name / "in a train station.png")
    else:
        (tmp_path / "pets" / "dogs").rename(tmp_path / "dogs")
        (tmp_path / "pets" / "dogs").symlink_to(tmp_path / "dogs")
    count = 2 if slip == "a name" else 8
    for read in (labelled.read, labelled.read_together):
        with pytest.raises(ValueError, match=f"pets has 12 pictures, of which {count} would be read: "):
            read(str(tmp_path / "pets"))


@pytest.mark.parametrize(("few", "held"), [(1, 0), (2, 1), (14, 1), (30, 3)])
def test_of_each_class_a_tenth_is_held_out_and_none_is_lost(tmp_path, few, held):
    """Of a class of one picture that one is trained on."""
    rows = [{"label": "m"}] * 20 + [{"label": "f"}] * few + [{"label": ""}] * 3  # what is left blank is no class
    trained, held_out = labelled.read(str(write_folder(tmp_path / "faces", plain(len(rows)), rows)))
    assert trained.classes == held_out.classes == {"label": ("f", "m")}
    counts = [[int((part.labels["label"] == number).sum()) for number in (0, 1)] for part in (trained, held_out)]
    assert counts == [[few - held, 18], [held, 2]]
    assert len(trained) + len(held_out) == len(rows)


def test_a_single_class_is_one_line(tmp_path):
    folder = write_folder(tmp_path / "faces", plain(4), [{"label": "f"}] * 4)
    with pytest.raises(ValueError, match="has a single class of label, 'f': two are needed$"):
        labelled.read(str(folder))
    folder = write_folder(tmp_path / "blank", plain(4), [{"label": ""}] * 4)
    with pytest.raises(
        ValueError, match="no labels that are known; its columns are image, label: map them by --labels$"
    ):
        labelled.read(str(folder))
    assert labelled.read_together(str(folder)).labels == {}  # which need not be known


def test_a_mapping_says_what_values_mean(portraits, tmp_path):
    path = tmp_path / "labels.yaml"
    path.write_text("skin_tone: {lighter: [light, medium], darker: deep}\n")
    trained, held_out = labelled.read(str(portraits), mapping=labelled.read_mapping(path))
    assert trained.classes == {"skin_tone": ("lighter", "darker")}
    shares = [np.mean(trained.labels["skin_tone"] == number) for number in (-1, 0, 1)]
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=0.1)  # drawn evenly from four tones


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "names no attribute"),
        ("gender: {female: [f]}", "gender has not two classes or more"),
        ("gender: {female: [f], male: [f]}", "gender has 'f' in more than one place"),
        ("gender: {", "not valid YAML"),
    ],
)
def test_a_mapping_that_says_nothing_is_refused(text, message, tmp_path):
    path = tmp_path / "labels.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{path}.*{message}"):
        labelled.read_mapping(path)


def test_pictures_without_labels_are_refused_by_their_columns(tmp_path):
    folder = write_folder(tmp_path / "faces", plain(4), [{"mood": "happy"}] * 4)
    with pytest.raises(ValueError, match="no labels that are known; its columns are image, mood: map them"):
        labelled.read(str(folder))
    with pytest.raises(ValueError, match="no column 'gender'; its columns are image, mood"):
        labelled.read(str(folder), mapping={"gender": {"female": ("f",), "male": ("m",)}})
    with pytest.raises(ValueError, match=r"none of mood's values \('happy'\) is one of sad, angry: map them"):
        labelled.read(str(folder), mapping={"mood": {"sad": ("sad",), "angry": ("angry",)}})
    with pytest.raises(ValueError, match=f"'{tmp_path}/nowhere': no such file or folder"):
        labelled.read(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["face", "occupation"])
def test_an_attribute_is_not_called_what_judges_take_for_something_else(tmp_path, name):
    """Pictures of the first class of "face" would all count as without a face."""
    folder = write_folder(tmp_path / "faces", plain(4), [{name: value} for value in ("round", "oval") * 2])
    with pytest.raises(ValueError, match=f"no attribute can be called '{name}'"):
        labelled.read(str(folder), mapping={name: {"round": ("round",), "oval": ("oval",)}})


@pytest.mark.parametrize("value", ["None", "NA", "Long"])
def test_a_class_without_a_picture_is_refused(tmp_path, value):
    """A slip in its letters, or a word that a CSV's reader takes for a blank."""
    folder = write_folder(tmp_path / "faces", plain(6), [{"beard": beard} for beard in ("None", "NA", "long") * 2])
    mapping = {"beard": {"some": ("long",), "other": (value,)}}
    with pytest.raises(ValueError, match=f"of beard's class 'other': '{value}' is none of its values .*'long'"):
        labelled.read(str(folder), mapping=mapping)


def test_rare_classes_count_as_much_as_common_ones():
    labels = np.array([0] * 6 + [1] * 3 + [2] * 1 + [-1] * 5)
    weights = learning.balance(labels, 4)
    np.testing.assert_allclose(weights[:3] * (6, 3, 1), 10 / 3, rtol=1e-6)  # each class as much, 10 in all
    assert weights[3] == 0  # no example, no weight, and no division by zero


def test_the_balanced_loss_is_the_mean_of_the_classes_means():
    """Of images whose logits are given: with 6, 3 and 1 of three classes, and one without a label."""

    class Given:
        heads = {"kind": ("a", "b", "c")}
        parts = staticmethod(lambda: {"kind": slice(0, 3)})

        class network:
            apply = staticmethod(lambda params, images, method: (images.reshape(-1, 3), {}))

    rng, labels = np.random.default_rng(0), np.array([0] * 6 + [1] * 3 + [2, -1])
    logits = rng.normal(size=(11, 1, 1, 3)).astype(np.float32)
    loss, _ = learning.classification(Given(), None, {"kind": labels}, 11, 0, balanced=True)
    total, _ = loss({}, {"images": logits, "labels": {"kind": labels}}, jax.random.key(0))
    errors = -np.log(np.exp(logits[:, 0, 0]) / np.exp(logits[:, 0, 0]).sum(1, keepdims=True))
    expected = np.mean([errors[labels == kind, kind].mean() for kind in range(3)])
    assert float(total) == pytest.approx(expected, rel=1e-5)


def test_the_adversary_moves_each_picture_as_far_as_it_may_to_a_larger_loss():
    images, uphill = np.random.default_rng(0).normal(size=(2, 4, 6, 6, 3)).astype(np.float32)
    moved = learning.against(lambda x: (uphill * x).sum(), jax.numpy.asarray(images), 0.5, jax.random.key(0)) - images
    np.testing.assert_allclose(np.sqrt((moved**2).sum((1, 2, 3))), 0.5, rtol=1e-4)
    assert ((uphill * moved).sum((1, 2, 3)) > 0).all()


def test_faces_are_cut_out_of_photographs_and_missing_ones_are_told(tmp_path, monkeypatch):
    """Photographs of different sizes, one of them larger than the canvas: the same face, in the same place."""
    monkeypatch.setattr(chips, "_BATCH", 3)  # so that the last one is not full
    photo = skimage.data.astronaut()
    larger = np.asarray(Image.fromarray(photo).resize((1024, 1024)))
    nobody = np.full((100, 300, 3), 90, np.uint8)
    pictures = [photo, larger, nobody, photo[:400]]
    folder = tmp_path / "faces"
    write_folder(folder / "train", pictures, [{"gender": g} for g in ("Female", "Female", "Male", "Female")])
    write_folder(folder / "test", pictures[:1], [{"gender": "Female"}])
    trained, _ = labelled.read(str(folder))
    find = chips.finder("blazeface", 48)
    images, found = chips.cut_out(trained, find, chips.cropped(find, 48), tmp_path / "work" / "train.npy")
    assert found.tolist() == [True, True, False, True] and images.shape == (4, 48, 48, 3)
    assert np.abs(images[0].astype(int) - images[1]).mean() < 6
    assert np.abs(images[0].astype(int) - images[3]).mean() < 12  # the box has moved by a pixel or two
    expected = Image.fromarray(photo).crop((130, 33, 319, 222)).resize((48, 48), Image.Resampling.BILINEAR)
    assert np.abs(images[0].astype(int) - np.asarray(expected)).mean() < 4  # twice as large as the face's box
    assert found.sum() == 3 and np.load(tmp_path / "work" / "train.npy").shape == (4, 48, 48, 3)

    monkeypatch.setattr(chips, "squares", lambda *how: pytest.fail("cut out again"))
    told = []
    again = chips.cut_out(trained, find, chips.cropped(find, 48), tmp_path / "work" / "train.npy", told.append)
    np.testing.assert_array_equal(again[0], images)
    np.testing.assert_array_equal(again[1], found)
    assert told == [4]
    monkeypatch.undo()
    turned = dataclasses.replace(trained, table=trained.table.select([3, 2, 1, 0]))  # others have other labels
    assert chips.cut_out(turned, find, chips.cropped(find, 48), tmp_path / "work" / "train.npy")[1].tolist() == [
        True, False, True, True
    ]  # fmt: skip


def test_a_classifier_learns_the_portraits_from_an_image_folder(portraits, tmp_path, monkeypatch):
    """From 200 drawings, in 500 steps: on those held out better than guessing, and on disk as told."""
    alone = parallel.mesh(1)  # for which is compiled faster than for eight
    monkeypatch.setattr(parallel, "mesh", lambda: alone)
    quiet = Console(quiet=True)
    trained, held_out = labelled.read(str(portraits), mapping={name: MAPPING[name] for name in ("gender", "skin_tone")})
    find = chips.finder("whole", 16)
    parts = [
        classifier_training.faces(name, pictures, find, 16, tmp_path, quiet)
        for name, pictures in (("train", trained), ("held_out", held_out))
    ]
    plan = Fit(steps=500, batch_size=16, learning_rate=1e-2, ema=0.9, save_every=1_000)
    config = MobileNetV3Config(TINY, 32, 6, 8)
    matrices = classifier_training.train("classifier", tmp_path, *parts, config, plan, 0, 0.0, quiet)
    assert {name: matrix.sum() for name, matrix in matrices.items()} == {"gender": len(held_out)} | {
        "skin_tone": len(held_out)
    }
    assert classifiers.recall(matrices["skin_tone"]).mean() > 0.5  # from five seeds 0.575 to 0.66: a face counts 0.05
    told = json.loads((tmp_path / "classifier" / "held_out.json").read_text())
    assert told["skin_tone"]["rows_are_labels"] == matrices["skin_tone"].tolist()
    assert told["gender"]["classes"] == ["female", "male"]
    classifier, params = classifiers.load(tmp_path / "classifier")
    again = classifier_training.confusion(classifier, jax.tree.map(np.asarray, params), parts[1])
    np.testing.assert_array_equal(again["skin_tone"], matrices["skin_tone"])


@pytest.mark.slow
def test_the_command_trains_one_to_follow_and_one_to_measure(portraits, tmp_path):
    """Two folders that a configuration can name, from two seeds, each with what it takes for what."""
    (tmp_path / "labels.yaml").write_text(
        yaml.safe_dump({"gender": {name: list(values) for name, values in MAPPING["gender"].items()}})
    )
    asked = ["--dataset", str(portraits), "--labels", str(tmp_path / "labels.yaml"), "--detector", "whole"]
    how = ["--network", "small", "--size", "32", "--steps", "2", "--batch-size", "8"]
    assert train_classifier.main([*asked, *how, "--output", str(tmp_path / "run")]) == 0
    read = [classifiers.load(tmp_path / "run" / name) for name in ("classifier", "classifier_eval")]
    first, second = (np.asarray(params["features"][0]["0"]["kernel"]) for _, params in read)
    assert np.abs(first - second).max() > 0.01
    for name in ("classifier", "classifier_eval"):
        told = json.loads((tmp_path / "run" / name / "held_out.json").read_text())
        assert told["gender"]["classes"] == ["female", "male"] and np.sum(told["gender"]["rows_are_labels"]) > 10


def test_statistics_taken_anew_are_those_of_the_weights():
    """Taken from one batch, the classifier says of it what it says in training, but for n - 1 in place of n."""
    classifier = Classifier.make(MobileNetV3Config(TINY, 8, 2, 8), {"kind": ("a", "b")}, 16)
    params = classifier.network.init(jax.random.key(0))
    images = np.random.default_rng(0).normal(0.3, 2, (16, 64, 64, 3)).astype(np.float32)  # n is 4,096 at least
    infer = jax.jit(classifier.network.apply)
    trained = jax.jit(lambda params, images: classifier.network.apply(params, images, method="train")[0])(
        params, images
    )
    assert np.abs(trained - infer(params, images)).max() > 0.01
    restated = learning.restated(classifier, params, [images, images])  # twice the same: the mean is the same
    np.testing.assert_allclose(infer(restated, images), trained, atol=3e-4)


def test_a_confusion_matrix_counts_what_each_class_is_taken_for():
    """By a classifier that says how bright a picture is; more pictures than a batch, some without a label or a face."""
    classifier = Classifier.make(MobileNetV3Config(TINY, 8, 2, 8), {"light": ("dark", "bright")}, 4)

    class Bright(Classifier):
        def logits(self, params, images):
            mean = images.mean((1, 2, 3))
            return {"light": jax.numpy.stack([-mean, mean], 1)}

    bright = Bright(classifier.network, classifier.config, classifier.heads, 4)
    images = np.repeat(np.array([10, 240] * 5, np.uint8)[:, None, None, None], 12, 0)[:, :, :, [0, 0, 0]]
    images = np.broadcast_to(images, (len(images), 4, 4, 3))
    rng = np.random.default_rng(0)
    labels, places = rng.integers(-1, 2, len(images)), np.flatnonzero(rng.random(len(images)) < 0.8)
    found = classifier_training.Chips(images, {"light": labels}, classifier.heads, places)
    guesses = (images[:, 0, 0, 0] > 127).astype(int)
    expected = [[((labels == row) & (guesses == column))[places].sum() for column in (0, 1)] for row in (0, 1)]
    assert classifier_training.confusion(bright, {}, found, batch_size=16)["light"].tolist() == expected
    assert sum(map(sum, expected)) > 40


def test_a_picture_that_cannot_be_read_is_told_by_its_file(tmp_path):
    folder = write_folder(tmp_path / "faces", plain(4, 64), [{"label": label} for label in "abab"])
    path = folder / "0003.png"
    path.write_bytes(path.read_bytes()[:3000])  # begins as one, and ends too early
    pictures = labelled.read_together(str(folder))
    with pytest.raises(ValueError, match=f"^{path} cannot be read: image file is truncated"):
        next(chips.squares(pictures, chips.finder("whole", 16)))


def test_varied_faces_are_the_faces_that_were_found():
    images = np.stack([np.full((16, 16, 3), shade, np.uint8) for shade in (0, 60, 120, 180, 240)])
    pixels = classifier_training.varied(images, np.array([1, 3]))
    drawn = pixels(np.array([0, 1, 0]), np.random.default_rng(0))
    assert drawn.shape == (3, 16, 16, 3) and drawn.dtype == np.float32
    np.testing.assert_allclose(drawn.mean((1, 2, 3)), to_pixels(np.array([60, 180, 60])), atol=0.3)
    np.testing.assert_array_equal(drawn, pixels(np.array([0, 1, 0]), np.random.default_rng(0)))
    assert np.abs(drawn[0] - drawn[2]).mean() > 0.01


def test_mistakes_are_one_line(portraits, tmp_path, mistake):
    def told(*arguments):
        error = mistake(train_classifier.main, *arguments, "--output", tmp_path / "run")
        assert not (tmp_path / "run").exists()
        return error

    assert "the following arguments are required: --data" in told()
    assert "--steps = 0 must be at least 1" in told("--data", portraits, "--steps", 0)
    assert "--learning-rate = nan must be above 0" in told("--data", portraits, "--learning-rate", "nan")
    assert "--adversary = -1.0 must be a distance" in told("--data", portraits, "--adversary", -1)
    assert "--batch-size = 12 must be a multiple of the 8 devices" in told("--data", portraits, "--batch-size", 12)
    assert "detector = 'eyes' must be one of blazeface" in told("--data", portraits, "--detector", "eyes")
    assert f"--data: '{tmp_path}/Nowhere': no such file" in told("--data", tmp_path / "Nowhere", "--detector", "whole")
    assert "none of gender's values" in told("--data", portraits, "--detector", "whole")
    assert f"--labels: {tmp_path}/x.yaml does not exist" in told("--data", portraits, "--labels", tmp_path / "x.yaml")


def test_a_bank_of_faces_is_what_finetuning_reads(tmp_path, capsys, monkeypatch):
    """Of three photographs two show a face: their embeddings are the judge's own, and their classes are known."""
    monkeypatch.setattr(chips, "_BATCH", 2)
    small = Classifier.make(MobileNetV3Config(TINY, 8, 12, 8), {"identity": tuple(map(str, range(12)))}, 24)
    classifiers.save(small, small.network.init(jax.random.key(0)), tmp_path / "embedding")
    photo = skimage.data.astronaut()
    pictures = [photo, np.full((90, 90, 3), 200, np.uint8), photo[:, ::-1]]
    rows = [{"gender": gender, "race": race} for gender, race in (("Female", "White"), ("Male", ""), ("", "Indian"))]
    folder, output = write_folder(tmp_path / "Faces", pictures, rows), tmp_path / "banks" / "faces.safetensors"
    face = ("--face", str(tmp_path / "embedding"), "--output", str(output))
    assert bank.main(["--data", str(folder), *face]) == 0
    assert "wrote 2 faces of 3 pictures" in capsys.readouterr().out
    found = pickles.read_bank(output)
    assert found["gender"].tolist() == [0, -1] and found["race"].tolist() == [0, 2]
    embedding, params = reading.face(str(tmp_path / "embedding"))
    detector, weights = detection.load()
    images = to_pixels(np.stack(pictures[0:3:2]))
    expected = jax.jit(embedding.embed)(params, images, jax.jit(detector.locate)(weights, images))
    cosines = (found["embeddings"] * normalise(expected)).sum(1)
    np.testing.assert_allclose(cosines, 1, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(found["embeddings"], axis=1), 1, rtol=1e-5)


def test_mistakes_about_a_bank_are_one_line(tmp_path, mistake):
    folder = write_folder(tmp_path / "faces", plain(2), [{"mood": "happy"}] * 2)

    def told(*arguments, output="bank.safetensors", face="portraits/face_embedding"):
        return mistake(bank.main, *arguments, "--face", face, "--output", tmp_path / output)

    assert "must end in .safetensors" in told("--data", folder, output="bank.npy")
    assert "--num = 0 must be at least 1" in told("--data", folder, "--num", 0)
    assert "--face: judges.face = 'no.pth': no such file" in told("--data", folder, face="no.pth")
    assert "--data: " in told("--data", tmp_path / "Nowhere", "--detector", "whole")
    assert not (tmp_path / "bank.safetensors").exists()


def test_a_run_of_other_labels_is_not_gone_on_with(portraits, tmp_path, mistake, monkeypatch):
    """Of the same file, which now says otherwise: what was learned would be called by the other's name."""
    path, output = tmp_path / "labels.yaml", tmp_path / "run"
    asked = ("--data", portraits, "--labels", path, "--detector", "whole", "--batch-size", 8, "--output", output)

    def killed(*arguments):
        raise ValueError("killed")

    monkeypatch.setattr(classifier_training, "faces", killed)
    path.write_text("gender: {female: [female], male: [male]}\n")
    assert "killed" in mistake(train_classifier.main, *asked)
    assert "killed" in mistake(train_classifier.main, *asked)  # the same is gone on with
    path.write_text("gender: {female: [male], male: [female]}\n")
    assert f"{output} holds a run with what is labelled = " in mistake(train_classifier.main, *asked)


def test_a_run_of_other_settings_is_not_gone_on_with(tmp_path):
    classifier_training.begin(tmp_path, {"data": "a", "steps": "5"})
    classifier_training.begin(tmp_path, {"data": "a", "steps": "5"})
    with pytest.raises(ValueError, match=f"{tmp_path} holds a run with steps = 5, not 6: choose another folder"):
        classifier_training.begin(tmp_path, {"data": "a", "steps": "6"})
    (tmp_path / "classifier_eval").mkdir()
    with pytest.raises(ValueError, match="holds classifiers already"):
        classifier_training.begin(tmp_path, {"data": "a", "steps": "5"})


def test_a_program_in_an_image_folder_is_not_run(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "faces", plain(2, 64), [{"label": label} for label in "ab"])
    monkeypatch.setattr(EpsImagePlugin, "has_ghostscript", lambda: pytest.fail("it would be run"))
    (folder / "0001.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match="0001.png cannot be read: cannot identify image file"):
        next(chips.squares(labelled.read_together(str(folder)), chips.finder("whole", 16)))


def test_a_table_does_not_have_pictures_of_elsewhere_read(tmp_path):
    Image.fromarray(plain(1)[0]).save(tmp_path / "mine.png")
    places = str(tmp_path / "mine.png"), "hf://datasets/somebody/else/a.png", "https://somewhere.example/a.png"
    rows = [{"image": {"bytes": None, "path": place}, "label": "a"} for place in places]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    (tmp_path / "faces").mkdir()
    table = pyarrow.Table.from_pylist(rows, features.arrow_schema)
    pyarrow.parquet.write_table(table, tmp_path / "faces" / "train.parquet")
    with pytest.raises(ValueError, match="some of its pictures are only paths, to files that are not read"):
        labelled.read_together(str(tmp_path / "faces"))


def test_names_of_classes_are_no_commands_to_a_terminal(capsys):
    classes = {"[/b]": ("[red]", "\x1b[2J")}
    classifier_training.show("eval", {"[/b]": np.eye(2, dtype=int)}, classes, Console(highlight=False, width=200))
    shown = capsys.readouterr().out
    assert "[/b]" in shown and "[red]" in shown and "\\x1b[2J" in shown and "\x1b" not in shown
