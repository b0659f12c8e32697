"""Options of passes: their kinds, read off a signature, and their text form.

    canonicalize,recognize{only=rope,silu},linearize{recipes="layers.*":elu1};limit=12

Options are set apart by spaces, the items of one by commas, key and item of a mapping by a colon.
Words with other signs in them are quoted as in JSON.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from ..ir import IRError

_SCALARS: dict[type, Callable[[str], Any]] = {str: str, int: int, float: float}


@dataclass(frozen=True, slots=True)
class Option:
    """One keyword of a pass: a scalar, a tuple of scalars or a mapping from names to scalars.

    form: "one", "many" or "map". item: bool, int, float or str.
    """

    name: str
    form: str
    item: type
    default: Any

    def check(self, value: Any) -> Any:
        """`value` in stored form. Raises IRError when it is not of the kind."""
        if value is None:
            return self.default
        try:
            if self.form == "map":
                return {str(k): self._one(v) for k, v in value.items()}
            if self.form == "many":
                return tuple(self._one(v) for v in ((value,) if isinstance(value, str) else value))
            return self._one(value)
        except (TypeError, ValueError, AttributeError):
            raise IRError(f"option {self.name}={value!r} is not {self.kind}") from None

    def _one(self, value: Any) -> Any:
        if self.item is bool or isinstance(value, bool):
            if self.item is not bool or not isinstance(value, bool):
                raise TypeError
            return value
        if self.item is str:
            return value  # a name, or an object that has one
        if isinstance(value, str):
            raise TypeError
        return self.item(value)

    @property
    def kind(self) -> str:
        """The kind in words, for messages."""
        words = {bool: "true or false", int: "an integer", float: "a number", str: "a name"}
        one = words[self.item]
        many = {"one": one, "many": f"a list, each {one}", "map": f"a mapping, each {one}"}
        return many[self.form]

    def parse(self, pairs: list[tuple[str | None, str]]) -> Any:
        """The value of `key:item` pairs. Raises IRError."""
        if (self.form == "map") != all(key is not None for key, _ in pairs):
            raise IRError(f"option {self.name!r} is {self.kind}")
        if self.form == "one" and len(pairs) != 1:
            raise IRError(f"option {self.name!r} takes one item, given {len(pairs)}")
        items = [self._read(text) for _, text in pairs]
        if self.form == "map":
            return {key: item for (key, _), item in zip(pairs, items, strict=True)}
        return tuple(items) if self.form == "many" else items[0]

    def _read(self, text: str) -> Any:
        try:
            if self.item is bool:
                return {"true": True, "false": False}[text]
            return _SCALARS[self.item](text)
        except (KeyError, ValueError):
            raise IRError(f"option {self.name!r} is {self.kind}, not {text!r}") from None

    def text(self, value: Any) -> str:
        """The text that `parse` reads back."""
        if self.form == "map":
            return ",".join(f"{_word(k)}:{_word(v)}" for k, v in value.items())
        return ",".join(map(_word, value)) if self.form == "many" else _word(value)


_BARE = re.compile(r"[^\s,;:{}=\"]+")


def _word(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text)


def options_of(function: Callable[..., Any]) -> dict[str, Option]:
    """The keyword-only parameters of a function as options. Raises IRError for other kinds."""
    hints = typing.get_type_hints(function)
    found: dict[str, Option] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        name, hint = parameter.name, hints.get(parameter.name)
        args = [a for a in typing.get_args(hint) if a is not type(None)]
        if typing.get_origin(hint) in (typing.Union, types.UnionType) and len(args) == 1:
            hint = args[0]
            args = list(typing.get_args(hint))
        origin = typing.get_origin(hint)
        form = {tuple: "many", Mapping: "map"}.get(typing.cast(Any, origin), "one")
        item = args[0] if form == "many" else args[1] if form == "map" else hint
        item = str if item is Any else item
        if item not in (bool, int, float, str):
            raise IRError(f"{function.__name__!r}: parameter {name!r} cannot be an option")
        default = () if parameter.default is parameter.empty else parameter.default
        found[name] = Option(name, form, typing.cast(type, item), default)
    return found


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a known name is near, else the known names."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known) or 'none'}"


_TOKEN = re.compile(
    r'(?P<string>"(?:[^"\\]|\\.)*")|(?P<word>[^\s,;:{}="]+)|(?P<sign>[,;:{}=])|(?P<space>\s+)'
)


class Reader:
    """A strict reader of pipeline text; every failure is an IRError with a caret."""

    def __init__(self, text: str):
        self.text, self.tokens, at = text, [], 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                self.fail(at, f"cannot read {text[at]!r}")
            if match.lastgroup != "space":
                self.tokens.append((match.lastgroup or "", match.group(), at))
            at = match.end()
        self.tokens.append(("end", "end of text", len(text)))
        self.at = 0

    @property
    def position(self) -> int:
        """Where the next token starts."""
        return self.tokens[self.at][2]

    def fail(self, position: int, message: str) -> NoReturn:
        """Raise an IRError that points at `position`."""
        raise IRError(f"{message}\n    {self.text}\n    {' ' * position}^")

    def accept(self, sign: str) -> bool:
        """Whether the next token is this sign; it is then taken."""
        found = self.tokens[self.at][:2] == ("sign", sign)
        self.at += found
        return found

    def expect(self, sign: str) -> None:
        """Take this sign."""
        if not self.accept(sign):
            self.fail(self.position, f"expected {sign!r}, found {self.tokens[self.at][1]!r}")

    def word(self) -> str:
        """Take a bare or quoted word."""
        kind, text, position = self.tokens[self.at]
        if kind not in ("word", "string"):
            self.fail(position, f"expected a name, found {text!r}")
        self.at += 1
        if kind == "word":
            return text
        try:
            return str(json.loads(text))
        except ValueError:
            self.fail(position, f"malformed string {text}")

    def pairs(self) -> list[tuple[str | None, str]]:
        """Take `item,item` or `key:item,key:item`."""
        found: list[tuple[str | None, str]] = []
        while True:
            first = self.word()
            found.append((first, self.word()) if self.accept(":") else (None, first))
            if not self.accept(","):
                return found
