"""Prompts of files, of `datasets` and of the lists that ship; how they are mixed; targets from a table."""

import gzip
import json
import lzma
import re
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest

from fairjax import parallel, tables
from fairjax.config import Experiment, PromptSection, TargetSection
from fairjax.fairness.attributes import Attribute, per_prompt
from fairjax.portraits import captions, occupations
from fairjax.program import UserError
from fairjax.prompts import LISTS, Rows, check_unseen, nobody, subjects
from fairjax.schema import load
from fairjax.training.finetuning import Finetuning

NAMES, WEIGHTS = ("chef", "café owner", "usher, at night"), (1.0, 2.5, 0.25)


def read(*sources, **fields):
    asked = {"prompts.sources": sources, "prompts.nobody_share": 0} | fields
    return subjects(load(Experiment, None, asked).prompts)


def write(path, names=NAMES, weights=WEIGHTS):
    """A table of names and weights, in the format that the file's name tells."""
    rows = [{"job": name, "share": weight} for name, weight in zip(names, weights, strict=True)]
    match path.suffix:
        case ".csv":
            path.write_text(
                "".join(f'"{row["job"]}",{row["share"]}\n' for row in [{"job": "job", "share": "share"}, *rows])
            )
        case ".json":
            path.write_text(json.dumps(rows))
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".parquet":
            datasets.Dataset.from_list(rows).to_parquet(path)
        case ".txt":
            path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8-sig")  # as Windows writes it
    return str(path)


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet", "txt"])
def test_every_format_is_read_back_the_same_and_leaves_nothing_on_the_disk(tmp_path, monkeypatch, ending):
    scratch, cache = tmp_path / "scratch", tmp_path / "cache"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    columns = {} if ending == "txt" else {"column": "job", "weight_column": "share"}
    (source,) = read({"name": write(tmp_path / f"jobs [1].{ending}"), **columns}).sources
    assert source.trained == Rows(NAMES, ("{prompt}",), None if ending == "txt" else WEIGHTS)
    assert source.held_out == Rows()
    assert not any(scratch.iterdir()) and not cache.exists()


@pytest.mark.parametrize("ending", ["csv", "txt"])
def test_a_folder_has_a_file_for_each_split(tmp_path, ending):
    for split, names in (("train", ("chef", "pilot")), ("validation", ("nurse",)), ("test", ("judge",))):
        write(tmp_path / f"{split}.{ending}", names, (1.0,) * len(names))
    source = {"name": str(tmp_path), "templates": ["a {job}"]} | ({"column": "job"} if ending == "csv" else {})
    for split, held_out in (("test", ("judge",)), ("validation", ("nurse",))):
        found = read(source, **{"prompts.held_out_split": split})
        assert found.trained == ("chef", "pilot") and found.held_out == held_out
        assert found.known == {"chef", "pilot", "nurse", "judge"}
    assert [prompt.text for prompt in found.measuring(2)] == ["a chef", "a pilot", "a nurse"]


def test_rows_are_whole_prompts_unless_there_are_templates(tmp_path):
    file = write(tmp_path / "jobs.txt", ("an {odd} prompt",), (1.0,))
    assert read({"name": file}).training(0, 0, 1)[0][:2] == ("an {odd} prompt", "an {odd} prompt")
    (prompt,) = read({"name": file, "templates": ["I see a {thing}"]}).training(0, 0, 1)
    assert prompt.text == "I see an an {odd} prompt" and prompt.subject == "an {odd} prompt"


@pytest.mark.parametrize(
    ("words", "article"),
    [
        *((word, "an") for word in ("usher", "unhurried", "urban planner", "honest", "Actor", "heir", "hourly worker")),
        *((word, "a") for word in ("user", "unicyclist", "urologist", "university dean", "utility worker", "eulogist")),
        *((word, "a") for word in ("honey producer", "hotel porter", "one-legged", "baker")),
    ],
)
def test_an_stands_before_what_sounds_like_a_vowel(words, article):
    assert captions.fill("A {x}, a media {x} and a {y}", words, "x") == (
        f"{article.title()} {words}, a media {words} and a {{y}}"
    )


