"""Loss terms: equal to plain definitions, and finite with zero gradient where nothing applies."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from fairjax.fairness.losses import (
    alignment_loss,
    box_overlap,
    cosine_distance,
    divergence,
    image_factors,
    realism_target,
    scale_gradient_in_box,
)

RNG = np.random.default_rng(0)


def test_alignment_loss_equals_torch_cross_entropy_on_labelled_images():
    logits = RNG.normal(size=(5, 4)).astype(np.float32) * 10
    labels = np.array([0, -1, 3, 2, -1])
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), ignore_index=-1, reduction="none"
    )
    np.testing.assert_allclose(alignment_loss(logits, labels), expected.numpy(), atol=1e-6)


def test_alignment_loss_without_labels_is_zero_with_zero_gradient_even_for_non_finite_logits():
    logits = jnp.array([[jnp.inf, 0.0], [jnp.nan, 1.0], [1e38, -1e38]])
    value, gradient = jax.value_and_grad(lambda x: alignment_loss(x, jnp.full(3, -1)).sum())(logits)
    assert value == 0 and (gradient == 0).all()


def test_divergence_equals_torch_where_images_are_compared_and_leaves_the_frozen_side_alone():
    ours, frozen = RNG.normal(size=(2, 5, 4)).astype(np.float32) * 10
    compared = np.array([True, False, True, True, False])
    log_probs = (torch.tensor(logits).log_softmax(1) for logits in (ours, frozen))
    expected = torch.nn.functional.kl_div(*log_probs, reduction="none", log_target=True).sum(1).numpy()
    np.testing.assert_allclose(divergence(ours, frozen, compared), np.where(compared, expected, 0), rtol=1e-5)
    gradients = jax.grad(lambda *logits: divergence(*logits, compared).sum(), argnums=(0, 1))(ours, frozen)
    change = jax.nn.softmax(ours) - jax.nn.softmax(frozen)  # by hand
    np.testing.assert_allclose(gradients[0], np.where(compared[:, None], change, 0), atol=1e-6)
    assert not gradients[1].any()
    assert divergence(ours, ours, compared).tolist() == [0] * 5


def test_divergence_of_images_that_are_not_compared_is_zero_with_zero_gradient_even_for_non_finite_logits():
    logits, other = jnp.array([[jnp.inf, 0.0], [jnp.nan, 1.0]]), jnp.array([[0.0, jnp.nan], [1e38, -1e38]])
    value, gradient = jax.value_and_grad(lambda x: divergence(x, other, jnp.zeros(2, bool)).sum())(logits)
    assert value == 0 and (gradient == 0).all()


def test_cosine_distance_equals_torch_and_is_finite_at_zero():
    a, b = RNG.normal(size=(2, 6, 9)).astype(np.float32)
    expected = 1 - torch.cosine_similarity(torch.tensor(a), torch.tensor(b))
    np.testing.assert_allclose(cosine_distance(a, b), expected.numpy(), atol=1e-6)
    value, gradient = jax.value_and_grad(lambda x: cosine_distance(x, b).sum())(jnp.zeros_like(a))
    assert value == 6 and (gradient == 0).all()


def test_gradient_is_scaled_inside_the_box_alone():
    images = RNG.normal(size=(3, 6, 8, 3)).astype(np.float32)
    boxes = np.array([[1, 2, 4, 5], [-3, -3, 2.4, 100], [5, 1, 5, 3]], np.float32)  # inside, cut, empty
    factors = np.array([0.2, 0.5, 0.3], np.float32)
    value, pull = jax.vjp(lambda x: scale_gradient_in_box(x, boxes, factors), images)
    expected = np.ones_like(images)
    expected[0, 2:5, 1:4] = 0.2
    expected[1, :, :2] = 0.5
    np.testing.assert_array_equal(value, images)
    np.testing.assert_allclose(pull(jnp.ones_like(images))[0], expected, rtol=1e-6)


def test_box_overlap_is_the_intersection_and_empty_when_apart():
    boxes, others = np.array([[0, 0, 4, 4], [0, 0, 2, 2]]), np.array([[1, -1, 9, 3], [5, 5, 6, 6]])
    overlap = box_overlap(boxes, others)
    np.testing.assert_array_equal(overlap[0], [1, 0, 4, 3])
    assert overlap[1, 2] <= overlap[1, 0]


def test_image_factor_is_the_smallest_of_the_attributes_that_differ():
    gender, race = np.array([0, 1, 0, 1, -1, 0]), np.array([2, 2, 2, 2, 2, 2])
    frozen_gender, frozen_race = np.array([0, 0, 0, 0, -1, 0]), np.array([2, 2, 1, 1, 2, 2])
    has_face = np.array([True, True, True, True, True, False])
    found = image_factors((gender, race), (frozen_gender, frozen_race), has_face, (0.2, 0.6), no_face=0.2)
    np.testing.assert_allclose(found, [1, 0.2, 0.6, 0.2, 0.2, 0.2])
    assert image_factors((gender,), (frozen_gender,), has_face, (0.2,), no_face=1.0)[-1] == 1


def test_realism_target_is_the_frozen_face_where_it_is_surely_the_target_else_the_nearest_real_one():
    frozen, bank = np.eye(4)[[0, 0, 0]] * 5, np.eye(4)[1:]
    own = np.array([[0, 0, 3, 1], [0, 0, 3, 1], [0, 1, 0, 2]], np.float32)
    labels, frozen_labels = (np.array([1, 1, 1]),), (np.array([1, 1, 0]),)
    frozen_probs = (np.array([[0.05, 0.95], [0.3, 0.7], [0.95, 0.05]]),)

    def target(embeddings):
        return realism_target(embeddings, frozen, bank, None, labels, frozen_labels, frozen_probs, confidence=0.9)

    np.testing.assert_allclose(target(own), np.eye(4)[[0, 2, 3]], atol=1e-6)
    assert (jax.grad(lambda x: target(x).sum())(own) == 0).all()


def test_a_labelled_bank_gives_the_face_of_the_wished_class_most_like_the_frozen_one():
    """It follows the frozen face, if there is one, not the image's own; without a target, it is nearest to the own."""
    frozen = np.array([[0, 3, 2, 1]] * 5, np.float32)
    bank, shown = np.eye(4), np.array([0, 0, 1, 1])
    own = np.eye(4, dtype=np.float32)[[3, 3, 3, 3, 3]]
    labels, frozen_labels = (np.array([1, 0, -1, 7, 1]),), (np.array([0, 0, 0, 0, -1]),)
    frozen_probs = (np.array([[0.6, 0.4]] * 5),)
    found = realism_target(own, frozen, bank, [shown], labels, frozen_labels, frozen_probs, confidence=0.9)
    np.testing.assert_allclose(found, np.eye(4)[[2, 1, 3, 1, 3]], atol=1e-6)  # class 7 is nobody's: the nearest of all
