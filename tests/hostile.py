"""Configurations that are malformed, and known to be: hypothesis draws them for `test_hostile.py`.

Each says what the one line about it must name. What could run code says so by making a file, the canary.
"""

import json
from typing import NamedTuple

import yaml
from hypothesis import strategies as st

from fairjax import schema
from fairjax.config import Experiment

LEAVES = schema._leaves(Experiment)
SECTIONS = sorted({leaf.section for leaf in LEAVES.values()})

_NOT_FINITE = [".nan", ".inf", "-.inf", "1e400", "-1e999"]
_HUGE = ["1" + "0" * 30, "-" + "9" * 30, "9" * 5000, "4294967296", "9223372036854775808"]
_LISTS = ["[]", "[[[]]]", "[1, x]", "[{a: [b]}]"]
_MAPPINGS = ["{a: 1}", "{a: {b: {c: 1}}}"]
_NOT_THESE = {  # by what a field takes, what it does not
    int: ["abc", "'1'", "1.5", "true", "-1", *_NOT_FINITE, *_HUGE, *_LISTS, *_MAPPINGS],
    float: ["abc", "'0.5'", "true", *_NOT_FINITE, *_LISTS, *_MAPPINGS],
    bool: ["abc", "'true'", "3", "0.5", *_NOT_FINITE, *_LISTS, *_MAPPINGS],
    str: ["3", "0.5", "true", *_NOT_FINITE, *_LISTS, *_MAPPINGS],
    tuple: ["abc", "3", "true", "[[[[0.5]]]]", "[{a: 1}]", "[null]", "[.nan]", "[.inf, 1e400]", *_MAPPINGS],
    dict: ["abc", "3", "true", "[1]", "{a: {b: 1}}", "{a: .nan}", "{a: [[[[1]]]]}", "{a: [.inf]}", "{a: [null]}"],
}


class Config(NamedTuple):
    text: str | bytes
    names: str = ""  # what the line must say


def _kind(annotation):
    """int, float, bool, str, tuple or dict; of a union or a choice, that of its first."""
    for option in (annotation, *getattr(annotation, "__args__", ())):
        origin = getattr(option, "__origin__", option)
        if origin in _NOT_THESE:
            return origin
    return str


def _at(dotted, value):
    """YAML that has `value`, YAML too, at a dotted name; in one of two styles."""
    *parents, leaf = dotted.split(".")
    lines = [f"{'  ' * depth}{name}:\n" for depth, name in enumerate(parents)]
    return f"{''.join(lines)}{'  ' * len(parents)}{leaf}: {value}\n"


_fields = st.sampled_from(sorted(LEAVES))
_words = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12)


WRONG_VALUES = [
    Config(_at(name, value), "a number of 5000 digits" if len(value) == 5_000 else name)
    for name in sorted(LEAVES)
    for value in _NOT_THESE[_kind(LEAVES[name].annotation)]
]


@st.composite
def _unknown_keys(draw):
    section, key = draw(st.sampled_from(SECTIONS)), draw(_words)
    dotted = f"{section}.x{key}" if section else f"x{key}"
    return Config(_at(dotted, draw(st.sampled_from(["1", "[]", "abc", "{a: 1}"]))), f"unknown field {dotted}")


@st.composite
def _odd_keys(draw):
    """Keys that are no names: of other types, lists, given twice, with control characters, very many, very long."""
    odd = '"\\e[31m\\a"', '"\\0"', '"\\ud800"', "x" * 20_000, "'a\n\n b'"
    key = draw(st.sampled_from(["1", "0.5", "null", "true", ".nan", "? [a, b]\n", "? {a: b}\n", "''", "{}", *odd]))
    text = draw(st.sampled_from([f"{key}: 1\n", f"training: {{steps: 1, steps: 2}}\n{key}: 1\n"]))
    return Config(draw(st.sampled_from([text, "".join(f"{key[:40]}{i}: 1\n" for i in range(2_000))])))


@st.composite
def _deep(draw):
    """Nested ten to a hundred thousand times, in a field or alone."""
    depth, (opening, closing) = draw(st.sampled_from([40, 400, 5_000, 100_000])), draw(st.sampled_from(["[]", "{}"]))
    inner = "a: " if opening == "{" else ""
    nested = (opening + inner) * depth + "1" + closing * depth * draw(st.booleans())
    block = "".join(f"{' ' * i}a:\n" for i in range(min(depth, 1_200)))
    return Config(draw(st.sampled_from([_at(draw(_fields), nested), nested, block, "- " * depth])))


TAGS = (  # what they would run makes a file
    '!!python/object/apply:os.system ["touch canary"]', "!!python/object/new:os.system [touch canary]",
    "!!python/name:os.system", "!!python/module:os", "!!python/object/apply:subprocess.check_output [[touch, canary]]",
    "!!timestamp 2001-01-01", "!!timestamp abc", "!!int abc", "!!float ''", "!!bool maybe", "!!binary aGk=",
    "!!set {a}", "!!omap [a: 1]", "!!pairs [a: 1]", "!mine 3", "!!null x", "!<tag:yaml.org,2002:int> 3",
)  # fmt: skip


@st.composite
def _tags(draw):
    return Config(
        draw(st.sampled_from([_at(draw(_fields), tag) for tag in TAGS] + [f"? {tag}\n: 1\n" for tag in TAGS]))
    )


@st.composite
def _anchors(draw):
    """Billions of laughs, things that hold themselves, merges."""
    levels, width = draw(st.integers(3, 40)), draw(st.integers(2, 12))
    laughs = "&a0 [lol, lol]"
    for level in range(1, levels):
        laughs = f"&a{level} [{', '.join([laughs, *[f'*a{level - 1}'] * width])}]"
    mapping = "x0: &x0 [lol]\n" + "".join(
        f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * width)}]\n" for i in range(1, levels)
    )
    field = draw(_fields)
    texts = (_at(field, laughs), mapping, _at(field, "&a [*a]"), _at(field, "&a {b: *a}"), "&a {training: *a}",
             "a: &a {steps: 1}\ntraining: {<<: *a}\n", "training: *nowhere\n", "training: &a {steps: 3}\n")  # fmt: skip
    return Config(draw(st.sampled_from(texts)))


def _broken(text):
    """Whether it is no YAML, or no mapping of known fields."""
    try:
        content = yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeError):
        return True
    return content not in (None, "~", "null", "Null", "NULL") and not (
        isinstance(content, dict) and set(content) <= {*Experiment.model_fields}
    )


_scalars = st.none() | st.booleans() | st.floats() | st.text(max_size=8)
_trees = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
_junk = st.one_of(
    st.binary(min_size=1, max_size=200).filter(_broken),
    st.text(min_size=1, max_size=200).filter(_broken),
    _trees.map(json.dumps).filter(_broken),
    st.sampled_from([
        "seed: 1".encode("utf-16"), b"seed: 1\0", b"\xc3\x28", "[", "seed: 'x", "a: b: c", "\t- x",
        "seed: 1\n---\nseed: 2", "%YAML 9.9\n---\nseed: 1", "#" * 3_000_000, "seed: " + "1" * 3_000_000,
    ]),
).map(Config)  # fmt: skip

CONFIGS = st.one_of(st.sampled_from(WRONG_VALUES), _unknown_keys(), _odd_keys(), _deep(), _tags(), _anchors(), _junk)

LAUGHS = "x0: &x0 [lol]\n" + "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]\n" for i in range(1, 30))
