"""One training step: the same on any number of devices, resumable to the same numbers, true to its formula."""

import contextlib
import functools
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from running import full_disk
from small_world import fields

from fairjax import memory, parallel
from fairjax.checkpoints import Checkpoints
from fairjax.config import Experiment
from fairjax.models.functional import num_params
from fairjax.program import UserError
from fairjax.schema import load
from fairjax.training import state as states
from fairjax.training.finetuning import Finetuning

SMALL = {
    "adapter.kinds": ("text_encoder", "unet", "soft_prompt"),
    "training.steps": 3,
    "training.prompts_per_step": 3,  # with 8 images each, so that the shares of devices cross a prompt's images
    "training.images_per_prompt": 8,
    "training.num_steps": (2, 3),
    "training.grad_steps": 2,
}


def finetuning(world, devices, **changes):
    return Finetuning(load(Experiment, None, SMALL | fields(world) | changes), parallel.mesh(devices))


@pytest.fixture(scope="module")
def on(small_world):
    """A number of devices -> the same finetuning on so many, built and compiled once."""
    return functools.cache(lambda devices: finetuning(small_world, devices))


@pytest.fixture(scope="module")
def one_device(on):
    return on(1)


def leaves(tree):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(jax.device_get(tree))])


class Taken(NamedTuple):
    """A first step: its gradient by kind of adapter (the first moment is 1 - b1 times it), what it logs, its images."""

    gradient: dict[str, np.ndarray]
    scalars: dict[str, float]
    images: np.ndarray


def first_step(finetuning, program=None):
    start = finetuning.initial()
    batch, _ = finetuning.batch(0, start.bundle)
    state, scalars, images = (program or finetuning.compiled())(start, finetuning._frozen, batch)
    (moments,) = (leaf for leaf in jax.tree.leaves(state.optimizer, is_leaf=has_moments) if has_moments(leaf))
    gradient = {kind: leaves(part) for kind, part in moments.mu.items()}
    return Taken(gradient, {k: float(v) for k, v in scalars.items()}, np.asarray(images))


def has_moments(leaf):
    return hasattr(leaf, "mu")


def assert_the_same(one, other):
    """Gradients, not updates, are compared: AdamW hides a wrong factor. Sums are in another order, through a chain."""
    np.testing.assert_allclose(other.images, one.images, atol=2e-4)
    assert one.gradient.keys() == set(SMALL["adapter.kinds"])
    for kind, gradient in one.gradient.items():
        assert np.abs(gradient).max() > 0, kind
        assert np.abs(gradient - other.gradient[kind]).max() <= 2e-3 * np.abs(gradient).max(), kind
    for name in one.scalars:
        assert other.scalars[name] == pytest.approx(one.scalars[name], rel=5e-3, abs=1e-5), name


@pytest.fixture(scope="module")
def on_one_device(one_device):
    return first_step(one_device)


def test_a_step_does_not_depend_on_the_number_of_devices(on_one_device, on):
    assert 0 < on_one_device.scalars["faces"] < 1  # both kinds of images are in it
    assert_the_same(on_one_device, first_step(on(8)))


def test_a_step_does_not_depend_on_what_a_user_has_jax_draw_with(on_one_device, small_world):
    with jax.default_prng_impl("rbg"):
        assert_the_same(first_step(finetuning(small_world, 2)), on_one_device)


def test_a_step_does_not_depend_on_how_many_images_networks_see_at_a_time(on_one_device, one_device, small_world):
    """Five do not divide the 24 of this device. Memory is what it saves."""
    parts = finetuning(small_world, 1, **{"training.microbatch": 5})
    assert_the_same(on_one_device, first_step(parts))
    assert memory.needed(parts.compiled()) < 0.7 * memory.needed(one_device.compiled())


def test_what_was_compiled_to_fit_a_memory_is_what_runs(small_world, monkeypatch):
    """And nothing is compiled again, which takes minutes for a large model."""
    changes = {"training.prompts_per_step": 1, "training.images_per_prompt": 4, "adapter.kinds": ("soft_prompt",)}
    plain = finetuning(small_world, 1, **changes)
    monkeypatch.setattr(parallel, "memory_left", lambda mesh: 1 << 40)
    fitted = finetuning(small_world, 1, **changes)
    assert (plain.microbatch, fitted.microbatch) == (None, 4)
    monkeypatch.setattr(fitted, "_lower", lambda step: pytest.fail("once more"))
    one, other = (leaves(case.run().bundle) for case in (plain, fitted))
    np.testing.assert_allclose(other, one, atol=1e-6)


