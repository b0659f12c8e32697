"""The text form of graphs, read: a strict parser, inverse to the printer.

    graph name(%x: f32[b,n,64]) where b >= 1, 2 <= n <= 512 {
      %0 = param(name="w") : f32[64,64]
      %1 = matmul(%x, %0) : f32[b,n,64]
      update "cache" = %1
      return %1
    }

The parser is a tokenizer and a recursive descent with limits: nothing is evaluated, and only
IRError (with line and caret) escapes, whatever the text.
"""

from __future__ import annotations

import difflib
import json
import re
from typing import Any, NamedTuple, NoReturn

from . import dims
from .attributes import Slot, _a
from .core import OPS, Value, build, building
from .dims import Dim, Poly
from .errors import IRError
from .graph import Graph
from .types import DTYPES, DType, TensorType

MAX_BYTES, MAX_NESTING, MAX_DEPTH, MAX_INT = 64 << 20, 16, 64, 1 << 63


_TOKEN = re.compile(
    r"""[ \t\r]*(?:(?P<value>%[A-Za-z0-9_.]+)|(?P<name>[A-Za-z_][A-Za-z0-9_.]*)
    |(?P<sign>//|<=|>=|[-+*(){}\[\],:=])|(?P<line>\n)|(?P<slot>\$[0-9]+)
    |(?P<string>"[^"\\\n]*(?:\\[^\n][^"\\\n]*)*")
    |(?P<float>[0-9]+\.[0-9]*(?:e[+-]?[0-9]+)?|[0-9]+e[+-]?[0-9]+)|(?P<int>[0-9]+)
    |(?P<bad>[^ \t\r]))""",
    re.VERBOSE,
)


class _Token(NamedTuple):
    kind: str
    text: str
    start: int


def parse(text: str) -> Graph:
    """The graph printed as `text`. Raises IRError with line and caret for anything else."""
    graphs = parse_many(text)
    if len(graphs) != 1:
        raise IRError(f"expected one graph, found {len(graphs)}")
    return graphs[0]


def parse_many(text: str) -> list[Graph]:
    """Every graph in `text`, in order; comments between them are skipped."""
    if not isinstance(text, str):
        raise IRError(f"expected text, got {type(text).__name__}")
    if len(text) > MAX_BYTES:
        raise IRError(f"text of {len(text)} characters; the limit is {MAX_BYTES}")
    graphs = []
    with building():
        parser = _Parser(text)
        while parser.peek().kind != "end":
            graphs.append(parser.graph())
    return graphs


def parse_dim(text: str) -> Dim:
    """The dimension printed as `text`, "2*n + 1". Raises IRError with a caret for anything else."""
    parser = _Parser(f"({text})")  # `//` divides inside brackets only
    found = parser.dim()
    if parser.peek().kind != "end":
        parser._fail(parser.peek(), "a dimension ends before this")
    return found