def test_rows_are_drawn_as_often_as_their_weights_say(tmp_path):
    """In every round of n rows of share p each comes n p times, rounded up or down; in all, as often as p says."""
    weights = (1.0, 2.0, 4.0, 0.5, 0.5)
    file = write(tmp_path / "jobs.csv", "abcde", weights)
    found = read({"name": file, "column": "job", "weight_column": "share"})
    drawn = [prompt.subject for step in range(1000) for prompt in found.training(7, step, 5)]
    for name, weight in zip("abcde", weights, strict=True):
        share = 5 * weight / sum(weights)
        counts = [drawn[start : start + 5].count(name) for start in range(0, 5000, 5)]
        assert {np.floor(share), np.ceil(share)} >= set(counts)
        assert abs(np.mean(counts) - share) < 5 * 0.5 / np.sqrt(1000)  # five deviations of the widest coin


def test_sources_are_drawn_by_weight_and_each_goes_in_whole_rounds(tmp_path):
    sizes, weights = {"x": 7, "y": 20}, {"x": 3.0, "y": 1.0}
    sources = [
        {"name": write(tmp_path / f"{key}.txt", [f"{key}{n}" for n in range(size)], [1] * size), "weight": weights[key]}
        for key, size in sizes.items()
    ]
    found = read(*sources)
    drawn = [prompt.subject for step in range(500) for prompt in found.training(1, step, 4)]
    for key, size in sizes.items():
        own = [name for name in drawn if name.startswith(key)]
        share = weights[key] / 4
        assert abs(len(own) / 2000 - share) < 5 * np.sqrt(share * (1 - share) / 2000)
        rounds = [tuple(own[start : start + size]) for start in range(0, len(own) - size, size)]
        assert all(len(set(names)) == size for names in rounds) and len(set(rounds)) > 1


def test_the_prompts_of_a_step_follow_from_the_seed_and_its_number_alone():
    sources = [{"name": name} for name in LISTS]
    late = read(*sources).training(3, 211, 6)
    again = read(*sources)
    assert [again.training(3, step, 6) for step in range(212)][-1] == late
    assert again.training(4, 211, 6) != late and again.training(3, 212, 6) != late


def test_some_prompts_ask_for_nobody_and_the_others_stay_what_they_were():
    share, (plain, mixed) = 0.25, (subjects(PromptSection(nobody_share=share)) for share in (0, 0.25))
    pairs = [
        pair for step in range(500) for pair in zip(plain.training(1, step, 4), mixed.training(1, step, 4), strict=True)
    ]
    empty = [ours.text for other, ours in pairs if ours != other]
    assert abs(len(empty) / len(pairs) - share) < 5 * np.sqrt(share * (1 - share) / len(pairs))
    measured = {prompt.text for prompt in nobody(PromptSection())}
    assert set(empty) | measured == set(captions.NO_PERSON) and not set(empty) & measured and len(set(empty)) == 2
    own = subjects(PromptSection(nobody_share=0.9, nobody_trained=("an empty street",), nobody=()))
    assert "an empty street" in [prompt.text for step in range(9) for prompt in own.training(0, step, 1)]


def test_nobody_is_not_measured_by_what_is_trained_on():
    with pytest.raises(ValueError, match="prompts.nobody_trained and prompts.nobody both have 'an empty street'"):
        subjects(PromptSection(nobody_trained=("An empty street",), nobody=("an empty street",)))
    own = PromptSection(nobody=captions.NO_PERSON[:1])  # one that would be trained on otherwise
    assert subjects(own).nobody == captions.NO_PERSON[2:3]
    with pytest.raises(ValueError, match="nobody_share = 0.1: prompts.nobody_trained has no prompt for it: name"):
        subjects(PromptSection(nobody_share=0.1, nobody_trained=()))
    for section in (PromptSection(), PromptSection(sources=({"name": "occupations"},))):
        assert len(subjects(section).nobody) > 1 and len(nobody(section)) > 1


def test_the_embedded_world_asks_for_what_it_always_did():
    """A run of an earlier version goes on with the prompts that it would have had."""
    found = subjects(PromptSection(nobody_share=0))
    names, templates = occupations.TRAINED, captions.FINETUNE_TEMPLATES
    for seed, step in ((0, 0), (0, 11), (5, 12), (2**33 + 1, 400)):
        expected = []
        chosen = np.random.default_rng([seed, 1, step]).integers(0, len(templates), 4)
        for place, template in zip(range(4 * step, 4 * step + 4), chosen, strict=True):
            whole, turn = divmod(place, len(names))
            name = names[np.random.default_rng([seed, 0, whole]).permutation(len(names))[turn]]
            article = "an" if name[0] in "aeiou" else "a"
            expected.append(templates[template].replace("a {", f"{article} {{").format(occupation=name))
        assert [prompt.text for prompt in found.training(seed, step, 4)] == expected