def test_what_is_on_a_device_already_is_known(on):
    """And what is not: bfloat16 is another copy. Else memory would be thought short that is not."""
    for case in (on(2), finetuning_in(on(2).config, "bfloat16")):
        there = [x for x in jax.tree.leaves((case.pipeline.params, case.judges.params)) if isinstance(x, jax.Array)]
        before = {leaf.unsafe_buffer_pointer() for leaf in there}
        placed = [leaf.addressable_data(0) for leaf in jax.tree.leaves(case._frozen)]
        shared = [leaf.nbytes for leaf in placed if leaf.unsafe_buffer_pointer() in before]
        assert case._there() == sum(shared) > 0


def finetuning_in(config, precision):
    """The same, of the text encoder alone, in a precision."""
    training = config.training.model_copy(update={"precision": precision})
    adapter = config.adapter.model_copy(update={"kinds": ("text_encoder",)})
    return Finetuning(config.model_copy(update={"training": training, "adapter": adapter}), parallel.mesh(1))


@pytest.fixture(scope="module")
def trained(on):
    """A number of devices -> the state after three steps on so many."""

    def three_steps(devices):
        state = on(devices).initial()
        for number in range(3):
            state = step_after(on(devices), number, state)
        return state

    return functools.cache(three_steps)


def step_after(case, number, state):
    return case.compiled()(state, case._frozen, case.batch(number, state.bundle)[0])[0]


def assert_moved_to_the_same(found, wished):
    """To 1e-5, where a step moves by as much as 1e-3."""
    for kind in SMALL["adapter.kinds"]:
        np.testing.assert_allclose(leaves(found[kind]), leaves(wished[kind]), rtol=0, atol=1e-5, err_msg=kind)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_adapters_of_each_kind_are_the_same_after_some_steps_on_any_number_of_devices(on, trained, devices):
    wished, start = trained(1).bundle, on(1).initial().bundle
    for kind in SMALL["adapter.kinds"]:
        assert np.abs(leaves(wished[kind]) - leaves(start[kind])).max() > 1e-3, kind
    assert_moved_to_the_same(trained(devices).bundle, wished)


@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8)])
def test_a_checkpoint_is_continued_on_another_number_of_devices(before, after, on, trained, tmp_path):
    """Bit for bit what was saved is on each of them, and the next step is what it would have been."""
    saved, checkpoints = trained(before), Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(3, saved)
    checkpoints.finish()
    restored = checkpoints.restore(3, on(after).initial())
    checkpoints.close()
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    for found, wished in zip(jax.tree.leaves(restored), jax.tree.leaves(saved), strict=True):
        assert len(found.addressable_shards) == after and found.dtype == wished.dtype
        for shard in found.addressable_shards:
            np.testing.assert_array_equal(shard.data, wished)
    wished, found = step_after(on(before), 3, saved), step_after(on(after), 3, restored)
    assert np.abs(leaves(wished.bundle) - leaves(saved.bundle)).max() > 1e-4
    assert_moved_to_the_same(found.bundle, wished.bundle)


@pytest.mark.parametrize(
    ("groups", "size", "devices"),
    [(3, 8, 1), (3, 8, 2), (3, 8, 8), (8, 3, 2), (8, 3, 8), (2, 16, 8), (12, 2, 8), (4, 6, 8), (8, 1, 8), (5, 16, 8)],
)
def test_each_device_knows_in_which_groups_its_images_are(groups, size, devices):
    def own():
        first, count, place = parallel.own_groups(groups, size)
        near = jax.lax.dynamic_slice_in_dim(jnp.arange(groups * size).reshape(groups, size), first, count)
        share = groups * size // devices
        return jax.lax.dynamic_slice_in_dim(near.reshape(-1), place, share), jnp.full(1, count)

    mesh = parallel.mesh(devices)
    images, counts = parallel.spread(own, mesh, (), (parallel.SPREAD, parallel.SPREAD))()
    np.testing.assert_array_equal(images, np.arange(groups * size))
    touched = [len(set(share // size)) for share in np.arange(groups * size).reshape(devices, -1)]
    assert set(np.asarray(counts)) == {max(touched)}


def test_two_things_cross_devices_and_nothing_else(on, on_one_device):
    """What a face shows, a few kilobytes in one gather, and the gradient with what is logged, in one reduction."""
    eight = on(8)
    program = eight.compiled().as_text()
    collectives = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
    found = re.findall(rf"= (\w+)\[([\d,]*)\]\S* ({collectives})(?:-start)?\(", program)
    sizes = {kind: (dtype, math.prod(map(int, shape.split(",")))) for dtype, shape, kind in found}
    assert len(found) == 2 and sizes.keys() == {"all-gather", "all-reduce"}, found
    classes = sum(len(a.classes) for a in eight.attributes if a.name in eight.target.attributes)
    assert sizes["all-gather"] == ("f32", 3 * 8 * (classes + 1))
    scalars = len(on_one_device.scalars) - 1  # the norm is computed after
    assert sizes["all-reduce"] == ("f32", num_params(eight.initial_shapes().bundle) + scalars)


def test_the_same_function_under_pmap(on_one_device, on):
    """`jax.shard_map` over one axis is what `jax.pmap` was: the step is written for either."""
    two = on(2)
    devices = list(two.mesh.devices.flat)
    mapped = jax.pmap(two._step, axis_name=parallel.AXIS, devices=devices)

    def program(*arguments):
        each = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(devices)), jax.device_put(arguments, devices[0]))
        each = jax.device_put(each, NamedSharding(two.mesh, parallel.SPREAD))
        state, scalars, images = jax.device_get(mapped(*each))
        first = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)  # noqa: E731
        return first(state), first(scalars), np.concatenate(images)

    assert_the_same(on_one_device, first_step(two, program))


