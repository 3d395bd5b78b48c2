"""The report: one page that needs nothing else, read by a browser, on a phone and by a screen reader."""

import io
import itertools
import json
import re
from pathlib import Path

import browsing
import numpy as np
import pytest
from PIL import Image
from skimage import color

from fairjax.evaluation import figures, grid, plots, report
from fairjax.fairness.attributes import Attribute

HERE = Path(__file__).parent
ROOT = HERE.parent
ATTRIBUTES = (
    Attribute("gender", ("female", "male")),
    Attribute("skin_tone", ("light", "medium", "tan", "deep")),
    Attribute("age", ("young", '<i class="x">old')),
)
GENDER, TONE, AGE = ATTRIBUTES
EVIL = '<script>document.title = "taken over"</script> & "quoted"'
COLUMNS = ("before", "after", EVIL)
KINDS = ("trained", "held_out")
PRESERVED = {
    "similarity": {"after": 0.873, EVIL: 0.5},
    "diversity": {"before": 0.1, "after": None, EVIL: 0.2},
    "frechet": {"after": 0.0123, EVIL: None},
    "frechet_floor": 0.001,
    "alignment": dict.fromkeys(COLUMNS, 0.3),
}
DIFFERENCE = {
    "first": "before", "second": EVIL, "kind": "held_out", "of": "skin_tone", "measure": "bias", "value": -0.2,
    "low": -0.3, "high": -0.1, "p_value": 0.0001,
}  # fmt: skip
PROMPTS = [EVIL, *(f"a person who works as a maker of number {i}, seen from quite far away" for i in range(11))]
HELD_OUT = 7
"""The first prompt that is held out."""

SECTIONS = {
    "numbers": "Numbers", "differences": "Differences", "prompts": "By prompt", "settings": "Other settings",
    "classes": "Classes", "pictures": "Pictures", "training": "Training", "made": "How this was made",
    "limits": "Limits",
}  # fmt: skip


def entry(rng, attribute):
    shares = rng.dirichlet(np.ones(len(attribute.classes)))
    found = {
        "bias": float(np.abs(shares[:, None] - shares).mean()), "bias_interval": [-0.1, 0.3],
        "fair_bias": {"gender": 0.1, "skin_tone": 0.07, "age": 0.1}.get(attribute.name, 0.1),
        "bias_without_floor": 0.2, "bias_without_floor_interval": [0.05, 0.3],
        "frequencies": dict(zip(attribute.classes, map(float, shares), strict=True)),
        "frequencies_interval": {label: [0.05, 0.95] for label in attribute.classes},
    }  # fmt: skip
    if attribute is AGE:
        return found
    return found | {
        "total_variation": float(rng.uniform(0.1, 0.9)), "total_variation_interval": [0.15, 0.65],
        "fair_total_variation": 0.05, "total_variation_without_floor": 0.11, "divergence": None,
        "total_variation_without_floor_interval": [0.01, 0.21], "fair_divergence": 0.02,
    }  # fmt: skip


def scores(rng):
    return {a.name: entry(rng, a) for a in ATTRIBUTES} | {"recognised": 0.9, "no_face": 0.01, "low_confidence": 0.1}


def measured(rng):
    return {name: {kind: scores(rng) for kind in KINDS} for name in COLUMNS}


def wished(index):
    """Every prompt its own share of women; tones even."""
    women = 0.2 + 0.05 * index
    return {"gender": {"female": women, "male": 1 - women}, "skin_tone": dict.fromkeys(TONE.classes, 0.25)}


@pytest.fixture
def results():
    rng = np.random.default_rng(0)
    found = {
        "model": "portraits", "adapter": f"runs/{EVIL}", "images_per_prompt": 64, "classifiers": [EVIL],
        "num_steps": 12, "detector": EVIL, "solver": "ddim", "guidance_scale": 1.0, "evaluation_seed": 1,
        "versions": {EVIL: EVIL},
        "command": "python eval.py --adapter 'a folder; rm -rf /'",
        "weights": {"model": "0" * 64, EVIL: "f" * 64},
        "columns": {name: {"words": "{prompt}" if name != EVIL else EVIL} for name in COLUMNS},
        **measured(rng),
        "paired": [DIFFERENCE, DIFFERENCE | {"measure": "total_variation", "low": None, "p_value": None}],
        "nobody": {"prompts": [EVIL], "faces": dict.fromkeys(COLUMNS, 0.01), "preservation": {"clip": PRESERVED}},
        "sweep": [
            {"num_steps": 50, "guidance_scale": 1.0, "solver": "ddim", "columns": measured(rng)},
            {"num_steps": 12, "guidance_scale": 12.0, "solver": "ddim", "columns": measured(rng)},
        ],
        "preservation": {"image_semantics": dict.fromkeys(KINDS, PRESERVED)},
        "fair_floor": {"gender": 0.1, "skin_tone": 0.07, "age": 0.1},
        "even": {"gender": False, "skin_tone": True},
        "per_prompt": [
            {"prompt": text, "held_out": i >= HELD_OUT, "wished": wished(i)} | {name: scores(rng) for name in COLUMNS}
            for i, text in enumerate(PROMPTS)
        ],
    }  # fmt: skip
    for name in COLUMNS:
        found[name]["held_out"]["gender"]["fair_total_variation"] = 0.06
    return found


