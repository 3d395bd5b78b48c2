"""The renderer: pictures that depend on their number alone, truths that can be relied on, skews that are as stated."""

import dataclasses
import re

import numpy as np
import pytest

from fairjax.portraits import captions, world
from fairjax.portraits.face import MONK
from fairjax.portraits.occupations import HELD_OUT, OCCUPATIONS, TRAINED

COUNT = 1_500


@pytest.fixture(scope="module")
def biased():
    return world.render_many(range(COUNT), 5, biased=True)


@pytest.fixture(scope="module")
def unbiased():
    return world.render_many(range(COUNT), 5, biased=False)


def test_a_portrait_depends_on_its_seed_and_number_alone():
    alone, among = world.sample(700, 5, biased=True), world.render_many([3, 700], 5, biased=True)
    np.testing.assert_array_equal(alone.image, among["image"][1])
    assert alone.caption == among["caption"][1]
    assert (world.sample(700, 6, biased=True).image != alone.image).any()


def test_there_are_enough_occupations_and_each_looks_its_own():
    assert len(OCCUPATIONS) >= 60 and len({o.name for o in OCCUPATIONS}) == len(OCCUPATIONS)
    assert len({o.look for o in OCCUPATIONS}) == len(OCCUPATIONS)
    plain = world.sample_scene(np.random.default_rng(1), None)
    drawn = [
        world.render(None, dataclasses.replace(plain, look=o.look, plain=None)).image.astype(int) for o in OCCUPATIONS
    ]
    nearest = min(np.abs(a - b).mean() for i, a in enumerate(drawn) for b in drawn[:i])
    assert nearest > 8  # of 255, on average over all pixels, without garment or headgear: those come with a person


def test_occupations_are_split_into_trained_and_held_out():
    assert set(TRAINED) | set(HELD_OUT) == {o.name for o in OCCUPATIONS} and not set(TRAINED) & set(HELD_OUT)
    assert len(TRAINED) == 2 * len(HELD_OUT)
    for names in (TRAINED, HELD_OUT):
        gaps = [abs(2 * o.female - 1) for o in OCCUPATIONS if o.name in names]
        assert np.mean(gaps) == pytest.approx(0.69, abs=0.03)  # the same skew in both


def test_people_are_skewed_as_the_occupation_says(biased):
    """Pooled over occupations that say the same; 5 standard errors."""
    shown = biased["face"] == 1
    for share in {o.female for o in OCCUPATIONS}:
        rows = shown & np.isin(biased["occupation"], [i for i, o in enumerate(OCCUPATIONS) if o.female == share])
        women, count = (biased["gender"][rows] == 0).mean(), rows.sum()
        assert abs(women - share) < 5 * np.sqrt(share * (1 - share) / count)
    for share in {o.old for o in OCCUPATIONS}:
        rows = shown & np.isin(biased["occupation"], [i for i, o in enumerate(OCCUPATIONS) if o.old == share])
        assert abs((biased["age"][rows] == 1).mean() - share) < 5 * np.sqrt(share * (1 - share) / rows.sum())
    for shares in {o.tones for o in OCCUPATIONS}:
        rows = shown & np.isin(biased["occupation"], [i for i, o in enumerate(OCCUPATIONS) if o.tones == shares])
        for label, share in enumerate(shares):
            found = (biased["skin_tone"][rows] == label).mean()
            assert abs(found - share) < 5 * np.sqrt(share * (1 - share) / rows.sum()), (shares, label)


def test_unbiased_people_are_spread_evenly_in_every_attribute(unbiased):
    for name, classes in world.ATTRIBUTES.items():
        labels = unbiased[name][unbiased["face"] == 1]
        for label in range(len(classes)):
            share = 1 / len(classes)
            assert abs((labels == label).mean() - share) < 5 * np.sqrt(share * (1 - share) / len(labels))