def test_measuring_is_shared_out_by_weight_between_trained_and_held_out():
    found = read({"name": "occupations", "weight": 2.0}, {"name": "sports"}, {"name": "descriptors"})
    prompts = found.measuring(8)
    for held_out, split in ((False, "train"), (True, "test")):
        asked = [prompt.subject for prompt in prompts if prompt.held_out == held_out]
        lists = [
            json.loads(LISTS[name].read_text())[split]["subjects"] for name in ("occupations", "sports", "descriptors")
        ]
        assert [sum(name in names for name in asked) for names in lists] == [4, 2, 2]


def test_who_is_measured_is_spread_over_the_whole_list(tmp_path):
    """Lists are in some order, as a rule: the first of them would be of one kind."""
    file = write(tmp_path / "jobs.txt", [f"job {number}" for number in range(20)], (1.0,) * 20)
    found = read({"name": file, "templates": ["a {x}", "the {x}"]})
    texts = ["a job 0", "the job 5", "a job 10", "the job 14", "a job 19"]
    assert [prompt.text for prompt in found.measuring(5)] == [prompt.text for prompt in found.validating(5)] == texts


def test_styles_and_contexts_are_measured_in_unseen_ones_that_differ_from_prompt_to_prompt():
    found, content = read({"name": "contexts"}), json.loads(LISTS["contexts"].read_text())
    for split, prompts in (("train", found.training(0, 0, 40)), ("test", found.measuring(8))):
        for kind, fewest in (("style", 5), ("context", 7)):
            of_prompt = [{words for words in content[split][kind] if words in prompt.text} for prompt in prompts]
            assert all(of_prompt) and len(set().union(*of_prompt)) >= fewest


def test_what_is_held_out_is_not_trained_on_in_any_source_or_letters(tmp_path):
    write(tmp_path / "train.txt", ("Chef", "pilot", "welder"), (1.0,) * 3)
    write(tmp_path / "test.txt", ("chef", "nurse"), (1.0,) * 2)
    with pytest.raises(ValueError) as refused:
        read({"name": str(tmp_path)})
    unseen = "what is measured as unseen cannot be trained on"
    assert str(refused.value) == f"prompts.sources: both train and test have 'chef': {unseen}"
    write(tmp_path / "test.txt", ("nurse",), (1.0,))
    assert read({"name": str(tmp_path)}).held_out == ("nurse",)
    with pytest.raises(ValueError, match="both train and test have .*'pilot', 'welder'"):
        read({"name": str(tmp_path)}, {"name": "occupations"})


# The lists that ship.

GENDERED = re.compile(
    r"((?<!hu)m[ae]n|boys?|girls?|lady|ladies|wife|maid|lord|masters?|mistress|father|mother|sister|brother|ette|trix"
    r"|(waitr|actr|host|steward|seamstr|govern|manager|poet|song?str|author|heir|laundr|shepherd|aviatr)ess|euse)$"
    r"|^(king|queen|nun|monk|male|female|his|her)$"
)


def listed(name):
    content = json.loads(LISTS[name].read_text())
    return {split: content[split] for split in ("train", "validation", "test")}


def test_the_lists_are_as_long_as_is_promised():
    sizes = {name: [len(words["subjects"]) for words in listed(name).values()] for name in LISTS if name != "contexts"}
    assert sizes["occupations"][0] >= 1000 and sizes["occupations"][1:] == [10, 50]
    assert sizes["descriptors"][0] >= 200 and sizes["sports"][0] >= 150
    assert sizes["descriptors"][1:] == sizes["sports"][1:] == [10, 30]
    assert len(read({"name": "contexts"}).sources[0].trained.templates) > 10_000


@pytest.mark.parametrize("name", LISTS)
def test_the_lists_are_clean(name):
    """Lower case, nothing twice, no gendered forms, and nothing of one split in another."""
    for kind in listed(name)["train"]:
        splits = {split: words[kind] for split, words in listed(name).items()}
        everything = [words for split in splits.values() for words in split]
        assert [words for words, times in Counter(everything).items() if times > 1] == []
        assert [words for words in everything if not re.fullmatch(r"[a-z]+([ '-][a-z]+)*", words)] == []
        assert [words for words in everything if any(map(GENDERED.search, words.split()))] == []
        assert all(split == sorted(split) for split in splits.values())