def side(name, size=64):
    """Two prompts by four pictures, of the first of which the third shows no face."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 255, (2, 4, size, size, 3)).astype(np.uint8)
    probs = {a.name: rng.dirichlet(np.ones(len(a.classes)), (2, 4)) for a in ATTRIBUTES}
    has_face = np.array([[True, True, False, True], [True] * 4])
    return grid.Side(name, images, probs, has_face, np.tile([10.0, 5.0, 40.0, 60.0], (2, 4, 1)))


@pytest.fixture
def log(tmp_path):
    rows = [{"step": step, "loss": 1 / step, "bias/gender": None if step == 3 else 0.5} for step in range(1, 80)]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 80, "lo')
    return path


@pytest.fixture
def page(tmp_path, results, log):
    sides = [grid.by_prediction(side(name, 300 if name == EVIL else 64), ["gender"], 4) for name in COLUMNS]
    curves = plots.curves({"after": log, EVIL: log})
    report.write(
        tmp_path / "report.html", results, ATTRIBUTES, sides, [EVIL, "a pilot"], "model: <portraits>\n", curves
    )
    return tmp_path / "report.html"


def test_the_page_needs_nothing_else_and_escapes_everything(page):
    html = page.read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", html) and "@import" not in html
    assert "<script" not in html and html.count("&lt;script&gt;") >= 8
    assert "<i class" not in html and html.count("&lt;i class=&#34;x&#34;&gt;old") >= 3
    assert "model: &lt;portraits&gt;" in html
    assert "eval.py --adapter &#39;a folder; rm -rf /&#39;" in html  # as a shell would have to be told
    assert [path.name for path in page.parent.iterdir() if "part" in path.name] == []


def test_a_picture_says_what_is_predicted_and_where_the_face_is():
    probs = {"gender": np.array([0.2, 0.8]), "skin_tone": np.eye(4)[3], "age": np.array([0.6, 0.4])}
    image, box = np.zeros((100, 200, 3), np.uint8), np.array([20.0, 25.0, 120.0, 150.0])
    found = report.picture(image, probs, True, box, ATTRIBUTES)
    assert found.alt == "male (80%), deep (100%), young (60%)"
    assert [(bar[1], bar[2]) for bar in found.bars] == [(0.8, "male 80%"), (1.0, "deep 100%"), (0.6, "young 60%")]
    assert found.box == pytest.approx((10, 25, 50, 75))  # in per cent, cut off at the edge
    assert report.picture(image, probs, False, box, ATTRIBUTES)[3:] == ("no face", [], None)


def test_pictures_are_sorted_by_what_is_predicted_and_spread_over_all():
    women = np.array([0.1, 0.9, 0.6, 0.3, 0.8, 0.95])
    probs = {"gender": np.stack([women, 1 - women], -1)[None], "age": np.eye(2)[[0, 0, 1, 0, 1, 0]][None]}
    images = np.arange(6, dtype=np.uint8).reshape(1, 6, 1, 1, 1).repeat(3, -1)
    has_face = np.array([[True, True, True, True, True, False]])
    pictures = grid.Side("before", images, probs, has_face, np.arange(24.0).reshape(1, 6, 4))

    def order(names, count):
        found = grid.by_prediction(pictures, names, count)
        np.testing.assert_array_equal(found.boxes[0, :, 0], found.images[0, :, 0, 0, 0] * 4.0)  # all of a picture moves
        np.testing.assert_array_equal(found.probs["gender"][0, :, 0], women[found.images[0, :, 0, 0, 0]])
        return found.images[0, :, 0, 0, 0].tolist()

    assert order(["gender"], 6) == [1, 4, 2, 0, 3, 5]  # women, then men, the surest first; no face last
    assert order(["gender", "age"], 9) == [1, 4, 2, 0, 3, 5]
    assert order(["age", "gender"], 6) == [1, 0, 3, 2, 4, 5]  # the young first, of them the woman
    assert order(["gender"], 3) == [1, 2, 5]


def test_curves_are_smoothed_and_leave_out_what_is_missing(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text(
        "\n".join(json.dumps({"step": s, "loss": float(s % 2), "bias/x": 0.25, "distance/x": 0.5}) for s in range(40))
        + '\n{"st'
    )
    found = plots.curves({"after": log, "other": log, "gone": tmp_path / "none"})
    assert list(found) == ["loss", "bias/x"] and all(list(by) == ["after", "other"] for by in found.values())
    assert list(plots.curves({"after": log}, "distance")) == ["loss", "distance/x"]
    loss, bias = found["loss"]["after"], found["bias/x"]["other"]
    assert set(loss.values) == {0.5} and (loss.steps[0], loss.steps[-1]) == (1, 39)  # means of two
    assert set(bias.values) == {0.25} and len(bias.steps) == 39
    log.write_bytes(b"5\n{}\n\xff\n" + log.read_bytes())
    again = plots.curves({"after": log})["loss"]["after"]
    np.testing.assert_array_equal(again.values, loss.values)
    log.write_text("")
    assert plots.curves({"after": log}) == {}
    drawn = report.lines("loss", {"after": loss}, ["before", "after"])
    ((name, colour, points, end),) = drawn["lines"]
    assert (name, colour, end) == ("after", grid.marks(["before", "after"])[1], "0.50")
    assert points.startswith("40.0,20.0 ") and points.endswith("460.0,20.0")


def test_each_prompt_is_held_against_what_is_wished_of_it(results):
    """The share of women, and of each prompt its own mark: one line for all would be wrong for every one of them."""
    plot = plots.dumbbell(results, GENDER)
    assert (plot.title, plot.share, plot.mark) == ("Gender: share of female", True, "wished")
    assert {row.title for row in plot.rows} == set(PROMPTS)
    for row in plot.rows:
        index = PROMPTS.index(row.title)
        assert row.marks == pytest.approx([0.2 + 0.05 * index] * 3) and row.held_out == (index >= HELD_OUT)
        told = [results["per_prompt"][index][name]["gender"]["frequencies"]["female"] for name in COLUMNS]
        assert row.values == told
    assert [row.held_out for row in plot.rows] == sorted(row.held_out for row in plot.rows)
    drawn = report.dots(plot)
    assert drawn["mark_value"] is None and len({tuple(row["lines"]) for row in drawn["rows"]}) == len(PROMPTS)
    results["per_prompt"][3]["after"]["gender"]["frequencies"]["female"] = None  # no picture of it shows a face
    assert PROMPTS[3] not in {row.title for row in plots.dumbbell(results, GENDER).rows}


def test_of_many_classes_the_distance_counts_where_the_target_is_not_even(results):
    even = plots.dumbbell(results, TONE)
    by_title = {prompt["prompt"]: prompt for prompt in results["per_prompt"]}
    assert (
        even.title == "Bias in skin tone" and not even.share and {*sum((row.marks for row in even.rows), [])} == {0.07}
    )
    assert report.dots(even)["mark_value"] == pytest.approx(0.07)
    for row in even.rows:
        assert row.values == [by_title[row.title][name]["skin_tone"]["bias"] for name in COLUMNS]
    results["even"]["skin_tone"] = False
    uneven = plots.dumbbell(results, TONE)
    assert uneven.title == "Skin tone: distance to what is wished" and {
        *sum((row.marks for row in uneven.rows), [])
    } == {0.05}
    for row in uneven.rows:
        assert row.values == [by_title[row.title][name]["skin_tone"]["total_variation"] for name in COLUMNS]


def test_the_sweep_shows_what_counts_with_its_intervals_and_its_floor(results):
    for name, what, floor, ends in (
        ("gender", "total_variation", {"trained": 0.05, "held_out": 0.06}, [0.15, 0.65]),
        ("skin_tone", "bias", {"trained": 0.07, "held_out": 0.07}, [-0.1, 0.3]),
    ):
        for kind, plot in zip(KINDS, plots.sweep(results, name), strict=True):
            assert [row.title for row in plot.rows] == ["12 steps, guidance 1.0, ddim", "50 steps", "guidance 12.0"]
            measured_at = [results, *(setting["columns"] for setting in results["sweep"])]
            for row, setting in zip(plot.rows, measured_at, strict=True):
                assert row.values == [setting[column][kind][name][what] for column in COLUMNS]
                assert row.intervals == [ends] * 3
                assert row.marks == [setting[column][kind][name]["fair_" + what] for column in COLUMNS]
            assert plot.rows[0].marks == [floor[kind]] * 3
    del results["sweep"]
    assert plots.sweep(results, "gender") == []


def test_a_model_that_shows_fewer_faces_is_held_against_a_higher_floor(results, tmp_path):
    """Of 64 pictures a fair model measures 0.10, of 16 faces 0.20: the page must not say 0.10 of both."""
    results["after"]["held_out"]["age"]["fair_bias"] = 0.196
    report.write(tmp_path / "page.html", results, ATTRIBUTES, [], [], "", {})
    told = (tmp_path / "page.html").read_text()
    assert "<td>0.10<small>trained</small>0.10 to 0.20<small>held out</small></td>" in told


def test_each_model_is_held_against_its_own_floor(results, tmp_path):
    """In plots too: from above, where models that draw fewer faces have another; one line where all have the same."""
    first, second = results["per_prompt"][:2]
    first["after"]["skin_tone"]["fair_bias"] = second[EVIL]["skin_tone"]["fair_bias"] = 0.14
    results["sweep"][0]["columns"]["after"]["held_out"]["skin_tone"]["fair_bias"] = 0.5
    plot = plots.dumbbell(results, TONE)
    by_title = {row.title: row for row in plot.rows}
    assert by_title[first["prompt"]].marks == [0.07, 0.14, 0.07]
    assert plots.marked(by_title[first["prompt"]]) == [
        (0.07, -0.5, pytest.approx(-0.1)), (0.14, pytest.approx(-0.1), pytest.approx(0.1)),
        (0.07, pytest.approx(0.1), 0.5),
    ]  # fmt: skip
    assert [mark for mark, *_ in plots.marked(by_title[second["prompt"]])] == [0.07, 0.14]
    assert plots.marked(by_title[PROMPTS[2]]) == [(0.07, -0.5, 0.5)]
    _, held_out = plots.sweep(results, "skin_tone")
    assert held_out.rows[1].marks == [0.07, 0.5, 0.07] and plots.highest(held_out) >= 0.5
    drawn = report.dots(plot)
    assert (
        drawn["mark"] == "an exactly fair model, of each model from above"
        and sum(len(row["lines"]) for row in drawn["rows"]) == len(PROMPTS) + 2 + 1
    )
    (axes,) = figures.by_prompt(plot).axes
    assert sum(line.get_linestyle() == "--" for line in axes.lines) == len(PROMPTS) + 2 + 1
    report.write(tmp_path / "page.html", results, ATTRIBUTES, [], [], "", {})
    told = (tmp_path / "page.html").read_text()
    assert told.count("an exactly fair model, of each model from above, row by row</span>") == 2
    assert "<td>0.07 to 0.14</td>" in told


def test_of_other_words_alone_nothing_is_said_of_a_finetuning(results, tmp_path):
    def told():
        report.write(tmp_path / "page.html", results, ATTRIBUTES, [], [], "", {})
        return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", (tmp_path / "page.html").read_text()))

    assert "before and after runs/" in told() and "* held out" in told()
    results["adapter"], results["nobody"]["prompts"] = "", ["a lamp"]
    for name in COLUMNS:
        del results[name]["held_out"]
    for setting in results["sweep"]:
        for found in setting["columns"].values():
            del found["held_out"]
    results["per_prompt"] = results["per_prompt"][1:2]
    page = told()
    assert "as it is and asked in other words. 1 prompt, 64 pictures" in page and "of 1 prompt such as" in page
    assert "finetuning" not in page and "held out:" not in page


def test_only_what_the_table_has_is_explained(results, tmp_path):
    def told():
        report.write(tmp_path / "page.html", results, ATTRIBUTES, [], [], "", {})
        return (tmp_path / "page.html").read_text().lower()

    assert told().count("like what is asked for") == 3  # a row of each table, and what it means
    without = {key: value for key, value in PRESERVED.items() if key != "alignment"}
    results["preservation"] = {"image_semantics": dict.fromkeys(KINDS, without)}
    assert told().count("like what is asked for") == 1
    assert "cosine of picture and prompt" not in told()


def test_the_ticks_of_a_plot_lie_where_they_say(results):
    for plot in (plots.dumbbell(results, GENDER), *plots.sweep(results, "skin_tone")):
        drawn = report.dots(plot)
        scale = report.Scale(0, 1 if plot.share else float(drawn["ticks"][-1][1]))
        for x, label in drawn["ticks"]:
            assert x == scale.x(float(label.rstrip("%")) / (100 if plot.share else 1))
    curve = plots.Curve(np.arange(3), np.array([24.148, 1.0, 0.5]))
    assert report.lines("bias/my_own", {"before": curve}, COLUMNS)["title"] == "bias: my own"
    for highest, told in ((0.7, "0.70"), (24.148, "24.1"), (312.7, "313"), (9.999, "10.0")):
        assert report.lines("loss", {"before": curve._replace(values=np.array([highest] * 3))}, COLUMNS)["high"] == told


def test_names_are_shortened_to_what_they_fill():
    assert plots.short("a chef", 6) == "a chef" and plots.short("a chemist", 6) == "a che…"
    assert plots.short("画家の顔", 8) == "画家の顔" and plots.short("画家の肖像画", 8) == "画家の…"


def test_the_target_is_measured_by_what_counts_for_it(results):
    """An uneven target is no bias to bring down: its distance is the target, with its floors and intervals."""
    main, other = plots.numbers(results)
    rows = {line.title: line for line in main}
    assert list(rows) == [
        "gender", "gender, distance to what is wished", "gender, distance to what is wished, without what chance adds",
        "skin tone", "skin tone, without what chance adds", "age",
    ]  # fmt: skip
    assert [title for title, line in rows.items() if line.target] == ["gender, distance to what is wished", "skin tone"]
    distance = rows["gender, distance to what is wished"]
    assert distance.fair == [0.05] * 3 + [0.06] * 3  # of trained and held-out prompts, whose targets differ
    entries = [results[column][kind]["gender"] for kind in KINDS for column in COLUMNS]
    assert distance.cells == [(entry["total_variation"], [0.15, 0.65]) for entry in entries]
    without = rows["gender, distance to what is wished, without what chance adds"]
    assert without.fair == [0] * 6 and set(map(str, without.cells)) == {str(plots.Cell(0.11, [0.01, 0.21]))}
    assert rows["skin tone"].fair == [0.07] * 6
    results["after"]["held_out"]["skin_tone"]["fair_bias"] = 0.14  # it shows fewer faces
    assert plots.numbers(results)[0][3].fair == [0.07] * 4 + [0.14, 0.07]
    # a divergence that is infinite everywhere has no row, one that is somewhere finite has
    assert [line.title for line in other] == [
        "skin tone, distance to what is wished", "skin tone, distance to what is wished, without what chance adds"
    ]  # fmt: skip
    results["after"]["trained"]["gender"] |= {"divergence": 0.4, "divergence_interval": [0.3, 0.5]}
    _, (divergence, *_) = plots.numbers(results)
    assert divergence.title == "gender, divergence from what is wished" and divergence.fair == [0.02] * 6
    assert divergence.cells[1] == (0.4, [0.3, 0.5]) and divergence.cells[0] == (None, None)


def test_class_bars_are_held_against_what_is_wished_of_their_kind(results):
    trained, held_out, *others = plots.frequencies(results, ATTRIBUTES)
    assert trained.wished[0] == pytest.approx(np.mean([0.2 + 0.05 * i for i in range(HELD_OUT)]))
    assert held_out.wished[0] == pytest.approx(np.mean([0.2 + 0.05 * i for i in range(HELD_OUT, len(PROMPTS))]))
    assert [plot.wished is None for plot in others] == [False, False, True, True]  # nothing is wished of ages
    assert trained.bars[1].shares == list(results["after"]["trained"]["gender"]["frequencies"].values())
    assert trained.bars[1].intervals == [[0.05, 0.95]] * 2


def test_every_plot_is_a_picture_too(tmp_path, results, log, recwarn):
    """Whatever prompts and models are called: "$" begins mathematics elsewhere, and no font has every script."""
    results["per_prompt"][0]["prompt"] = "$\\frac{a} 画家 " * 9
    figures.write(tmp_path, results, ATTRIBUTES, plots.curves({"after": log, EVIL: log}))
    names = [
        "by-prompt-gender",
        "by-prompt-skin_tone",
        "by-setting-gender",
        "by-setting-skin_tone",
        "classes",
        "training",
    ]
    left = sorted(path.name for path in tmp_path.iterdir() if path != log)
    assert left == [f"{name}.png" for name in names]
    for name in names:
        drawn = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))
        assert drawn.shape[1] == 6.5 * 200 and (drawn == 255).mean() > 0.5 and (drawn < 80).mean() > 0.005
        edges = np.concatenate([drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]])
        assert (edges == 255).all(), name  # nothing is cut off
    assert [str(warning.message) for warning in recwarn] == []
    del results["sweep"]
    earlier = tmp_path / "less" / "by-setting-gender.png"
    earlier.parent.mkdir()
    earlier.write_bytes(b"of an evaluation with a sweep")
    figures.write(tmp_path / "less", results, ATTRIBUTES, {})
    assert len(list((tmp_path / "less").iterdir())) == 3


def with_long_names(results):
    """What the results are of many classes and models, all of them with long names."""
    words = Attribute("what_somebody_of_my_own_wears_on_the_head", tuple(f"a hat of the kind {i}" for i in range(16)))
    models = {
        name: name if name == "before" else f"after: a-run-of-mine-with-a-name-{i}" for i, name in enumerate(COLUMNS)
    }
    models |= {f"more {i}": f"asked: in the words of number {i}" for i in range(5)}
    rng = np.random.default_rng(2)

    def renamed(by_column):
        found = {new: by_column.get(old, by_column["after"]) for old, new in models.items()}
        return found | {key: value for key, value in by_column.items() if key not in models}

    results = {key: value for key, value in results.items() if key not in ("paired", "nobody", "preservation")}
    results = renamed(results) | {"even": results["even"] | {words.name: True}, "sweep": []}
    results["columns"] = renamed(results["columns"])
    results["per_prompt"] = [renamed(prompt) for prompt in results["per_prompt"][6:9]]
    for found in [results[name][kind] for name in models.values() for kind in KINDS]:
        found[words.name] = entry(rng, words)
    for prompt in results["per_prompt"]:
        prompt["wished"] = prompt["wished"] | {words.name: dict.fromkeys(words.classes, 1 / 16)}
        for name in models.values():
            prompt[name] = prompt[name] | {words.name: entry(rng, words)}
    return results, (GENDER, words)


def test_long_names_leave_room_for_the_plots(results, tmp_path, recwarn):
    """Of models, attributes and classes, in any number: they take lines and an ellipsis, not the plot's place."""
    results, attributes = with_long_names(results)
    curve = plots.Curve(np.arange(9.0), np.linspace(1, 0, 9))
    names = ("loss", "bias/gender", f"bias/{attributes[1].name}")
    curves = {name: {list(results["columns"])[1]: curve} for name in names}
    figures.write(tmp_path, results, attributes, curves)
    assert [str(warning.message) for warning in recwarn] == []
    for path in tmp_path.iterdir():
        drawn = np.asarray(Image.open(path).convert("L"))
        edges = np.concatenate([drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]])
        assert (edges == 255).all(), path.name
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = figures.by_prompt(plots.dumbbell(results, GENDER))
    FigureCanvasAgg(figure).draw()
    (axes,), (legend,) = figure.axes, figure.legends
    assert legend.get_window_extent().y0 >= axes.get_window_extent().y1  # above, not on it
    bars = figures.classes(plots.frequencies(results, attributes), 2)
    FigureCanvasAgg(bars).draw()
    boxes = [label.get_window_extent() for label in bars.axes[2].get_xticklabels()]
    assert len(boxes) == 16 and all(label.get_text().startswith("a hat") for label in bars.axes[2].get_xticklabels())