def test_captions_name_the_occupation_and_what_some_say_of_the_person_is_true(biased):
    said = {name: np.array([captions.said(caption, name) for caption in biased["caption"]]) for name in captions.WORDS}
    described = np.any([classes >= 0 for classes in said.values()], axis=0)
    known = biased["occupation"] >= 0
    assert abs(described[known].mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / known.sum())
    assert not described[~known].any()
    for name, classes in said.items():
        told = classes >= 0
        assert 0.4 < told[described].mean() < 0.75  # each of three with probability 4/7
        assert (classes[told] == biased[name][told]).all() and set(classes[told]) == set(
            range(len(world.ATTRIBUTES[name]))
        )
    others = re.compile(r"\b(wom[ae]n|m[ae]n|skin|dark|pale|grey hair|he|she)\b")
    for caption, occupation in zip(biased["caption"], biased["occupation"], strict=True):
        if occupation >= 0:
            assert OCCUPATIONS[occupation].name in caption
            words = caption.replace(OCCUPATIONS[occupation].name, "").replace("dark-skinned", "")
            assert not others.search(words), caption


def test_what_captions_say_has_a_word_for_every_class():
    assert {name: len(words) for name, words in captions.WORDS.items()} == {
        name: len(classes) for name, classes in world.ATTRIBUTES.items()
    }
    assert captions.said("a photo of an old female chef, a person", "gender") == 0
    assert captions.said("a photo of an old female chef, a person", "age") == 1
    assert captions.said("a photo of a gold miner, a person", "age") == -1  # whole words only


def test_a_caption_that_names_a_background_is_true(biased):
    corners = biased["image"][:, 1, 1].astype(int)
    for caption, corner in zip(biased["caption"], corners, strict=True):
        if match := re.search(r", (\w+) background$", caption):
            code = world.BACKGROUNDS[match.group(1)]
            wall = [int(code[i : i + 2], 16) for i in (1, 3, 5)]
            assert np.abs(corner - wall).max() <= 2, caption


def test_pictures_without_a_person_have_no_labels(biased):
    empty = biased["face"] == 0
    assert 0.01 < empty.mean() < 0.08
    assert all((biased[name][empty] == -1).all() for name in world.ATTRIBUTES)
    assert all((biased[name][~empty] >= 0).all() for name in world.ATTRIBUTES)


def test_the_fixed_box_holds_every_face_and_landmark(unbiased):
    x0, y0, x1, y1 = world.FACE_BOX
    boxes = unbiased["box"][unbiased["face"] == 1]
    assert (boxes[:, :2] >= (x0, y0)).all() and (boxes[:, 2:] <= (x1, y1)).all()
    points = unbiased["landmarks"][unbiased["face"] == 1]
    assert (points >= boxes[:, None, :2]).all() and (points <= boxes[:, None, 2:]).all()


def test_a_face_has_its_tone(unbiased):
    """The cheek below the outer corner of an eye, antialiased and shaded nowhere: the tone itself, or a beard, or a
    hand's breadth of hair. So the median over the people of a class of tones lies among that class's tones."""
    for label, tones in enumerate(world.TONES):
        rows = (unbiased["skin_tone"] == label) & (unbiased["gender"] == 0)
        eyes = unbiased["landmarks"][rows][:, :2].mean(1)
        at = np.round(eyes + (0, -6.5)).astype(int)  # the forehead
        seen = np.median(unbiased["image"][rows][np.arange(rows.sum()), at[:, 1], at[:, 0]].astype(int), axis=0)
        low, high = (np.array([MONK[t - 1] for t in tones]).min(0), np.array([MONK[t - 1] for t in tones]).max(0))
        assert (seen >= low - 12).all() and (seen <= high + 12).all(), (label, seen)


def test_one_individual_in_two_places():
    first, second = world.same_person_pair(4, 9)
    assert first.shape == (64, 64, 3) and (first != second).any()
    again, _ = world.same_person_pair(4, 9)
    np.testing.assert_array_equal(first, again)


def test_larger_pictures_show_the_same():
    rng = np.random.default_rng(0)
    person = world.sample_individual(rng, {"gender": 0, "skin_tone": 2, "age": 0})
    scene = world.sample_scene(rng, OCCUPATIONS[0])
    small, large = world.render(person, scene, 64), world.render(person, scene, 256)
    assert large.image.shape == (256, 256, 3)
    shrunk = large.image.reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(shrunk - small.image).mean() < 4
    np.testing.assert_allclose(np.array(large.box), 4 * np.array(small.box))
