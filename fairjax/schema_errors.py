"""What is wrong with a configuration: where, what was given, what would be right."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pydantic

_MOST_LISTED = 4
_MOST_TOLD = 100  # of problems are put into words, each of which may take a search through all names

_REQUIREMENTS = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a section of fields",
    "model_attributes_type": "a section of fields",
    "none_required": "null",
    "finite_number": "finite",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of {max_length} or fewer",
}


def shown(value: Any) -> str:
    """`value` as an error shows it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def unknown(name: str, known: Iterable[str]) -> str:
    """The complaint about a field that does not exist, with the name that was probably meant.

    That is one whose name has this one as a word of its own, or nearly is this one, in the section that was named; else
    the same name in another section; else what is spelled most alike.
    """
    known = list(known)
    section, _, leaf = name.rpartition(".")
    beside = [other.rpartition(".")[2] for other in known if section and other.rpartition(".")[0] == section]
    worded = [other for other in beside if f"_{leaf}_" in f"_{other}_"]
    beside = worded or difflib.get_close_matches(leaf, beside, n=1, cutoff=0.75)
    elsewhere = [other for other in known if other.rpartition(".")[2] == leaf]
    near = [f"{section}.{other}" for other in beside] or elsewhere or difflib.get_close_matches(name, known, n=1)
    return f"unknown field {name}" + (f" (did you mean {near[0]}?)" if near else "")


def explain(error: pydantic.ValidationError, schema: type[pydantic.BaseModel], data: Any) -> str:
    """All that is wrong, in one line; `data` is what was validated."""
    wrong: dict[str, list[str]] = {}  # requirements by complaint: the options of a union share theirs
    problems = error.errors(include_url=False)
    inside = {problem["loc"][: -1 - up] for problem in problems for up in range(len(problem["loc"]))}
    # what is wrong in a list is left out of it before its length is looked at
    problems = [problem for problem in problems if problem["type"] != "too_short" or problem["loc"] not in inside]
    for problem in problems[:_MOST_TOLD]:
        where, requirement = _complaint(problem, schema, data)
        requirements = wrong.setdefault(where, [])
        if requirement and requirement not in requirements:
            requirements.append(requirement)
    lines = [where + (f": {_either(needs)}" if needs else "") for where, needs in wrong.items()]
    left = len(lines) - _MOST_LISTED + max(0, len(problems) - _MOST_TOLD)
    more = f"; and {left} more" if len(lines) > _MOST_LISTED else ""
    return "; ".join(lines[:_MOST_LISTED]) + more


def requirements(error: pydantic.ValidationError) -> str:
    """What would be right instead of a value that is no section."""
    return _either(list(dict.fromkeys(map(_requirement, error.errors(include_url=False)))))


def _requirement(problem: Mapping[str, Any]) -> str:
    template = _REQUIREMENTS.get(problem["type"])
    if template is None:
        return problem["msg"][0].lower() + problem["msg"][1:]
    return "must be " + template.format(**problem.get("ctx", {}))


def _either(requirements: list[str]) -> str:
    first, *others = requirements
    return " or ".join([first, *(other.removeprefix("must be ") for other in others)])


def _as_lists(value: Any) -> Any:
    """What was given, in which all lists had been made tuples."""
    if isinstance(value, dict):
        return {name: _as_lists(item) for name, item in value.items()}
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value


def _complaint(problem: Mapping[str, Any], schema: type[pydantic.BaseModel], data: Any) -> tuple[str, str]:
    """What is wrong where, and what would be right."""
    kind, location = problem["type"], _in_data(problem["loc"], data, problem["type"] == "missing")
    given = _as_lists(problem["input"])
    dotted = ".".join(str(part) for part in location)
    if kind == "extra_forbidden":
        siblings = [".".join(map(str, (*location[:-1], name))) for name in _fields_at(schema, location[:-1])]
        return unknown(dotted, [*siblings, *_names(schema)]), ""
    whole = location[:-1] if kind == "missing" else location
    if kind in ("missing", "too_long") and (length := _length(schema, whole)):
        return f"{'.'.join(map(str, whole))} = {shown(given)}", f"must be a list of {length}"
    if kind == "missing":
        return f"{dotted} is missing", ""
    if kind == "value_error":  # a validator of ours, whose message is the requirement
        reason = str(problem["ctx"]["error"])
        about_section = isinstance(given, dict)
        return (dotted or "configuration") + ("" if about_section else f" = {shown(given)}"), reason
    if kind == "json_invalid":  # by way of which it is validated: whatever YAML and the command line have beyond it
        return "configuration", "must be text of valid characters"
    return f"{dotted} = {shown(given)}", _requirement(problem)


def _in_data(location: tuple[Any, ...], data: Any, missing: bool) -> tuple[Any, ...]:
    """The location without the names that pydantic adds for the options of a union."""
    kept = []
    for index, part in enumerate(location):
        inside = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if inside or isinstance(data, dict) and part in data:
            data = data[part]
            kept.append(part)
        elif missing and index == len(location) - 1:
            kept.append(part)
    return tuple(kept)


def _inside(annotation: Any, part: Any) -> Iterator[Any]:
    """The annotations that `part` (a field, key or index) may have inside a value of type `annotation`."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        if part in annotation.model_fields:
            yield annotation.model_fields[part].annotation
        return
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin in (tuple, list):
        yield arguments[min(part, len(arguments) - 1)] if arguments[-1] is not Ellipsis else arguments[0]
    elif origin in (dict, Mapping):
        yield arguments[1]
    else:
        for option in arguments:
            yield from _inside(option, part)


def _at(schema: Any, location: tuple[Any, ...]) -> Iterator[Any]:
    """The annotations that may stand at `location`, one by one where they are options of a union."""
    if location:
        for inner in _inside(schema, location[0]):
            yield from _at(inner, location[1:])
    elif typing.get_origin(schema) in (typing.Union, types.UnionType, typing.Annotated):
        for option in typing.get_args(schema):
            yield from _at(option, ())
    else:
        yield schema


def _fields_at(schema: Any, location: tuple[Any, ...]) -> list[str]:
    """The names of the fields of the sections that may stand at `location`."""
    options = [option for option in _at(schema, location) if isinstance(option, type)]
    return [name for option in options if issubclass(option, pydantic.BaseModel) for name in option.model_fields]


def _length(schema: Any, location: tuple[Any, ...]) -> int | None:
    """How many values the list at `location` has, where it must have a number of them."""
    tuples = [option for option in _at(schema, location) if typing.get_origin(option) is tuple]
    return next((len(args) for args in map(typing.get_args, tuples) if args[-1] is not Ellipsis), None)


def _names(schema: Any, path: str = "") -> list[str]:
    """The dotted names of all fields of the sections of a schema."""
    names = []
    for name in _fields_at(schema, ()):
        names.append(path + name)
        for inner in _inside(schema, name):
            names += _names(inner, f"{path}{name}.")
    return names