@pytest.mark.parametrize("name", ["occupations", "sports", "descriptors"])
def test_nothing_held_out_is_the_name_of_something_trained_with_another_word_before_it(name):
    """A pastry chef trained on would make the chef of the test half known, and a traffic controller the air's.

    A single word may be trained on, of which something held out is a kind: an engineer is not yet a civil engineer.
    """
    splits = listed(name)
    trained, held_out = splits["train"]["subjects"], [*splits["validation"]["subjects"], *splits["test"]["subjects"]]
    assert containing(trained, held_out) == []
    assert containing(held_out, [words for words in trained if " " in words]) == []


def containing(names, others):
    """Those of the names in which one of the others stands, as whole words."""
    return [name for other in others for name in names if re.search(rf"\b{re.escape(other)}\b", name)]


def test_all_lists_together_hold_out_what_none_of_them_trains_on():
    sources = [{"name": name} for name in LISTS]
    for split in ("validation", "test"):
        found = read(*sources, **{"prompts.held_out_split": split})
        texts = [prompt.text for prompt in [*found.training(0, 0, 400), *found.measuring(60)]]
        assert not [text for text in texts if "{" in text or not re.match(r"an? [a-z]", text)]
        assert not [text for text in texts if re.search(r"\b[Aa] [aeio](?!ne\b)|\b[Aa]n [^aeiouh]", text)]


# What can be wrong.


