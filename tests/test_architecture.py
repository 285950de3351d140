"""The floors of the library: who may import whom, and how long a function may get (`docs/architecture.md`)."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deeprl.config import OffPolicyConfig
from deeprl.data.offline import OfflineConfig

PACKAGE = Path(__file__).parent.parent / "deeprl"
FILES = sorted(PACKAGE.rglob("*.py"))

# Every package, and every module beside them, stands on one floor and imports only from its own or from below.
FLOORS: list[set[str]] = [
    {"errors"},
    {"config"},
    {"recipes"},
    {"core"},
    {"nets"},
    {"replay"},
    {"envs"},
    {"data"},
    {"run"},
    {"online", "offline", "world_models"},
    {"api"},
    {"make_data"},
    {"reporting"},
    {"launch"},
    {"tuning"},
    {"commands"},
    {"cli", "__main__"},
]
ALGORITHMS = {"online", "offline", "world_models"}
# Algorithms do not import algorithms, with these exceptions: (child, parent).
FAMILIES = {
    ("deeprl.online.simba", "deeprl.online.sac"),
    ("deeprl.online.simba_v2", "deeprl.online.sac"),
    ("deeprl.online.srl", "deeprl.online.sac"),
    ("deeprl.offline.rlpd", "deeprl.offline.wsrl"),
    ("deeprl.offline.td3_bc", "deeprl.online.td3"),
    ("deeprl.offline.wsrl", "deeprl.offline.cql"),
    ("deeprl.offline.wsrl", "deeprl.online.sac"),
    ("deeprl.offline.rebrac", "deeprl.online.td3"),
    ("deeprl.offline.riql", "deeprl.offline.iql"),
}
SETTINGS_ALONE = {"rlpd"}  # another algorithm's loop under other settings
# Public names that several modules define, because they mean the same thing in each: name -> why.
ONE_MEANING = {
    **dict.fromkeys(
        ("Config", "Net", "State", "make_net", "build_net", "init", "act", "observe", "update", "train"),
        "parts that an algorithm's file has (`run/learning.py`, `api.train`): run and commands name them so",
    ),
    **dict.fromkeys(
        ("actor_loss", "critic_loss", "alpha_loss", "critic_target", "update_actor", "update_critic"),
        "one part of an update each, which differs from algorithm to algorithm and stands in its file",
    ),
    "run": "a command: its options to an exit status; `commands/main.py` calls that of the module of its name",
    "learner": "sampling and update of one agent as one function, where an algorithm has more to sample than others",
    "lr_share": "what is left of learning rates at the next update: one schedule an algorithm",
}
# Where such names are outside of the files of algorithms: name -> a module, or a package.
OUTSIDE = {"observe": "deeprl.run.learning", "train": "deeprl.api", "run": "deeprl.commands"}
HEAVY = {"torch", "gymnasium", "mujoco", "matplotlib", "tyro", "numpy", "rich"}


def floor_of(module: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if module.split(".")[1] in floor)


def imported(file: Path, *, top_level_only: bool = False) -> set[str]:
    """Absolute names of the modules that a file imports, those under `if __name__ == "__main__"` left out."""
    tree = ast.parse(file.read_text())
    body = [n for n in tree.body if not (isinstance(n, ast.If) and "__main__" in ast.unparse(n.test))]
    nodes = body if top_level_only else [n for part in body for n in ast.walk(part)]
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module != "__future__":
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_every_module_stands_on_one_floor() -> None:
    rooms = {module_name(f).split(".")[1] for f in FILES if "." in module_name(f)}
    floors = [room for floor in FLOORS for room in floor]
    assert sorted(floors) == sorted(rooms)


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_imports_go_downwards(file: Path) -> None:
    name = module_name(file)
    if name == "deeprl":
        return  # the catalogue; its own test is below
    for other in imported(file):
        if other.startswith("deeprl.") and other.split(".")[1] in set().union(*FLOORS):
            assert floor_of(other) <= floor_of(name), f"{name} imports {other} from a higher floor"


def public_definitions() -> dict[str, set[str]]:
    """Public functions and classes of modules, not of classes: name -> the modules that define it."""
    found: dict[str, set[str]] = {}
    for file in FILES:
        nodes: list[ast.stmt] = list(ast.parse(file.read_text()).body)
        for node in nodes:
            if isinstance(node, ast.If | ast.Try):
                nodes += [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.stmt)]
            elif isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, set()).add(module_name(file))
    return found


def test_public_names_have_one_meaning() -> None:
    """Who looks for a name finds one thing: names that a file of an algorithm must have are exempt there alone."""
    shared = {name: where for name, where in public_definitions().items() if len(where) > 1}
    for name, where in sorted(shared.items()):
        assert name in ONE_MEANING, f"{name} is defined in {', '.join(sorted(where))}"
        beside = {module for module in where if module.split(".")[1] not in ALGORITHMS}
        beside -= {module for module in beside if module.startswith(OUTSIDE.get(name, "none"))}
        assert not beside, f"{name} is also defined in {', '.join(sorted(beside))}"
    assert not ONE_MEANING.keys() - shared.keys(), "exceptions that are not needed"


def test_algorithms_do_not_import_algorithms() -> None:
    for file in FILES:
        name = module_name(file)
        if file.parent.name not in ALGORITHMS or file.name == "__init__.py":
            continue
        for other in imported(file):
            parts = other.split(".")
            if parts[0] == "deeprl" and len(parts) > 2 and parts[1] in ALGORITHMS and not other.startswith(name):
                assert (name, ".".join(parts[:3])) in FAMILIES, f"{name} imports {other}"


def test_nets_know_nothing_of_runs() -> None:
    for file in (PACKAGE / "nets").glob("*.py"):
        ours = {n for n in imported(file) if n.startswith("deeprl.")}
        below = ("deeprl.nets", "deeprl.core.spec", "deeprl.core.rng")
        assert all(n == "deeprl.core" or n.startswith(below) for n in ours), file


def is_text(call: ast.Call) -> bool:
    """Whether a call opens, reads or writes a text file."""
    function = ast.unparse(call.func)
    name = function.rpartition(".")[2]
    if name in ("read_text", "write_text"):
        return True
    if name not in ("open", "fdopen") or function in ("os.open", "archive.open"):
        return False
    place = 1 if function in ("open", "os.fdopen") else 0  # of the mode
    modes = [*call.args[place : place + 1], *(k.value for k in call.keywords if k.arg == "mode")]
    return not any("b" in ast.unparse(mode) for mode in modes)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("p.read_text()", True), ("p.open()", True), ("p.open('w')", True), ("open(p, 'w')", True), ("open(p)", True),
        ("p.write_text(s)", True), ("p.open('rb')", False), ("open(p, 'wb')", False), ("open(p, mode='ab')", False),
        ("os.open(p, os.O_RDONLY)", False), ("os.fdopen(d, 'wb')", False), ("p.read_bytes()", False),
    ],
)  # fmt: skip
def test_text_files_are_told_from_others(code: str, expected: bool) -> None:
    call = ast.parse(code, mode="eval").body
    assert isinstance(call, ast.Call)
    assert is_text(call) == expected


@pytest.mark.parametrize("file", [*FILES, *sorted((PACKAGE.parent / "benchmarks").rglob("*.py"))], ids=lambda f: f.name)
def test_text_files_name_their_encoding(file: Path) -> None:
    """What the locale of a machine says is no part of a file."""
    calls = [n for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.Call) and is_text(n)]
    assert not [f"line {n.lineno}" for n in calls if not any(k.arg == "encoding" for k in n.keywords)]


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_functions_stay_short(file: Path) -> None:
    """At most 40 lines of code in a function, 60 in `train`: docstrings, comments, blank lines not counted."""
    text = file.read_text().splitlines()
    for node in ast.walk(ast.parse("\n".join(text))):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            lines = text[first.lineno - 1 : node.end_lineno]
            code = [line for line in lines if line.strip() and not line.strip().startswith("#")]
            assert len(code) <= (60 if node.name == "train" else 40), f"{file.name}: {node.name} has {len(code)} lines"


@pytest.mark.parametrize(
    "file", sorted(f for room in ALGORITHMS for f in (PACKAGE / room).glob("[!_]*.py")), ids=module_name
)
def test_algorithm_files_keep_the_order(file: Path) -> None:
    order = ["Config", "State", "init", "act", "update", "train"]
    found = [n.name for n in ast.parse(file.read_text()).body if isinstance(n, ast.ClassDef | ast.FunctionDef)]
    if file.stem in SETTINGS_ALONE:
        order = ["Config", "train"]
    assert [n for n in found if n in order] == order


def test_every_algorithm_of_the_catalogue_is_there() -> None:
    import importlib

    import deeprl

    for name, algorithm in deeprl.ALGORITHMS.items():
        module = importlib.import_module(algorithm.module)
        assert algorithm.module.endswith(name)
        assert all(hasattr(module, part) for part in ("Config", "State", "init", "act", "update", "train", "build_net"))


def test_files_that_the_map_names_are_there() -> None:
    root = PACKAGE.parent
    named = set(
        re.findall(r"`((?:deeprl|tests|benchmarks)/[\w/.]*)`", (root / "docs/architecture.md").read_text("utf-8"))
    )
    assert len(named) > 30
    assert not [name for name in named if "NAME" not in name and not (root / name).exists()]


FRONT_DOOR = [
    "__init__",
    "__main__",
    "commands/__init__",
    "commands/dataset",
    "commands/list",
    "commands/main",
    "commands/outcome",
    "commands/status",
    "commands/train",
    "errors",
    "launch/__init__",
    "launch/board",
    "launch/glance",
    "recipes",
    "run/__init__",
    "run/lock",
    "run/progress",
    "run/records",
]


@pytest.mark.parametrize("name", FRONT_DOOR)
def test_front_door_imports_nothing_heavy(name: str) -> None:
    for other in imported(PACKAGE / f"{name}.py", top_level_only=True):
        assert other.split(".")[0] not in HEAVY
        inside = tuple(f"deeprl.{door.replace('/', '.')}" for door in FRONT_DOOR[1:])
        assert not other.startswith("deeprl.") or other.startswith(inside)


@pytest.mark.parametrize("words", [["--help"], ["list"]])
def test_help_and_list_do_not_import_torch(words: list[str]) -> None:
    code = f"import sys; from deeprl.commands.main import main\ntry: main({words})\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "sac" in done.stdout


@pytest.mark.parametrize(
    "file", [f for f in FILES if re.search(r"^class \w*Config\b", f.read_text(), re.MULTILINE)], ids=module_name
)
def test_every_setting_is_explained_where_help_finds_it(file: Path) -> None:
    """By a docstring below it, here or where it is inherited from, or a comment behind it.

    A comment above it would be the title of its section.
    """
    lines, tree = file.read_text().splitlines(), ast.parse(file.read_text())
    algorithm = file.parent.name in ("online", "offline")
    bases = (OffPolicyConfig, OfflineConfig) if algorithm else ()
    inherited = {field.name for base in bases for field in dataclasses.fields(base)}
    for kind in (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.endswith("Config")):
        for field, after in zip(kind.body, [*kind.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and ast.unparse(field.target) not in inherited:
                docstring = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert docstring or "  # " in lines[field.lineno - 1], f"{file.stem}.{ast.unparse(field.target)}"
