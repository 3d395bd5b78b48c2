"""The report: one page that needs nothing else, read by a browser, on a phone and by a screen reader."""

import json
import re
from pathlib import Path

import browsing
import numpy as np
import pytest
from PIL import Image

from fairjax.evaluation import report
from fairjax.fairness.attributes import Attribute

HERE = Path(__file__).parent
ATTRIBUTES = (
    Attribute("gender", ("female", "male")),
    Attribute("skin_tone", ("light", "medium", "tan", "deep")),
    Attribute("age", ("young", '<i class="x">old')),
)
EVIL = '<script>document.title = "taken over"</script> & "quoted"'
COLUMNS = ("before", "after", EVIL)
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


def entry(rng, classes, targeted, share=None):
    shares = rng.dirichlet(np.ones(len(classes))) if share is None else np.array([share, 1 - share])
    found = {
        "bias": float(np.abs(shares[:, None] - shares).mean()), "frequencies": dict(zip(classes, shares, strict=True)),
        "bias_interval": [0.1, 0.3], "bias_without_floor": 0.2, "bias_without_floor_interval": [0.05, 0.3],
    }  # fmt: skip
    return found | ({"total_variation": 0.2, "fair_total_variation": 0.05} if targeted else {})


def scores(rng):
    entries = {a.name: entry(rng, a.classes, a.name != "age") for a in ATTRIBUTES}
    return entries | {"recognised": 0.9, "no_face": 0.01, "low_confidence": 0.1}


def measured(rng):
    return {name: {kind: scores(rng) for kind in ("trained", "held_out")} for name in COLUMNS}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("report"), np.random.default_rng(0)
    results = {
        "model": "portraits", "adapter": f"runs/{EVIL}", "images_per_prompt": 64, "classifiers": [EVIL],
        "num_steps": 12, "detector": EVIL, "solver": "ddim", "guidance_scale": 1.0, "evaluation_seed": 1,
        "versions": {EVIL: EVIL},
        "weights": {"model": "0" * 64, EVIL: "f" * 64},
        "columns": {name: {"words": "{prompt}" if name != EVIL else EVIL} for name in COLUMNS},
        **measured(rng),
        "paired": [DIFFERENCE, DIFFERENCE | {"measure": "total_variation", "low": None, "p_value": None}],
        "nobody": {"prompts": [EVIL], "faces": dict.fromkeys(COLUMNS, 0.01), "preservation": {"clip": PRESERVED}},
        "sweep": [
            {"num_steps": 50, "guidance_scale": 1.0, "solver": "ddim", "columns": measured(rng)},
            {"num_steps": 12, "guidance_scale": 12.0, "solver": "ddim", "columns": measured(rng)},
        ],
        "preservation": {"image_semantics": dict.fromkeys(("trained", "held_out"), PRESERVED)},
        "fair_floor": {"gender": 0.1, "skin_tone": 0.07, "age": 0.1},
        "targets": {"gender": {"female": 0.5, "male": 0.5}, "skin_tone": dict.fromkeys(ATTRIBUTES[1].classes, 0.25)},
        "per_prompt": [
            {"prompt": text, "held_out": i > 6} | {name: scores(rng) for name in COLUMNS}
            for i, text in enumerate(PROMPTS)
        ],
    }  # fmt: skip

    def picture(size, has_face):
        image = rng.integers(0, 255, (size, size, 3)).astype(np.uint8)
        probs = {a.name: rng.dirichlet(np.ones(len(a.classes))) for a in ATTRIBUTES}
        return report.picture(image, probs, has_face, np.array([10.0, 5.0, 40.0, 60.0]), ATTRIBUTES)

    pictures = [picture(64, True), picture(64, False), picture(300, True)]
    sides = [(EVIL, [report.Side(name, pictures) for name in COLUMNS])]
    log = folder / "log.jsonl"
    rows = [{"step": step, "loss": 1 / step, "bias/gender": None if step == 3 else 0.5} for step in range(1, 80)]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 80, "lo')
    command = ["python", "eval.py", "--adapter", "a folder; rm -rf /"]
    report.write(folder / "report.html", results, ATTRIBUTES, sides, command, "model: <portraits>\n", log)
    return folder / "report.html"


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
    image = np.zeros((100, 200, 3), np.uint8)
    found = report.picture(image, probs, True, np.array([20.0, 25.0, 120.0, 150.0]), ATTRIBUTES)
    assert found.alt == "male (80%), deep (100%), young (60%)"
    assert [(bar[1], bar[2]) for bar in found.bars] == [(0.8, "male 80%"), (1.0, "deep 100%"), (0.6, "young 60%")]
    assert found.box == pytest.approx((10, 25, 50, 75))  # in per cent, cut off at the edge
    assert report.picture(image, probs, False, None, ATTRIBUTES)[3:] == ("no face", [], None)


def test_curves_are_smoothed_and_leave_out_what_is_missing(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text(
        "\n".join(json.dumps({"step": s, "loss": float(s % 2), "bias/x": 0.25}) for s in range(100)) + '\n{"st'
    )
    loss, bias = report.curves(log)
    assert (loss["title"], bias["title"]) == ("loss", "bias: x")
    assert loss["end"] == "0.50" and loss["last"] == 99  # a mean of two
    assert bias["end"] == "0.25" and len(bias["points"].split()) == 99
    log.write_bytes(b"5\n{}\n\xff\n" + log.read_bytes())
    assert report.curves(log) == [loss, bias]
    log.write_text("")
    assert report.curves(log) == []


@pytest.fixture(scope="module")
def browser():
    """Chromium, without a window."""
    pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if browsing.chromium() is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    with browsing.browser() as running:
        yield running


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


def test_the_picture_for_the_readme_shows_the_page(page, browser, tmp_path):
    browsing.screenshot(browser, page, tmp_path / "report.png")
    shown = np.asarray(Image.open(tmp_path / "report.png").convert("RGB"))
    assert shown.shape == (browsing.HEIGHT, browsing.WIDTH, 3)
    assert (shown == 255).all(-1).mean() > 0.5 and (shown.max(-1) < 80).mean() > 0.01  # dark on white
    assert (tmp_path / "report.png").stat().st_size < 200_000


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
    assert {"Numbers", "Table of bias", "Share of female by prompt", "The whole configuration"} <= reached
    tab.close()