@pytest.mark.parametrize(
    ("file", "text", "fields", "message"),
    [
        ("jobs.csv", "job,share\nchef,1\n", {}, "train has several columns: `column` should be one of job, share"),
        ("jobs.csv", "job\nchef\n", {"column": "jbo"}, "train has no column 'jbo': `column` should be one of job"),
        ("jobs.csv", "job\nchef\n", {"weight_column": "w"}, "has no column 'w': `weight_column` should be one of job"),
        ("jobs.txt", "chef\n \npilot\n", {}, "train row 2: ' ' should be text"),
        ("jobs.csv", 'job\nchef\n""\n', {}, "train row 2: None should be text"),
        ("jobs.csv", "job\n1\n2\n", {}, "train row 1: 1 should be text"),
        ("jobs.csv", "job,w\na,1\nb,-1\n", {"weight_column": "w"}, "train row 2: weight -1 should be a number above 0"),
        ("jobs.csv", "job,w\na,1\nb,x\n", {"weight_column": "w"}, "train row 2: weight 'x' should be a number above 0"),
        ("jobs.csv", "job,w\na,1\nb,\n", {"weight_column": "w"}, "train row 2: weight None should be a number above 0"),
        ("jobs.csv", "job\nchef\na,b,c\n", {}, "cannot be read: "),
        ("jobs.csv", "job\na chef, a person\na cook, a person\n", {"column": "job"}, "more fields than its header"),
        ("jobs.csv", "job,w\na, b,3\nc, d,5\n", {"column": "job", "weight_column": "w"}, "must stand in quotes"),
        ("jobs.csv", "job;w\nchef;1\npilot;2\n", {}, "its columns are 'job;w': between them should be commas, not ';'"),
        ("jobs.csv", "job\tw\nchef\t1\n", {}, "between them should be commas"),
        ("jobs.csv", "", {}, "cannot be read: No columns to parse from file"),
        ("jobs.json", '{"job":', {}, "cannot be read: JSON parse error"),
        ("jobs.parquet", "no", {}, "cannot be read: Parquet file size is 2 bytes"),
        ("jobs.xlsx", "no", {}, "a file should end in .csv, .json, .jsonl, .parquet, .txt"),
        ("test.txt", "chef\n", {"name": "."}, "has no train split, only test"),
        ("jobs.txt", "chef\n", {"templates": ["a cook"]}, "'a cook' should have one placeholder, such as {subject}"),
        ("jobs.txt", "chef\n", {"templates": ["a {b} {c}"]}, "'a {b} {c}' should have one placeholder"),
        ("jobs.txt", "chef\n", {"templates": ["a {b} {"]}, "'a {b} {' should have one placeholder"),
        (None, "", {"name": "ocupations"}, "'ocupations': no such file or folder, nor a dataset of the hub such as "
         "'org/name'; fairjax has contexts, descriptors, occupations, sports"),
        (None, "", {"name": "my/jobs.csv"}, "'my/jobs.csv': no such file or folder"),
        (None, "", {"name": "occupations", "column": "job"}, "comes with fairjax, and its columns cannot be chosen"),
    ],
)  # fmt: skip
def test_a_source_that_cannot_be_read_is_told_in_one_line(tmp_path, monkeypatch, file, text, fields, message):
    monkeypatch.chdir(tmp_path)
    if file:
        Path(file).write_text(text)
    with pytest.raises(ValueError) as refused:
        read({"name": file} | fields)
    assert str(refused.value).startswith("prompts.sources: ") and message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_split_that_is_asked_for_and_not_there_is_told(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.txt", (split,), (1.0,))
    with pytest.raises(ValueError, match="has no validation split, only train, test$"):
        read({"name": str(tmp_path)}, **{"prompts.held_out_split": "validation"})


@pytest.mark.parametrize("field", ["subjects", "held_out", "templates", "unseen_templates"])
def test_sources_and_what_they_take_the_place_of_are_not_given_together(field):
    with pytest.raises(UserError, match=f"prompts.sources takes the place of prompts.{field}: give one of them"):
        read({"name": "occupations"}, **{f"prompts.{field}": ["a {occupation}"]})


def test_a_weight_of_a_source_is_above_0():
    with pytest.raises(UserError, match=r"prompts.sources.0.weight = 0: must be greater than 0"):
        read({"name": "occupations", "weight": 0})


# Targets from a table.

ATTRIBUTES = (Attribute("gender", ("female", "male")), Attribute("age", ("young", "old")))
GENDER, BOTH = ("gender",), ("gender", "age")


def distributions(names, file, **fields):
    section = TargetSection(table=str(file), **fields)
    return per_prompt(names, tables.target(section, ATTRIBUTES, ("chef", "pilot", "nurse")), ATTRIBUTES)


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet"])
def test_each_subject_has_the_distribution_of_its_row_and_the_others_the_common_one(tmp_path, ending):
    rows, file = (
        [{"subject": "Chef", "male": 0.7, "female": 0.3}, {"subject": "nurse", "male": 0.9, "female": 0.1}],
        None,
    )
    file = tmp_path / f"shares.{ending}"
    if ending == "json":
        file.write_text(json.dumps(rows))
    else:
        table = datasets.Dataset.from_list(rows)
        {"csv": table.to_csv, "jsonl": table.to_json, "parquet": table.to_parquet}[ending](file)
    found = distributions(("chef", "pilot", "nurse"), file, attributes=GENDER, prompts={"nurse": (0.25, 0.75)})
    np.testing.assert_allclose(found, [[0.3, 0.7], [0.5, 0.5], [0.25, 0.75]])


def test_a_table_may_be_a_folder_with_a_file_for_each_split(tmp_path):
    for split, row in (("train", "chef,0.2,0.8"), ("test", "pilot,0.9,0.1")):
        (tmp_path / f"{split}.csv").write_text(f"subject,female,male\n{row}\n")
    found = distributions(("chef", "pilot", "nurse"), tmp_path, attributes=GENDER)
    np.testing.assert_allclose(found, [[0.2, 0.8], [0.9, 0.1], [0.5, 0.5]])


def test_a_row_is_of_whom_it_names_in_its_very_letters(tmp_path):
    """Else of all whom it names in any."""
    file, both = tmp_path / "shares.csv", ("chef", "Chef")
    section = TargetSection(attributes=("gender",), table=str(file))
    file.write_text("subject,female,male\nchef,0.2,0.8\n")
    assert tables.target(section, ATTRIBUTES, both).own == {"chef": (0.2, 0.8)}
    file.write_text("subject,female,male\nCHEF,0.2,0.8\n")
    assert tables.target(section, ATTRIBUTES, both).own == dict.fromkeys(both, (0.2, 0.8))


def test_a_table_may_give_joint_classes_or_single_attributes(tmp_path):
    file = tmp_path / "shares.csv"
    file.write_text("male old,subject,female young,female old,male young\n0.4,chef,0.1,0.2,0.3\n")
    np.testing.assert_allclose(distributions(("chef",), file, attributes=BOTH), [[0.1, 0.2, 0.3, 0.4]])
    file.write_text("subject,female,male\nchef,0.2,0.8\n")
    age = {"marginals": {"age": (0.75, 0.25)}}
    np.testing.assert_allclose(distributions(("chef",), file, attributes=BOTH, **age), [[0.15, 0.05, 0.6, 0.2]])
    file.write_text("subject,female,male,old,young\nchef,0.2,0.8,0.5,0.5\n")
    np.testing.assert_allclose(distributions(("chef",), file, attributes=BOTH, **age), [[0.1, 0.1, 0.4, 0.4]])


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("subject,female,male\nchef,.5,.5\npilot,.5,.6\n", GENDER, ", row 2 (pilot): gender sums to 1.1: it should"),
        ("subject,female,male\nchef,45,55\n", GENDER, ", row 1 (chef): gender sums to 100: it should sum to 1"),
        ("subject,female,male\nchef,1.5,-.5\n", GENDER, ", row 1 (chef): gender has -0.5"),
        ("subject,female,male\nchef,.5,\n", GENDER, ", row 1 (chef): gender has nan"),
        ("subject,female,male\nchef,.5,some\n", GENDER, ", row 1 (chef): gender = (0.5, 'some'): should be 2 probab"),
        ("subject,female,male\nchef,.5,.5\nchief,.5,.5\n", GENDER,
         ", row 2: 'chief' is not among the subjects; did you mean 'chef'?"),
        ("subject,female,male\nchef,.5,.5\nChef,.5,.5\n", GENDER, ", row 2: 'chef' has a row already"),
        ("subject,femle,male\nchef,.5,.5\n", GENDER,
         " has an unknown column 'femle': it should have subject, female, male"),
        ("subject,female\nchef,1\n", GENDER, " has no column 'male': it should have subject, female, male"),
        ("job,female,male\nchef,.5,.5\n", GENDER, " has an unknown column 'job'"),
        ("female,male\n.5,.5\n", GENDER, " has no column 'subject'"),
        ("subject,female young\nchef,1\n", BOTH,
         " has no column 'female old': it should have subject, female young, female old, male young, male old, or the "
         "classes of gender or age alone"),
        ("subject,female,young\nchef,1,1\n", BOTH, " has no column 'male'"),
        ("", GENDER, " cannot be read"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_followed_is_told_with_its_file_and_row(tmp_path, text, names, message):
    file = tmp_path / "shares.csv"
    file.write_text(text)
    with pytest.raises(ValueError) as refused:
        distributions(("chef",), file, attributes=names)
    assert str(refused.value).startswith(f"target.table = {str(file)!r}{message}") and "\n" not in str(refused.value)


def test_a_subject_of_target_prompts_may_be_held_out_and_must_be_there():
    """For training and for measuring alike; what a slip would say goes to nobody."""

    def own(**prompts):
        return tables.target(TargetSection(attributes=GENDER, prompts=prompts), ATTRIBUTES, found.known).own

    found = read(**{"prompts.subjects": ["chef"], "prompts.held_out": ["pilot"]})
    assert own(pilot=(0.9, 0.1)) == {"pilot": (0.9, 0.1)}
    for slip in ("pilott", "Pilot"):
        with pytest.raises(ValueError, match=f"^target.prompts: '{slip}' is not among the subjects; .* 'pilot'?"):
            own(**{slip: (0.9, 0.1)})


def test_where_it_is_not_known_what_a_run_was_trained_on_that_is_told(tmp_path, capsys):
    gone = load(Experiment, None, {"prompts.sources": ({"name": str(tmp_path / "gone.txt")},)}).prompts
    check_unseen(read(), gone, "runs/one")
    told = capsys.readouterr().err
    assert told.startswith("warning: whether runs/one was trained on what is measured as held out cannot be said: its ")
    assert "gone.txt" in told and told.count("\n") == 1


def test_a_column_that_is_a_class_of_two_attributes_is_not_taken_for_both(tmp_path):
    attributes = (Attribute("glasses", ("yes", "no")), Attribute("beard", ("yes", "no")))
    (tmp_path / "table.csv").write_text("subject,yes,no\nchef,.1,.9\n")
    section = TargetSection(attributes=("glasses", "beard"), table=str(tmp_path / "table.csv"))
    with pytest.raises(ValueError, match="has a column 'yes', which is a class of glasses and of beard: it should"):
        tables.target(section, attributes, ("chef",))
    (tmp_path / "table.csv").write_text("subject,yes yes,yes no,no yes,no no\nchef,.1,.2,.3,.4\n")
    assert tables.target(section, attributes, ("chef",)).own == {"chef": (0.1, 0.2, 0.3, 0.4)}


def test_a_step_is_asked_for_what_the_sources_and_the_table_say(tmp_path):
    (tmp_path / "shares.csv").write_text("subject,female,male\nadviser of the crown,0.1,0.9\n")
    write(tmp_path / "jobs.txt", ("usher", "adviser of the crown"), (1.0, 1.0))
    fields = {
        "prompts.sources": [{"name": str(tmp_path / "jobs.txt"), "templates": ["a {job}"]}],
        "target.table": str(tmp_path / "shares.csv"),
        "training.prompts_per_step": 2,
    }
    fields |= {"prompts.nobody_share": 0.5, "prompts.nobody_trained": ("an empty room",), "seed": 1}
    finetuning = Finetuning(load(Experiment, None, fields), parallel.mesh(1))
    batches = [finetuning.batch(number, {}) for number in range(4)]
    batch = np.concatenate([batch.distributions for batch, _ in batches])
    prompts = [prompt for _, prompts in batches for prompt in prompts]
    rows = {prompt.text: row.tolist() for prompt, row in zip(prompts, batch, strict=True)}
    assert rows["an usher"] == [0.5, 0.5] and rows["an empty room"] == [0, 0]
    np.testing.assert_allclose(rows["an adviser of the crown"], [0.1, 0.9])


def test_nobody_who_is_held_out_has_a_part_in_the_choice_of_the_best(tmp_path):
    """One source's list to look at a run by may have whom another holds out."""
    splits = {
        "a": {"train": "chef", "test": "Nurse"},
        "b": {"train": "cook", "test": "judge", "validation": "nurse pilot"},
    }
    for folder, lists in splits.items():
        (tmp_path / folder).mkdir()
        for split, names in lists.items():
            write(tmp_path / folder / f"{split}.txt", names.split(), (1.0,) * len(names.split()))
    found = read(*({"name": str(tmp_path / folder)} for folder in splits))
    assert {prompt.subject for prompt in found.validating(8)} == {"chef", "pilot"}
    assert "Nurse" in found.held_out


ELSEWHERE = ("../mine.csv", "{mine}", "https://somewhere.example/a.csv", "hf://datasets/somebody/else/a.csv")


@pytest.mark.parametrize("place", ELSEWHERE)
@pytest.mark.parametrize("card", ["README.md", ".huggingface.yaml"])
def test_a_folder_does_not_have_files_of_elsewhere_read(card, place, tmp_path):
    write(tmp_path / "mine.csv")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "train.txt").write_text("a chef\n")
    said = "configs:\n- config_name: default\n  data_files: " + place.format(mine=tmp_path / "mine.csv")
    (tmp_path / "theirs" / card).write_text(f"---\n{said}\n---\n" if card == "README.md" else said)
    assert tables.read(str(tmp_path / "theirs"))["train"]["text"] == ["a chef"]


PACKED = {
    "zip": lambda path: zipfile.ZipFile(path, "w").writestr("a.csv", "job\nchef"),
    "gzip": lambda path: path.write_bytes(gzip.compress(b"job\nchef\n")),
    "xz": lambda path: path.write_bytes(lzma.compress(b"job\n")),
}


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("name", ["a.csv", "in/a.csv", "in/a.zip", "in/a.csv.gz"])
def test_what_is_packed_is_not_unpacked_whatever_its_name(name, kind, tmp_path):
    """A little can be very much, and `datasets` unpacks all of it."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    PACKED[kind](path)
    with pytest.raises(ValueError, match=rf"{path.name} is packed \({kind}\): unpack it first"):
        tables.read(str(path if name == "a.csv" else path.parent))


def test_a_folder_of_any_name_is_read(tmp_path):
    (tmp_path / "a[1] b*").mkdir()
    write(tmp_path / "a[1] b*" / "train.csv")
    assert tables.read(str(tmp_path / "a[1] b*"))["train"]["job"] == list(NAMES)


def test_a_folder_of_something_else_is_told(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(ValueError, match="should hold pictures, or files that end in .csv"):
        tables.read(str(tmp_path))
