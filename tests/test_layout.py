"""The structure of the project, read from its imports: they go down only, and nothing draws before it has to."""

import ast
import os
import pathlib
import subprocess
import sys

from utils import ROOT

# From the ground up. A module may import from its own floor, without a circle, and from those below.
FLOORS = [
    ("utils",),
    ("depixelation.symmetry", "depixelation.block_grid"),
    ("datasets", "submission_serialization"),
    ("architectures",),
    ("depixelation.engine",),
    ("depixelation.images",),
    ("depixelation.figures",),
    ("depixelation.mosaics",),
    ("depixelation.tasks",),
    ("depixelation.commands",),
    ("depixelation.command_line", "depixelation.notebook"),
    ("depixelation",),  # what a notebook imports
    ("main",),
]
TOP = {"README.md", "LICENSE", "requirements.txt", "config.json", "tests", "models", "losses", "depixelation"}
TOP |= {"main.py", "datasets.py", "architectures.py", "utils.py", "submission_serialization.py"}


def modules():
    """{dotted name: path} of the product."""
    root = pathlib.Path(ROOT)
    paths = [*root.glob("*.py"), *(root / "depixelation").rglob("*.py")]
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts) for path in paths}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def floor(name):
    for number, prefixes in enumerate(FLOORS):
        if any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes if prefix != "depixelation"):
            return number
    assert name == "depixelation", name
    return FLOORS.index(("depixelation",))


def imports(name, path, known):
    """The modules of the product that a module imports, anywhere in it; load_task("NAME") counts as an import."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: a relative import"
            found = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [one if one in known else node.module for one in found]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) == "load_task":
            if node.args and isinstance(node.args[0], ast.Constant):
                found = [f"depixelation.tasks.{node.args[0].value}"]
        yield from (one for one in found if one in known)


def test_imports_go_down():
    known = modules()
    arrows = {name: set(imports(name, path, known)) - {name} for name, path in known.items()}
    up = [(name, other) for name, others in arrows.items() for other in others if floor(other) > floor(name)]
    assert not up, up
    left = dict(arrows)
    while left:  # take away what imports nothing that is left, until nothing is left: else there is a circle
        leaves = [name for name, others in left.items() if not others & left.keys()]
        assert leaves, f"a circle among {sorted(left)}"
        for name in leaves:
            del left[name]


def test_the_check_sees_arrows(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("from depixelation.tasks import flow\ndef f():\n    import main\n    return load_task('files')\n")
    known = modules()
    assert set(imports("x", path, known)) == {"depixelation.tasks.flow", "main", "depixelation.tasks.files"}
    assert floor("depixelation.tasks.flow") < floor("main") and floor("depixelation.tasks.flow") > floor("utils")


def test_nothing_loads_matplotlib_before_it_draws():
    code = "import sys, main; from depixelation.command_line import read_command_line; "
    code += "from depixelation.commands import commands_of; commands_of('depixelation'); "
    code += "from depixelation.tasks import task_names; task_names(); "
    code += "print([name for name in ('matplotlib', 'torchvision') if name in sys.modules])"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip() == "[]"


def test_top_level():
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    names = {line.split("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in names if not name.startswith(".")} <= TOP
    assert {name for name in os.listdir(ROOT) if name.endswith(".py")} <= TOP


def test_no_file_and_no_function_is_long():
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 500, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                limit = 80 if node.name == "train" else 60
                assert node.end_lineno - node.lineno < limit, f"{name}: {node.name}"
