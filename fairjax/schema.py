"""Typed configuration: pydantic schemas, read from YAML and from `--section.field VALUE` on the command line.

A schema is a `Section` whose fields are values or further sections. Every mistake in a value becomes a
`UserError` of one line that says where it is, what was given and what would be right; of a section made in Python,
a ValueError. This module imports neither jax nor numpy, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic
import yaml
from pydantic_core import PydanticUndefined

from fairjax import schema_errors
from fairjax.models.configs import as_tuples
from fairjax.program import Parser, UserError, blame

__all__ = ["Section", "add_arguments", "dump", "load", "parse", "read_yaml"]


class Section(pydantic.BaseModel):
    """A group of fields: of exact types, every number finite, none unknown, and unchangeable once made."""

    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except pydantic.ValidationError as error:
            raise ValueError(schema_errors.explain(error, type(self), _plain(fields))) from None

    __init__.__pydantic_base_init__ = True  # pydantic: sections inside another need not go through it

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        """In Python, too, a list is as good as a tuple, and so are an array and its numbers."""
        return as_tuples(_listed(value))


def _listed(value: Any) -> Any:
    """`value` with lists and Python's numbers for the arrays and numbers of NumPy and JAX in it."""
    match value:
        case dict():
            return {name: _listed(item) for name, item in value.items()}
        case list() | tuple():
            return [_listed(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


Schema = TypeVar("Schema", bound=Section)


# YAML, with the scalars of YAML 1.2: PyYAML's own 1.1 reads 5e-5 as text and `no` as false.
_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
}  # fmt: skip


_DEEPEST = 20
"""So far values may lie in each other: no field needs more, and what reads them goes down as deep."""

_LARGEST = 10**6
"""The most characters of a configuration: each is gone through many times."""


class _Loader(yaml.SafeLoader):
    """What a configuration needs of YAML: plain values, lists, and mappings whose keys are names.

    Tags could ask for other types, and aliases make a short text a huge value, or one that holds itself.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor or event.tag:
            raise yaml.composer.ComposerError(None, None, "anchors, aliases and tags are not read", event.start_mark)
        if self.depth > _DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"nested more than {_DEEPEST} deep", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        try:
            return int(node.value)  # 1.1 would read 010 as octal
        except ValueError:  # Python reads 4,300 digits
            raise _wrong(f"a number of {len(node.value)} digits", node) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _wrong("a key must be a name", key)
            if key.value in mapping:
                raise _wrong(f"{schema_errors.shown(key.value)} is given twice", node)
            mapping[key.value] = self.construct_object(value, deep=True)
        return mapping


def _wrong(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # the loader's, so that what would be misread is quoted


for _tag, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read_yaml(path: str | Path) -> Any:
    """What a YAML file says, by the rules of a configuration; raises UserError naming it."""
    with blame(f"cannot read {path}"), Path(path).open(encoding="utf-8") as file:
        text = file.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise UserError(f"cannot read {path}: it has more than {_LARGEST:,} characters")
    return _read_yaml(text, str(path))


def _read_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{where}{place}: not valid YAML: {' '.join(problem.split())}") from None


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """A field that is a value, as the command line sees it."""

    section: str
    section_help: str
    annotation: Any
    help: str
    default: Any


def _as_section(annotation: Any) -> type[Section] | None:
    """The section that a field holds (or may hold), if it holds one."""
    found = [
        option
        for option in (typing.get_args(annotation) if _is_union(annotation) else (annotation,))
        if isinstance(option, type) and issubclass(option, Section)
    ]
    return found[0] if len(found) == 1 else None


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _leaves(schema: type[Section], defaults: Any = PydanticUndefined, path: str = "") -> dict[str, _Leaf]:
    """Every value of the schema by its dotted path; `defaults` is the section's default instance, if any."""
    leaves = {}
    for name, field in schema.model_fields.items():
        default = (
            getattr(defaults, name) if isinstance(defaults, Section) else field.get_default(call_default_factory=True)
        )
        dotted = f"{path}.{name}" if path else name
        if section := _as_section(field.annotation):
            leaves |= _leaves(section, default, dotted)
        else:
            doc = (schema.__doc__ or "") if schema.__doc__ != Section.__doc__ else ""
            about = " ".join(doc.strip().partition("\n\n")[0].split())
            leaves[dotted] = _Leaf(path, about, field.annotation, field.description or "", default)
    return leaves


def _placeholder(annotation: Any) -> str:
    """How `--help` shows the kind of value that a field takes."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _placeholder(args[0])
    if origin is Literal:
        return "|".join(str(value) for value in args)
    if _is_union(annotation):
        return "|".join(_placeholder(option) for option in args)
    if origin in (tuple, list, set, frozenset):
        return "[" + ", ".join("..." if arg is Ellipsis else _placeholder(arg) for arg in args) + "]"
    if origin in (dict, Mapping):
        return "{" + ": ".join(_placeholder(arg) for arg in args) + "}"
    names = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", bool: "true|false", type(None): "null"}
    return names.get(annotation, "{...}" if _as_section(annotation) else "VALUE")


def _plain(value: Any) -> Any:
    """`value` as YAML knows it: sections become mappings, tuples lists, paths text."""
    match value:
        case pydantic.BaseModel():
            return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
        case Mapping():
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
        case enum.Enum():
            return value.value
        case Path():
            return str(value)
    return value


def _inline(value: Any) -> str:
    """`value` in YAML, on one line."""
    text = yaml.dump(_plain(value), Dumper=_Dumper, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def add_arguments(
    parser: argparse.ArgumentParser, schema: type[Section], helps: Mapping[str, str] = types.MappingProxyType({})
) -> None:
    """Gives `parser` an option `--a.b.c VALUE` for every value of the schema, in one group for each section.

    Options that are not given leave nothing in the namespace; those given leave their text. `helps` has what a program
    says of fields in place of the schema, default included.
    """
    groups: dict[str, Any] = {}
    for dotted, leaf in _leaves(schema).items():
        if leaf.section not in groups:
            groups[leaf.section] = parser.add_argument_group(leaf.section or "experiment", leaf.section_help)
        default = "required" if leaf.default is PydanticUndefined else f"default: {_inline(leaf.default)}"
        groups[leaf.section].add_argument(
            f"--{dotted}",
            dest=dotted,
            metavar=_placeholder(leaf.annotation),
            default=argparse.SUPPRESS,
            help=helps.get(dotted, f"{leaf.help} ({default})").strip().replace("%", "%%"),
        )


def parse(
    schema: type[Schema],
    argv: list[str],
    prog: str,
    description: str,
    extra: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    config_of: Callable[[argparse.Namespace], Path | None] = lambda options: None,
    helps: Mapping[str, str] = types.MappingProxyType({}),
) -> tuple[Schema, argparse.Namespace]:
    """Reads a command line: `--config FILE`, then any values of the schema, which win over the file's.

    Args:
        extra: adds the program's own options to the parser.
        config_of: the file to read where the command line names none, by the program's own options.
        helps: what this program says of fields in place of the schema.

    Returns:
        The configuration, and the values of the program's own options; among them `config`, the file that the command
        line names, and `given`, the names of the fields that it sets.
    """
    parser = Parser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        usage=f"{prog} [--config FILE] [--section.field VALUE ...]",
    )
    parser.add_argument("--config", metavar="FILE", type=Path, help="a YAML file of the fields below")
    extra(parser)
    add_arguments(parser, schema, helps)
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(
            _unknown_argument(unknown[0], [name for name in parser._option_string_actions if name != "--help"])
        )

    given, leaves = vars(namespace), _leaves(schema)
    overrides = {name: _from_text(name, given.pop(name), leaves[name].annotation) for name in leaves if name in given}
    namespace.given = frozenset(overrides)
    return load(schema, namespace.config or config_of(namespace), overrides), namespace


def _unknown_argument(argument: str, options: list[str]) -> str:
    name = argument.partition("=")[0]
    if not name.startswith("--"):
        return f"unexpected argument {argument!r}"
    return schema_errors.unknown(name.removeprefix("--"), [option.removeprefix("--") for option in options])


def _from_text(name: str, text: str, annotation: Any) -> Any:
    """A value of the command line: YAML, except that a field of text takes the text as it stands."""
    options = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    value = _read_yaml(text, f"--{name}")
    textual = all(option in (str, Path, type(None)) for option in options)
    return text if textual and not (value is None and type(None) in options) else value


def load(schema: type[Schema], path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> Schema:
    """The configuration in the YAML file `path` (defaults if None), with `overrides` by dotted name on top.

    Raises:
        UserError: in one line, naming each wrong field by its dotted path.
    """
    data: Any = {}
    if path is not None:
        data = read_yaml(path)
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise UserError(f"{path}: must be a mapping of fields, not {schema_errors.shown(data)}")
    for dotted, value in (overrides or {}).items():
        _set(data, dotted, _plain(value))
    try:
        # By way of JSON, where pydantic's strict types take a list for a tuple and text for a path.
        return schema.model_validate_json(json.dumps(data, default=str))
    except pydantic.ValidationError as error:
        prefix = f"{path}: " if path is not None and not overrides else ""
        raise UserError(prefix + schema_errors.explain(error, schema, data)) from None


def _set(data: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    for index, parent in enumerate(parents):
        if data.get(parent) is None:
            data[parent] = {}
        data = data[parent]
        if not isinstance(data, dict):
            raise UserError(f"{'.'.join(parents[: index + 1])} = {schema_errors.shown(data)}: must be a section")
    data[leaf] = value


def dump(config: Section) -> str:
    """The whole configuration as YAML text, which `load` reads back equal."""
    return yaml.dump(
        _plain(config),
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=None,
        width=110,
        allow_unicode=True,
    )