def test_the_legend_of_the_pictures_is_whole():
    """In as many lines as it takes: a colour that nobody explains says nothing."""
    few = grid.Side("before", np.zeros((1, 1, 64, 64, 3), np.uint8), {}, np.zeros((1, 1), bool))
    tones = [grid.palette(number, a.classes) for number, a in enumerate(ATTRIBUTES)]
    sheet = np.asarray(grid.marked([few, few], ["a chef"], ATTRIBUTES))
    shown = {tuple(colour) for colour in sheet.reshape(-1, 3)}
    assert all(tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) in shown for c in itertools.chain(*tones))
    wide = np.asarray(grid.marked([few] * 8, ["a chef"], ATTRIBUTES))
    assert sheet.shape[0] > wide.shape[0]


def test_pictures_of_plots_show_the_values_and_their_intervals(results):
    plot = plots.dumbbell(results, GENDER)
    (axes,) = figures.by_prompt(plot).axes
    for number, dots in enumerate(axes.containers):
        assert dots.lines[0].get_xdata().tolist() == [row.values[number] for row in plot.rows]
    lines = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in lines] == [row.marks[0] for row in plot.rows]
    assert axes.yaxis_inverted()  # the first row is above

    swept = plots.sweep(results, "skin_tone")
    for axes, plot in zip(figures.by_setting(swept, KINDS).axes, swept, strict=True):
        for number, dots in enumerate(axes.containers):
            values, (ranges,) = dots.lines[0].get_xdata(), dots.lines[2]
            assert values.tolist() == [row.values[number] for row in plot.rows]
            ends = np.array(ranges.get_segments())[:, :, 0]  # of [-0.1, 0.3] nothing is below 0, or beyond the value
            np.testing.assert_allclose(ends, [[0, max(value, 0.3)] for value in values], atol=1e-9)
            assert axes.get_xlim()[1] >= ends.max()

    bars = plots.frequencies(results, ATTRIBUTES)
    for axes, plot in zip(figures.classes(bars, 2).axes, bars, strict=True):
        heights = [
            [patch.get_height() for patch in drawn] for drawn in axes.containers if drawn and hasattr(drawn, "patches")
        ]
        assert heights == [bar.shares for bar in plot.bars]
        lines = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
        assert lines == (plot.wished or [])


