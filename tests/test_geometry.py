"""Crops and alignment of faces against PyTorch's padding, cropping, resizing and sampling, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks.torch_networks import torch_align, torch_crop, umeyama
from fairjax.faces.geometry import MARGINS, TEMPLATE, align, crop, expand, similarity
from fairjax.faces.semantics import CLIP, DINOV2, prepare

BOXES = {
    "inside, made smaller": (5, 3, 45, 33),
    "inside, made larger": (20, 10, 27, 17),
    "leaves left and top": (-13, -9, 30, 34),
    "leaves right and bottom": (31, 20, 77, 66),
    "larger than the image": (-40, -60, 110, 90),
    "one pixel": (8, 8, 9, 9),
    "taller than wide": (10, 2, 21, 39),
    "outside": (60, 50, 90, 80),
}


def pictures(n=1, height=40, width=50, seed=0):
    """Neighbouring pixels differ, so that a shift of a part of a pixel shows."""
    return np.random.default_rng(seed).uniform(-1, 1, (n, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize("kind", BOXES)
def test_a_crop_and_its_gradient_are_pytorchs(kind):
    images, cotangent = pictures(), np.random.default_rng(1).normal(size=(1, 16, 16, 3)).astype(np.float32)
    boxes = jnp.asarray([BOXES[kind]], jnp.float32)
    ours, pull = jax.vjp(lambda images: crop(images, boxes, 16), images)
    theirs = torch.tensor(images).permute(0, 3, 1, 2).requires_grad_()
    expected = torch_crop(theirs, BOXES[kind], 16)
    expected.backward(torch.tensor(cotangent).permute(0, 3, 1, 2))
    np.testing.assert_allclose(ours, expected.detach().permute(0, 2, 3, 1), atol=2e-6)
    np.testing.assert_allclose(pull(cotangent)[0], theirs.grad.permute(0, 2, 3, 1), atol=2e-5)


def test_a_batch_of_crops_is_each_of_them_under_one_compilation():
    images, boxes = pictures(len(BOXES)), jnp.asarray(list(BOXES.values()), jnp.float32)
    compiled = jax.jit(lambda images, boxes: crop(images, boxes, 24))
    together = compiled(images, boxes)
    for i in range(len(BOXES)):
        np.testing.assert_allclose(together[i], crop(images[i : i + 1], boxes[i : i + 1], 24)[0], atol=1e-5)
    np.testing.assert_array_equal(compiled(images, boxes + 0.4), together)  # of whole pixels
    assert compiled._cache_size() == 1


def test_a_large_crop_at_its_real_size_is_pytorchs():
    """512 px images, a face box that leaves them, 224 px: float32 and closed-form sums stay exact enough."""
    images, box = pictures(1, 512, 512), (-83, -211, 457, 329)
    expected = torch_crop(torch.tensor(images).permute(0, 3, 1, 2), box, 224).permute(0, 2, 3, 1)
    np.testing.assert_allclose(crop(images, jnp.asarray([box], jnp.float32)), expected, atol=1e-5)


def test_boxes_are_expanded_to_squares_about_their_centre():
    boxes = jnp.asarray([(10.0, 20, 50, 80), (0, 0, 30, 10), (0, 0, 0, 0)])
    paper = MARGINS["insightface"]
    np.testing.assert_allclose(expand(boxes, paper), [(-15, 5, 75, 95), (-7.5, -17.5, 37.5, 27.5), (0, 0, 0, 0)])
    np.testing.assert_allclose(expand(boxes[:1], 1.1), [(-33, -13, 93, 113)], atol=1e-4)


def faces(n, seed=0):
    """Landmarks [n, 5, 2] about (150, 140), turned, scaled and jittered."""
    rng = np.random.default_rng(seed)
    angle, scale = rng.uniform(-1, 1, n), rng.uniform(0.7, 2.5, n)
    turn = np.stack([np.stack([np.cos(angle), -np.sin(angle)], -1), np.stack([np.sin(angle), np.cos(angle)], -1)], -2)
    turned = (TEMPLATE - TEMPLATE.mean(0)) @ turn * scale[:, None, None]
    return (turned + (150, 140) + rng.normal(size=(n, 5, 2))).astype(np.float32)


def test_the_similarity_is_umeyamas_also_of_mirrored_points():
    points = np.concatenate([faces(6), faces(2)[:, :, ::-1]])
    expected = np.stack([umeyama(p.astype(np.float64), TEMPLATE.astype(np.float64)) for p in points])
    found = np.asarray(similarity(points))
    np.testing.assert_allclose(found[..., :2], expected[..., :2], atol=2e-6)
    np.testing.assert_allclose(found[..., 2], expected[..., 2], atol=5e-4)  # pixels
    assert (np.linalg.det(found[..., :2]) > 0).all()


def test_alignment_and_its_gradient_are_pytorchs_also_where_faces_leave_the_image():
    """Smooth images, because a position is known to 1e-4 pixels only."""
    landmarks = faces(4) - np.array([(0, 0), (120, 0), (0, 110), (-90, -90)], np.float32)[:, None]
    rng = np.random.default_rng(1)
    images = np.asarray(jax.image.resize(rng.uniform(-1, 1, (4, 20, 26, 3)), (4, 240, 260, 3), "linear"))
    cotangent = rng.normal(size=(4, 112, 112, 3)).astype(np.float32)
    ours, pull = jax.vjp(lambda images: align(images, landmarks), images)
    theirs = torch.tensor(images).permute(0, 3, 1, 2).requires_grad_()
    expected = torch_align(theirs, landmarks, 112)
    expected.backward(torch.tensor(cotangent).permute(0, 3, 1, 2))
    assert (np.asarray(ours)[1:] == -1).all(-1).mean() > 0.1
    np.testing.assert_allclose(ours, expected.detach().permute(0, 2, 3, 1), atol=1e-3)
    gradient = theirs.grad.permute(0, 2, 3, 1).numpy()
    assert np.abs(np.asarray(pull(cotangent)[0]) - gradient).max() <= 1e-3 * np.abs(gradient).max()


def test_landmarks_of_an_aligned_face_are_at_the_template():
    """In an image whose colours are its coordinates."""
    y, x = np.meshgrid(np.arange(300), np.arange(300), indexing="ij")
    image = (np.stack([x, y, x], -1) / 300).astype(np.float32)[None]
    landmarks = (TEMPLATE[:, ::-1] * (1.5, -1.5) + (60, 250)).astype(np.float32)[None]  # turned by a quarter
    aligned = np.asarray(align(image, landmarks))[0]
    for (column, row), (at_x, at_y) in zip(TEMPLATE, landmarks[0], strict=True):
        found = jax.scipy.ndimage.map_coordinates(aligned[..., :2] * 300, [row, column, jnp.arange(2)], order=1)
        np.testing.assert_allclose(found, (at_x, at_y), atol=0.01)


CUTS = {
    "crop": (lambda images, boxes: crop(images, boxes, 16), np.array([(3.0, 5, 39, 41), (-5, 9, 20, 34)], np.float32)),
    "align": (lambda images, landmarks: align(images, landmarks, 16), faces(2) / 6),
}


@pytest.mark.parametrize("kind", CUTS)
def test_gradients_are_finite_differences_and_places_get_none(kind):
    """Both cuts are linear in the pixels but for the background, so that a difference of any size is exact."""
    cut, places = CUTS[kind]
    images, step = pictures(2, seed=2), pictures(2, seed=3)
    value, change = jax.jvp(lambda images: cut(images, places), (images,), (step,))
    assert np.abs(change).max() > 0.1
    np.testing.assert_allclose(cut(images + step, places) - value, change, atol=1e-5)
    assert not np.any(jax.grad(lambda places: cut(images, places).sum())(places))


@pytest.mark.parametrize("kind", CUTS)
def test_without_a_face_the_picture_is_empty_and_no_gradient_flows(kind):
    cut, places = CUTS[kind]
    images, places = pictures(2), places * np.array([1, 0]).reshape(-1, *[1] * (places.ndim - 1))
    found = cut(images, places)
    gradient = jax.grad(lambda images: jnp.square(cut(images, places)).sum())(images)
    assert np.isfinite(found).all() and np.isfinite(gradient).all()
    assert (np.asarray(found[1]) == -1).all() and not np.any(gradient[1])
    assert np.any(gradient[0])


@pytest.mark.parametrize(("side", "size"), [(60, 24), (17, 24), (24, 24)])
def test_images_are_prepared_for_clip_and_dino_as_pytorch_resizes_them(side, size):
    images = pictures(2, side, side)
    theirs = torch.tensor(images).permute(0, 3, 1, 2)
    resized = F.interpolate(theirs, (size, size), mode="bilinear", antialias=True).permute(0, 2, 3, 1).numpy()
    for statistics in (CLIP, DINOV2):
        expected = (resized * 0.5 + 0.5 - np.array(statistics.mean)) / np.array(statistics.std)
        np.testing.assert_allclose(prepare(images, statistics, size), expected, atol=1e-5)
    with pytest.raises(ValueError, match="50 x 40 pixels: they should be square"):
        prepare(pictures(), CLIP)