def saving_every_step(case):
    training = case.config.training.model_copy(update={"save_every": 1})
    object.__setattr__(case, "config", case.config.model_copy(update={"training": training}))


@pytest.mark.faults("a full disk, in a run with a checkpoint")
def test_a_full_disk_is_a_warning_while_a_checkpoint_is_there_and_the_run_goes_on_from_it(one_device, tmp_path, capsys):
    """The last of three steps cannot be saved either: one line; with room, a resumed run ends with the same numbers."""
    saving_every_step(one_device)
    whole, limits = one_device.run(), contextlib.ExitStack()
    checkpoints = Checkpoints(tmp_path / "checkpoints")

    def fill_up(progress):
        if progress.step == 2:
            limits.enter_context(full_disk())

    with limits, pytest.raises(UserError, match=r"checkpoint 3 could not .*; the last is checkpoint 1: make room, and"):
        one_device.run(checkpoints, fill_up)
    assert "warning: checkpoint 2 could not be saved" in capsys.readouterr().err
    resumed = one_device.run(checkpoints)
    checkpoints.close()
    np.testing.assert_array_equal(leaves(whole.ema), leaves(resumed.ema))


@pytest.mark.faults("a disk that takes no checkpoint", lost="the steps until the first checkpoint was due")
def test_a_disk_that_takes_no_checkpoint_ends_a_run_at_the_first(one_device, tmp_path):
    saving_every_step(one_device)
    checkpoints, told = Checkpoints(tmp_path / "checkpoints"), []
    with full_disk(), pytest.raises(UserError, match=r"checkpoint 1 could not be saved .* there is none before it"):
        one_device.run(checkpoints, lambda progress: told.append(progress.step))
    checkpoints.close()
    assert told == [1]


def test_a_resumed_run_continues_to_the_same_numbers(one_device, tmp_path):
    seen, again = [], []
    whole = one_device.run(None, lambda progress: seen.append(progress.scalars["loss"]))

    class Stop(Exception):
        pass

    def stop_after_two(progress):
        if progress.step == 2:
            raise Stop

    saving_every_step(one_device)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(Stop):
        one_device.run(checkpoints, stop_after_two)
    assert checkpoints.latest() == 1  # a step is told before it is saved
    resumed = one_device.run(checkpoints, lambda progress: again.append(progress.scalars["loss"]))
    checkpoints.close()
    np.testing.assert_array_equal(leaves(whole.ema), leaves(resumed.ema))
    assert again == seen[len(seen) - len(again) :]


@pytest.mark.faults("a gradient that is not finite", lost="that step")
def test_a_step_with_a_gradient_that_is_not_finite_is_skipped_and_counted():
    section = Experiment().training
    bundle = {"unet": {"layer": {"down": jnp.ones((2, 1)), "up": jnp.zeros((1, 2))}}}
    start = states.initial(bundle, section)
    bad = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), bundle)
    after = states.update(start, jnp.float32(1), bad, section)
    assert (int(after.step), int(after.skipped)) == (1, 1)
    np.testing.assert_array_equal(leaves(after.bundle), leaves(bundle))
    worse = states.update(start, jnp.float32(jnp.nan), jax.tree.map(jnp.ones_like, bundle), section)
    assert int(worse.skipped) == 1 and (leaves(worse.bundle) == leaves(bundle)).all()
    good = states.update(after, jnp.float32(1), jax.tree.map(jnp.ones_like, bundle), section)
    assert (int(good.step), int(good.skipped)) == (2, 1)
    assert np.abs(leaves(good.bundle) - leaves(bundle)).max() > 0