def test_a_picture_of_thousands_of_prompts_is_not_too_high_to_be_drawn(tmp_path):
    from matplotlib.figure import Figure

    figures.save(Figure(figsize=(0.5, 900)), tmp_path / "high.png")
    assert Image.open(tmp_path / "high.png").size[1] == pytest.approx(2**16, rel=0.01)


# Machado, Oliveira and Fernandes, A Physiologically-based Model for Simulation of Color Vision Deficiency (2009): what
# linear RGB becomes to who has no cones of one kind
DEFICIENT = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
    "none": np.eye(3),
}


def seen(colour, matrix):
    """CIELAB of a colour "#rrggbb", as seen with a deficiency."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    less = np.clip(np.array(matrix) @ linear, 0, 1)
    return color.rgb2lab(np.where(less <= 0.0031308, 12.92 * less, 1.055 * less ** (1 / 2.4) - 0.055))


@pytest.mark.parametrize("deficiency", DEFICIENT)
def test_classes_and_columns_are_told_apart_by_any_colour_vision(deficiency):
    """Ten units of CIEDE2000 are seen at a glance."""

    def nearest(colours):
        labs = [seen(colour, DEFICIENT[deficiency]) for colour in colours]
        return min(color.deltaE_ciede2000(a, b) for a, b in itertools.combinations(labs, 2))

    palettes = [grid.palette(number, "a" * count) for number in range(4) for count in range(2, 9)]
    assert min(map(nearest, [*palettes, grid.marks("a" * 8)])) > 10
    if deficiency in ("protanopia", "deuteranopia"):  # brown and olive are one colour to them
        assert (
            nearest(("#B5651D", "#6B8E23"))
            < 10
            < color.deltaE_ciede2000(*(seen(colour, np.eye(3)) for colour in ("#B5651D", "#6B8E23")))
        )


@pytest.fixture(scope="module")
def browser():
    """Chromium, without a window."""
    pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if browsing.chromium() is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    with browsing.browser() as running:
        yield running


def test_nothing_is_missing(page, browser):
    """Every section and its link, and as much in each as there is to show."""
    tab = browser.new_page()
    tab.goto(page.as_uri())
    told = tab.evaluate("[...document.querySelectorAll('h2')].map(h => [h.id, h.textContent])")
    links = tab.evaluate("[...document.querySelectorAll('nav a')].map(a => [a.hash.slice(1), a.textContent])")
    assert dict(told) == dict(links) == SECTIONS and len(told) == len(links) == len(SECTIONS)
    inside = """selector => { const found = {}; let at = '';
      for (const e of document.querySelectorAll('main *')) {
        if (e.tagName === 'H2') at = e.id;
        if (e.matches(selector)) found[at] = (found[at] || 0) + 1;
      } return found; }"""
    of = len(COLUMNS)
    for selector, count in {
        "table": {"numbers": 3, "differences": 1, "prompts": 2, "settings": 4},
        "tr.target": {"numbers": 2},
        "svg": {"prompts": 2, "settings": 4, "training": 2},
        "circle": {"prompts": 2 * len(PROMPTS) * of, "settings": 4 * 3 * of},
        "line.mark": {"prompts": 2 * len(PROMPTS), "settings": 4 * 3},
        "polyline": {"training": 2 * 2},
        ".bar": {"classes": 6 * of + 4},  # of each column, and what is wished of gender and tone
        ".bar span": {"classes": 2 * (2 + 4 + 2) * of + 2 * (2 + 4)},
        "img": {"pictures": 2 * of * 4},
        ".frame i": {"pictures": 2 * of * 4 - of},  # one shows no face
        ".bars span": {"pictures": (2 * of * 4 - of) * len(ATTRIBUTES)},
        "pre.command": {"made": 1},
    }.items():
        assert tab.evaluate(inside, selector) == count, selector
    alts = tab.evaluate("[...document.querySelector('.pictures').querySelectorAll('img')].map(i => i.alt)")
    first = [alt.removeprefix(f"{EVIL}, before: ") for alt in alts]
    assert first[-1] == "no face"
    predicted = [re.match(r"(female|male) \((\d+)%\)", alt).groups() for alt in first[:-1]]
    assert predicted == sorted(predicted, key=lambda told: (told[0] == "male", -int(told[1])))
    assert {label for label, _ in predicted} == {"female", "male"}
    tab.close()


@pytest.mark.parametrize("width", [1100, 390])
def test_a_browser_shows_it_without_anything_missing_or_sticking_out(page, browser, width):
    tab = browser.new_page(viewport={"width": width, "height": 900})
    asked = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    assert tab.title() == "How fair are its pictures? portraits"
    assert tab.evaluate((HERE / "report_problems.js").read_text()) == []
    assert tab.evaluate((HERE / "report_contrast.js").read_text()) == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    tab.close()


def test_a_page_with_long_names_is_no_wider_than_a_phone(results, browser, tmp_path):
    results, attributes = with_long_names(results)
    curve = plots.Curve(np.arange(9.0), np.linspace(24.148, 0, 9))
    curves = {f"bias/{'_'.join(['my_own'] * 9)}": {list(results["columns"])[1]: curve}}
    results["per_prompt"][0]["prompt"] = "在雨中的城市街道上工作的医生的肖像，" * 4
    report.write(tmp_path / "page.html", results, attributes, [], [], "", curves)
    tab = browser.new_page(viewport={"width": 390, "height": 900})
    tab.goto((tmp_path / "page.html").as_uri())
    assert tab.evaluate((HERE / "report_problems.js").read_text()) == []
    tab.close()


def test_colours_stay_on_paper_and_with_a_contrast_theme(page, browser):
    """Both leave out backgrounds unless they are told not to: bars would be empty."""
    tab = browser.new_page(viewport={"width": 1000, "height": 900}, forced_colors="active")
    tab.goto(page.as_uri())
    bar = tab.locator(".bar").first
    shown = tab.evaluate("[...document.querySelector('.bar').children].map(e => getComputedStyle(e).backgroundColor)")
    wished = [tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in grid.palette(0, GENDER.classes)]
    assert [tuple(map(int, re.findall(r"\d+", colour))) for colour in shown] == wished
    drawn = np.asarray(Image.open(io.BytesIO(bar.screenshot())).convert("RGB")).reshape(-1, 3)
    assert set(wished) <= {tuple(map(int, pixel)) for pixel in drawn}
    for selector in (".bar span", ".bars span", ".key", ".frame i"):
        adjusted = f"getComputedStyle(document.querySelector('{selector}')).printColorAdjust"
        assert tab.evaluate(adjusted) == "exact", selector
    tab.close()


def test_the_picture_for_the_readme_shows_the_page(page, browser, tmp_path):
    """And README's is such a one."""
    browsing.screenshot(browser, page, tmp_path / "report.png")
    for path in (tmp_path / "report.png", browsing.SHOWN):
        shown = np.asarray(Image.open(path).convert("RGB"))
        assert shown.shape == (browsing.HEIGHT, browsing.WIDTH, 3)
        assert (shown == 255).all(-1).mean() > 0.5 and (shown.max(-1) < 80).mean() > 0.01  # dark on white
        assert path.stat().st_size < 200_000
    assert f"({browsing.SHOWN.relative_to(ROOT)})" in (ROOT / "README.md").read_text()


def test_everything_is_reached_by_keyboard(page, browser):
    tab = browser.new_page(viewport={"width": 390, "height": 900})
    tab.goto(page.as_uri())
    reached = set()
    for _ in range(40):
        tab.keyboard.press("Tab")
        reached.add(
            tab.evaluate(
                "(document.activeElement.getAttribute('aria-label') || document.activeElement.textContent).trim()"
            )
        )
    assert {"Numbers", "Table of bias", "Gender: share of female by prompt", "The whole configuration"} <= reached
    tab.close()
