"""The command line: `subquad demo`, `explain`, `optimize`, `compare`, `print`, `recipes`, `ops`,
`calibrate-machine`.

Exit codes: 0 done, 1 it failed or the comparison is out of bounds, 2 the command is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .ir import SubquadError
from .tables import working

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read once, when torch loads its profiler

Say = Callable[[str], None]

TARGET = """\
A target is pkg.mod:make_model, a function without arguments that returns one of

    model                     give the inputs with --args
    (model, args)             args: a tuple of example inputs
    (model, args, kwargs)

The current folder is on the path, so `my_model.py` here is the module `my_model`.
--args describes inputs by type, one each: f32[2,128,64] is random normal, i64[2,128]<1000 is
random in 0..999 (0..99 without the limit), bool[2,128] is all true."""

TOP = """\
Captures a PyTorch model, rewrites it into cheaper forms, checks every rewrite, says what it did.

Start here:
    subquad demo                                      a real model from capture to log, in minutes
    subquad explain my_model:make_model               its attentions and masks, and why not more
    subquad optimize my_model:make_model              what the exact passes do to your model
    subquad optimize my_model:make_model --attention elu1
                                                      and with attention made linear
    subquad compare my_model:make_model --attention elu1
                                                      what that costs and what it saves
"""

EXPLAIN = """\
Says of every softmax of a model what it is: attention with which mask, proved from what, or the
first thing that stands in the way, on which line, and what to change. Nothing is compiled or run.

    subquad explain my_model:make_model
    subquad explain my_model:make_model --dynamic 0=b,1=n     with open sizes
    subquad explain my_model:make_model --attention elu1      where a recipe would refuse
    subquad explain my_model:make_model --json                for machines
"""

OPTIMIZE = """\
Optimises a model and prints the log: what each pass did, what it refused and why, and what a
recipe could still gain.

    subquad optimize my_model:make_model
    subquad optimize my_model:Net --args 'f32[1,4096,256]' --attention elu1
    subquad optimize my_model:make_model \\
        --attention 'layers.0.*=window(size=32)' --attention '*=elu1'
    subquad optimize my_model:make_model --pipeline canonicalize,recognize --json log.json
"""

COMPARE = """\
Optimises a model and holds it against the original: error of each output against a float64 run,
time and peak memory taken in turns, FLOPs. Exits with 1 where an output is out of its bound.

    subquad compare my_model:make_model
    subquad compare my_model:make_model --attention elu1 --bound 0.5
    subquad compare my_model:make_model --attention elu1 --dynamic 1=n \\
        --lengths 1024,2048,4096,8192 --plot scaling.png