@pytest.mark.faults("images that are not finite on some of eight devices", lost="that step")
def test_a_step_is_skipped_on_every_device_alike(on):
    """One prompt's images are not finite, and three of the eight devices have some of them."""
    eight = on(8)
    start, frozen = eight.initial(), eight._frozen
    batch, _ = eight.batch(0, start.bundle)
    own = set(np.asarray(batch.ids[0]).tolist()) - set(np.asarray(batch.ids[1:]).ravel().tolist())
    word = min(own)

    def without(path, leaf):
        return leaf.at[word].set(jnp.nan) if "token_embedding" in jax.tree_util.keystr(path) else leaf

    text = jax.tree_util.tree_map_with_path(without, frozen.pipeline["text_encoder"])
    broken = frozen._replace(pipeline=frozen.pipeline | {"text_encoder": text})
    skipped, scalars, images = eight.compiled()(start, broken, batch)
    finite = np.isfinite(np.asarray(images)).all((1, 2, 3))
    assert finite.tolist() == [False] * 8 + [True] * 16 and not np.isfinite(scalars["loss"])
    taken, _, _ = eight.compiled()(skipped, frozen, batch)
    for state, count, moved in ((skipped, 1, False), (taken, 1, True)):
        for leaf in jax.tree.leaves(state):
            one, *others = (np.asarray(shard.data) for shard in leaf.addressable_shards)
            assert len(others) == 7 and np.isfinite(one).all()
            assert all(np.array_equal(one, other) for other in others)
        assert int(state.skipped) == count and (leaves(state.bundle) != leaves(start.bundle)).any() == moved


BROKEN = {  # whose weights are not finite -> what is told
    "text_encoder": "the frozen model's pixels of image 0 of '",
    "unet": "the frozen model's pixels of image 0 of '",
    "vae": "the frozen model's pixels of image 0 of '",
    "classifier": "what classifiers say of the frozen model's of image 0 of '",
    "semantics": "the image semantics of image 0 of '",
    "face": "the face embedding of image ",
}


@pytest.fixture(scope="module")
def breakable(small_world):
    asked = {"training.steps": 8, "training.max_skipped": 3, "training.num_steps": (2, 2), "training.grad_steps": 1}
    return Finetuning(load(Experiment, None, fields(small_world) | asked), parallel.mesh(1))


@pytest.mark.faults("a network that gives NaN", lost="the steps that were not finite")
@pytest.mark.parametrize(  # each diagnosis is compiled; `pytest -m faults` has all of them
    "network", [pytest.param(name, marks=() if name == "unet" else pytest.mark.slow) for name in BROKEN]
)
def test_a_run_whose_numbers_are_not_finite_ends_and_says_why(network, breakable, tmp_path, monkeypatch):
    """Each network's output in turn: no step changes the adapter, the third ends the run, and it can be continued."""
    frozen, kept = breakable._frozen, Checkpoints(tmp_path / "checkpoints")
    judges = frozen.judges
    broken = lambda tree: jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), tree)  # noqa: E731
    if network == "classifier":
        judge = judges["judge"] | {"classifiers": broken(judges["judge"]["classifiers"])}
        frozen = frozen._replace(judges=judges | {"judge": judge})
    elif network in judges:
        frozen = frozen._replace(judges=judges | {network: broken(judges[network])})
    else:
        frozen = frozen._replace(pipeline=frozen.pipeline | {network: broken(frozen.pipeline[network])})
    monkeypatch.setattr(breakable, "_frozen", frozen)
    told = []
    with pytest.raises(UserError) as error:
        breakable.run(kept, told.append)
    assert "3 steps in a row were not finite, the last of them step 3: " + BROKEN[network] in str(error.value)
    assert "\n" not in str(error.value) and [progress.step for progress in told] == [1, 2, 3]
    assert kept.latest() == 3
    state = kept.restore(3, breakable.initial())
    assert int(state.skipped) == 3
    np.testing.assert_array_equal(leaves(state.bundle), leaves(breakable.initial().bundle))
    kept.close()


def test_every_subject_comes_once_before_any_comes_again(one_device):
    subjects = one_device.subjects
    count = len(subjects.trained) // 4
    subjects = subjects._replace(nobody_share=0)
    seen = [prompt.subject for step in range(count) for prompt in subjects.training(0, step, 4)]
    assert sorted(seen) == sorted(subjects.trained)
    assert not set(seen) & set(subjects.held_out)


def test_measuring_asks_for_both_kinds_in_unseen_templates_only(one_device):
    prompts = one_device.subjects.measuring(5)
    assert sum(prompt.held_out for prompt in prompts) == 5 and len(prompts) == 10
    for prompt in prompts:
        unseen = one_device.subjects.sources[0].held_out.templates
        filled = [template.split("{")[0].removesuffix("a ") for template in unseen]
        assert any(prompt.text.startswith(start) for start in filled)
        assert prompt.held_out == (prompt.subject in one_device.subjects.held_out)