class _Parser:
    def __init__(self, text: str):
        self.text, self.at, self.depth = text, 0, 0
        self.types: dict[str, tuple[TensorType, int]] = {}  # by text, with the number of tokens
        self.tokens = self._tokenize()

    def _tokenize(self) -> list[_Token]:
        tokens: list[_Token] = []
        inside = 0  # `//` divides inside brackets of types and tuples, and is a comment elsewhere
        comment = False
        for match in _TOKEN.finditer(self.text):
            kind = match.lastgroup or ""
            if kind == "line":
                inside, comment = 0, False
                continue
            if comment:
                continue
            token = _Token(kind, match[kind], match.start(kind))
            if kind == "sign":
                if token.text in "([":
                    inside += 1
                elif token.text in ")]":
                    inside = max(0, inside - 1)
                elif token.text == "//" and not inside:
                    comment = True
                    continue
            elif kind == "bad":
                self._fail(token, f"cannot read {token.text!r}")
            tokens.append(token)
        tokens.append(_Token("end", "end of text", len(self.text)))
        return tokens

    def _fail(self, token: _Token, message: str) -> NoReturn:
        start = self.text.rfind("\n", 0, token.start) + 1
        end = self.text.find("\n", token.start)
        line = self.text[start : end if end >= 0 else len(self.text)]
        shift = token.start - start
        shown = line[max(0, shift - 80) : shift + 80]
        caret = " " * min(shift, 80) + "^" * max(1, min(len(token.text), 80))
        number = self.text.count("\n", 0, token.start) + 1
        raise IRError(f"line {number}: {message}\n    {shown}\n    {caret}")

    def peek(self) -> _Token:
        return self.tokens[self.at]

    def next(self) -> _Token:
        token = self.tokens[self.at]
        if token.kind != "end":
            self.at += 1
        return token

    def accept(self, text: str) -> bool:
        token = self.peek()
        if token.text == text and token.kind in ("sign", "name"):
            self.at += 1
            return True
        return False

    def expect(self, text: str) -> _Token:
        token = self.next()
        if token.text != text or token.kind not in ("sign", "name"):
            self._fail(token, f"expected {text!r}, found {token.text!r}")
        return token

    def take(self, kind: str) -> _Token:
        token = self.next()
        if token.kind != kind:
            self._fail(token, f"expected {_a(kind)}, found {token.text!r}")
        return token

    def nested(self, token: _Token, step: int, limit: int = MAX_NESTING) -> None:
        self.depth += step
        if self.depth > limit:
            self._fail(token, f"nested deeper than {limit}")

    def graph(self) -> Graph:
        start = self.expect("graph")
        self.nested(start, 1)
        name = self.take("name").text
        self.expect("(")
        values: dict[str, Value] = {}
        inputs: list[Value] = []
        while not self.accept(")"):
            token = self.take("value")
            self.expect(":")
            inputs.append(self._guard(token, OPS["input"], name=token.text[1:], type=self.type()))
            values[token.text] = inputs[-1]
            if self.peek().text != ")":
                self.expect(",")
        facts = self.facts()
        self.expect("{")
        updates: dict[str, Value] = {}
        while not self.accept("return"):
            if self.accept("update"):
                key = self.string()
                self.expect("=")
                updates[key] = self.value(values)
            else:
                self.statement(values)
        outputs = []
        while not self.accept("}"):
            outputs.append(self.value(values))
            if self.peek().text != "}":
                self.expect(",")
        self.nested(start, -1)
        return self._guard(start, Graph, name, inputs, outputs, updates, facts)

    def _guard(self, token: _Token, make: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return make(*args, **kwargs)
        except IRError as error:
            self._fail(token, str(error))

    def facts(self) -> list[tuple[str, int, int | None]]:
        facts: list[tuple[str, int, int | None]] = []
        if self.accept("where"):
            while True:
                if self.peek().kind == "name":
                    name = self.next().text
                    self.expect(">=")
                    facts.append((name, self.integer(), None))
                else:
                    low = self.integer()
                    self.expect("<=")
                    name = self.take("name").text
                    self.expect("<=")
                    facts.append((name, low, self.integer()))
                if not self.accept(","):
                    break
        return facts

    def statement(self, values: dict[str, Value]) -> None:
        targets = [self.take("value")]
        while self.accept(","):
            targets.append(self.take("value"))
        self.expect("=")
        name = self.take("name")
        defn = OPS.get(name.text)
        if defn is None:
            close = difflib.get_close_matches(name.text, OPS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            self._fail(name, f"unknown op {name.text!r}{hint}")
        self.expect("(")
        operands: list[Value | None] = []
        attrs: dict[str, Any] = {}
        while not self.accept(")"):
            token = self.peek()
            if token.kind == "value":
                operands.append(self.value(values))
            elif self.accept("none"):
                operands.append(None)
            else:
                key = self.take("name")
                if key.text in attrs:
                    self._fail(key, f"attribute {key.text!r} is given twice")
                self.expect("=")
                attrs[key.text] = self.literal()
            if self.peek().text != ")":
                self.expect(",")
        op = self._guard(name, build, defn, operands, attrs)
        self.expect(":")
        for i, target in enumerate(targets):
            if i:
                self.expect(",")
            token = self.peek()
            declared = self.type()
            if i >= len(op.types) or len(targets) != len(op.types):
                self._fail(
                    targets[0], f"{name.text} has {len(op.types)} results, not {len(targets)}"
                )
            if declared != op.types[i]:
                self._fail(token, f"{target.text} is {op.types[i]}, not {declared}")
            if target.text in values:
                self._fail(target, f"{target.text} is defined twice")
            values[target.text] = op.results[i]

    def value(self, values: dict[str, Value]) -> Value:
        token = self.take("value")
        if token.text not in values:
            close = difflib.get_close_matches(token.text, values, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            self._fail(token, f"{token.text} is not defined above{hint}")
        return values[token.text]

    def type(self) -> TensorType:
        token = self.take("name")
        if token.text not in DTYPES:
            close = difflib.get_close_matches(token.text, DTYPES, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            self._fail(token, f"unknown dtype {token.text!r}{hint}")
        return self._type_of(DTYPES[token.text])

    def _type_of(self, dtype: DType) -> TensorType:
        first = self.at - 1
        start = self.tokens[first].start
        text = self.text[start : self.text.find("]", start)]
        if text in self.types:  # most types of a text are alike
            type, size = self.types[text]
            self.at = first + size
            return type
        self.expect("[")
        shape: list[Dim] = []
        while not self.accept("]"):
            shape.append(self.dim())
            if self.peek().text != "]":
                self.expect(",")
        type = TensorType(dtype, tuple(shape))
        self.types[text] = type, self.at - first
        return type

    def string(self) -> str:
        token = self.take("string")
        try:
            return json.loads(token.text)
        except ValueError:
            self._fail(token, f"malformed string {token.text}")

    def integer(self) -> int:
        token = self.take("int")
        if len(token.text) > 19 or int(token.text) >= MAX_INT:
            self._fail(token, "an integer of more than 64 bits")
        return int(token.text)

    def literal(self) -> Any:
        """An attribute value: string, tuple, dtype, type, graph, slot, float or dim expression."""
        token = self.peek()
        if token.kind == "string":
            return self.string()
        if token.kind == "slot":
            self.next()
            if len(token.text) > 8:
                self._fail(token, "an operand number of more than 7 digits")
            return Slot(int(token.text[1:]))
        if token.text == "graph":
            return self.graph()
        if token.text == "(":
            return self._tuple()
        if token.text == "-" and self.tokens[self.at + 1].kind == "float":
            self.next()
            return -float(self.next().text)
        if token.text == "-" and self.tokens[self.at + 1].text == "inf":
            self.at += 2
            return float("-inf")
        if token.kind == "float":
            return float(self.next().text)
        if token.kind == "name":
            words = {"True": True, "False": False, "None": None}
            if token.text in words:
                self.next()
                return words[token.text]
            if token.text in ("inf", "nan"):
                return float(self.next().text)
            if token.text in DTYPES:
                self.next()
                dtype = DTYPES[token.text]
                return self._type_of(dtype) if self.peek().text == "[" else dtype
        return self.dim()

    def _tuple(self) -> Any:
        start = self.expect("(")
        self.nested(start, 1)
        items: list[Any] = []
        comma = False
        while not self.accept(")"):
            items.append(self.literal())
            if self.peek().text != ")":
                self.expect(",")
                comma = True
        self.nested(start, -1)
        if comma or not items:
            return tuple(items)
        if isinstance(items[0], bool) or not isinstance(items[0], (int, Poly)):
            self._fail(start, "a tuple of one is written (x,)")
        return self._more(self._factors(items[0]), start)  # it was a bracketed dim: go on after it

    def dim(self) -> Dim:
        start = self.peek()
        self.nested(start, 1, MAX_DEPTH)
        sign = -1 if self.accept("-") else 1
        result = self._more(self._factors(self._atom()) * sign, start)
        self.nested(start, -1, MAX_DEPTH)
        return result

    def _more(self, total: Dim, start: _Token) -> Dim:
        while self.peek().text in ("+", "-") and self.peek().kind == "sign":
            sign = 1 if self.next().text == "+" else -1
            total = self._guard(
                start, lambda a, b: a + b, total, self._factors(self._atom()) * sign
            )
        return total

    def _factors(self, value: Dim) -> Dim:
        while self.peek().text in ("*", "//") and self.peek().kind == "sign":
            token = self.next()
            combine = dims.floordiv if token.text == "//" else (lambda a, b: a * b)
            value = self._guard(token, combine, value, self._atom())
        if isinstance(value, int) and abs(value) >= MAX_INT:
            self._fail(self.peek(), "an integer of more than 64 bits")
        return value

    def _atom(self) -> Dim:
        token = self.peek()
        if token.kind == "int":
            return self.integer()
        if self.accept("("):
            inner = self.dim()
            self.expect(")")
            return inner
        if token.kind != "name":
            self._fail(token, f"expected a dimension, found {token.text!r}")
        name = self.next().text
        if name in ("min", "max") and self.accept("("):
            a = self.dim()
            self.expect(",")
            b = self.dim()
            self.expect(")")
            return dims.minimum(a, b) if name == "min" else dims.maximum(a, b)
        return self._guard(token, dims.symbol, name)