"""

PRINT = """\
Prints a model's graph, in the text that subquad.ir.parse reads back.

    subquad print my_model:make_model                 after the passes
    subquad print my_model:make_model --captured      before them
    subquad print my_model:make_model --sources       with the line of the model each op came from
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    given = parser.parse_args(argv)
    if not hasattr(given, "run"):
        parser.print_help()
        return 0
    try:
        code: int = given.run(given)
        return code
    except SubquadError as error:
        print(f"subquad: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("subquad: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `subquad print ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a file that cannot be written
        print(f"subquad: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    from . import __version__

    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="subquad", description=TOP, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"subquad {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(
        name: str, run: Callable[[Any], int], what: str, text: str, *, target: bool = True,
        runs: bool = True,
    ) -> Any:  # fmt: skip
        epilog = TARGET if target else None
        made = commands.add_parser(name, help=what, description=text, epilog=epilog, formatter_class=raw)
        made.set_defaults(run=run)
        if target:
            made.add_argument("target", help="pkg.mod:make_model (see below)")
            made.add_argument("--args", nargs="+", metavar="TYPE", help="inputs, f32[1,128,64] each")
            made.add_argument(
                "--dynamic",
                metavar="AXIS=NAME,...",
                type=_axes,
                default={},
                help="axes of every input that may change size, as in 0=b,1=n",
            )
            made.add_argument(
                "--attention",
                action="append",
                metavar="[GLOB=]RECIPE",
                help="replace attention (default: exact); see `subquad recipes`",
            )
        if target and runs:
            made.add_argument("--pipeline", metavar="TEXT", help="canonicalize,recognize{only=rope}")
            made.add_argument("--backend", default="auto", help="default: auto")
            made.add_argument("--no-check", action="store_true", help="do not verify every pass")
        return made

    demo = command("demo", _demo, "a real model, from capture to log", _DEMO, target=False)
    demo.add_argument("--lengths", type=_numbers, metavar="N,N,...", help="lengths of the last part")
    demo.add_argument("--plot", default="subquad-demo.png", help="default: %(default)s")
    explain = command("explain", _explain, "every attention, its mask, and what stands in the way",
                      EXPLAIN, runs=False)  # fmt: skip
    explain.add_argument("--json", action="store_true", help="as JSON on stdout")
    optimize = command("optimize", _optimize, "optimise a model and print the log", OPTIMIZE)
    optimize.add_argument("--json", metavar="FILE", help="also write the log as JSON")
    optimize.add_argument("--ir", metavar="FILE", help="also write the optimised graph as text")
    compare = command("compare", _compare, "errors and costs against the original", COMPARE)
    compare.add_argument("--bound", type=float, help="largest error you accept")
    compare.add_argument("--repeats", type=_count, help="timed pairs; default: what fits in 3 s")
    compare.add_argument(
        "--lengths",
        type=_numbers,
        metavar="N,N,...",
        help="also measure with the last --dynamic axis at these sizes",
    )
    compare.add_argument("--plot", metavar="FILE", help="draw the scaling table as PNG")
    show = command("print", _print, "print a model's graph as text", PRINT)
    show.add_argument("--captured", action="store_true", help="before any pass")
    show.add_argument("--sources", action="store_true", help="with source lines")
    recipes = command("recipes", _recipes, "the linear-complexity replacements for attention",
            "Lists the recipes that --attention takes: what they honour, need, learn and cost.",
            target=False)  # fmt: skip
    recipes.add_argument("names", nargs="*", metavar="RECIPE", help="only these, as in window(size=16)")
    recipes.add_argument("--markdown", action="store_true", help="as a table in Markdown")
    calibrate = command("calibrate-machine", _calibrate_machine, "what this machine does in a second",
            "Measures, in under ten seconds, the rates that times are predicted from, and keeps them.",
            target=False)  # fmt: skip
    calibrate.add_argument("--force", action="store_true", help="measure again what was kept")
    calibrate.add_argument("--target", metavar="NAME", help="another machine's data sheet: h100, epyc, ...")
    calibrate.add_argument("--json", action="store_true", help="as JSON on stdout")
    command("ops", _ops, "the vocabulary of the graph, as a table in Markdown",
            "Lists every op: its name, the aten overloads it stands for, what it computes.",
            target=False)  # fmt: skip
    return parser


_DEMO = """\
Takes a pretrained sentence encoder from capture to log on real text, says what each recipe does
to its embeddings, then measures an encoder stack at growing lengths. Two to three minutes on two
cores; needs the extra `demo`.
"""


# ---- commands -----------------------------------------------------------------------------------


def _demo(given: Any) -> int:
    from .demo import LENGTHS, demo

    with working() as say:
        demo(given.lengths or LENGTHS, given.plot, width=columns(), progress=say)
    return 0


def _explain(given: Any) -> int:
    from .explanation import explain

    with working() as say:
        model, args, kwargs, shapes = _loaded(given, say)
        found = explain(model, args, kwargs, attention=_attention(given.attention), dynamic_shapes=shapes)
    print(json.dumps(found.to_dict(), indent=1) if given.json else found.text(columns()))
    return 0


def _optimize(given: Any) -> int:
    from .store import write

    fast, *_ = _optimized(given)
    print(fast.log.text(columns()))
    if given.json:
        write(Path(given.json), json.dumps(fast.log.to_dict(), indent=1) + "\n")
    if given.ir:
        write(Path(given.ir), f"{fast.graph}\n")
    return 0


def _compare(given: Any) -> int:
    from .harness import compare
    from .target import resized

    if given.lengths and not given.dynamic:
        raise SubquadError("--lengths needs --dynamic AXIS=NAME, the axis that changes size")
    fast, model, args, kwargs = _optimized(given)
    axis = max(given.dynamic, default=0)
    with working() as say:
        comparison = compare(
            model, fast, args, kwargs, repeats=given.repeats, lengths=given.lengths,
            make_args=lambda n: resized(args, axis, n), progress=say,
        )  # fmt: skip
    print(comparison.text(columns()))
    if given.plot:
        print(f"plot: {comparison.plot(given.plot)}")
    try:
        comparison.assert_close(given.bound)
    except AssertionError as error:
        raise SubquadError(str(error)) from None
    return 0


def _print(given: Any) -> int:
    from .ir import print_graph

    fast, *_ = _optimized(given)
    graph = fast.log.steps[0].before if given.captured and fast.log.steps else fast.graph
    print(print_graph(graph, sources=given.sources))
    return 0


def _recipes(given: Any) -> int:
    from .catalogue import recipe_markdown, recipe_text
    from .passes import RECIPES, recipe_named

    chosen = {name: recipe_named(name) for name in given.names or RECIPES}
    print(recipe_markdown(chosen) if given.markdown else recipe_text(chosen, columns()))
    return 0


def _ops(given: Any) -> int:
    from .ir import OPS
    from .tables import op_markdown

    print(op_markdown(OPS))
    return 0


def _calibrate_machine(given: Any) -> int:
    from dataclasses import asdict

    from .machine import machine_named, this_machine, where_kept

    with working() as say:
        say("measuring this machine")
        found = machine_named(given.target) if given.target else this_machine(force=given.force)
    if given.json:
        print(json.dumps(asdict(found), indent=1))
        return 0
    print(found.text(columns()))
    print(f"\n{'from its data sheet' if given.target else where_kept(found)}")
    return 0


def _optimized(given: Any) -> tuple[Any, Any, tuple[Any, ...], dict[str, Any]]:
    with working() as say:
        model, args, kwargs, shapes = _loaded(given, say)
        from .api import optimize

        fast = optimize(
            model, args, kwargs, attention=_attention(given.attention), pipeline=given.pipeline,
            backend=given.backend, check=not given.no_check, dynamic_shapes=shapes,
        )  # fmt: skip
    return fast, model, args, kwargs


def _loaded(given: Any, say: Say) -> tuple[Any, tuple[Any, ...], dict[str, Any], Any]:
    """(model, args, kwargs, dynamic_shapes) of a target."""
    from .target import axes_of, load

    say(f"loading {given.target}")
    model, args, kwargs = load(given.target, given.args)
    shapes = axes_of(args, kwargs, given.dynamic, model) if given.dynamic else None
    say("capturing and rewriting")
    return model, args, kwargs, shapes


# ---- arguments and progress ---------------------------------------------------------------------


def _attention(given: list[str] | None) -> Any:
    """`exact`, one recipe, or a mapping from globs to recipes."""
    if not given:
        return "exact"
    pairs = [re.fullmatch(r"(?:([^=()]+)=)?(.+)", item, re.DOTALL) for item in given]
    chosen = {match[1] or "*": match[2] for match in pairs if match}
    return chosen["*"] if list(chosen) == ["*"] else chosen


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number, 0 or more")
    return int(text)


def _numbers(text: str) -> list[int]:
    if not all(item.isdecimal() and int(item) for item in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers, such as 1024,2048")
    return [int(item) for item in text.split(",")]


def _axes(text: str) -> dict[int, str]:
    pairs = [item.partition("=") for item in text.split(",")]
    if not all(axis.isdecimal() and name.isidentifier() for axis, _, name in pairs):
        raise argparse.ArgumentTypeError(f"{text!r}: expected AXIS=NAME,... as in 0=b,1=n")
    return {int(axis): name for axis, _, name in pairs}


def columns() -> int:
    """Columns to print in: the terminal's, 120 at most, 110 where there is none."""
    return max(40, min(120, shutil.get_terminal_size((110, 24)).columns))
