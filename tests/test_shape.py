"""The shape of the project, as data: layers, doors, sizes, commands. Design: README, "How it is built"."""

import ast
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from streamai import cli

ROOT = pathlib.Path(__file__).parent.parent

LAYERS = [
    {"errors", "settings", "clock"},
    {"kernels"},
    {"declaration", "feature", "microstructure", "plan", "flow", "catalogue", "catalogue_filter", "asking",
     "deadline", "events", "scored", "layout"},
    {"state", "model", "wire"},
    {"engine"},
    {"live", "replay", "broker"},
    {"evaluate", "backtest", "train", "report"},
    {"cli"},
    {"__main__"},
]
"""Lowest first. A file imports from lower layers, its own folder, or (single files) its own layer."""

UPWARD = {
    ("flow", "replay"),  # Flow.replay(df): imported when called
    ("feature", "replay"),  # FeatureView.compute(df): imported when called
}

DOORS = {
    "numba": {"kernels"},
    "llvmlite": {"kernels"},
    "rocksdict": {"state"},
    "faust": {"live"},
    "mode": {"live"},
    "aiokafka": {"live", "broker"},
    "uvloop": {"live", "broker"},
    "polars": {"replay", "evaluate", "backtest", "train"},
    "torch": {"train"},
    "rich": {"cli", "replay", "evaluate", "backtest", "train"},
}
"""Heavy library -> the folders that may import it, also inside a function."""

COMMANDS_WITH_A_KEY = {
    ("cli/worker.py", "faust"),  # hands over to Faust's own command line
    ("cli/train.py", "torch"),  # says what to install where it is missing
}
"""A command may open a door itself, inside `run`."""

FILE_LINES, FUNCTION_LINES = 400, 70


def sources(*folders):
    """The Python files of some folders of the project."""
    return sorted(p for f in folders for p in (ROOT / f).rglob("*.py"))


def unit(path):
    """The layer's word for a file: its top folder or its name; "" for streamai/__init__.py."""
    parts = path.relative_to(ROOT / "streamai").with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def name_of(path):
    """Dotted name of a file of the project."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """(dotted name, is it at the top of the file) of everything a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {
        id(n)
        for f in ast.walk(tree)
        if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for n in ast.walk(f)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for a in node.names:
                yield a.name, id(node) not in inner
        elif isinstance(node, ast.ImportFrom):
            package = name_of(path.parent / "__init__.py").split(".")
            package = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*package, node.module or ""]).strip(".")
            for a in node.names:
                whole = f"{module}.{a.name}"
                yield (whole if is_module(whole) else module), id(node) not in inner


def is_module(dotted):
    at = ROOT.joinpath(*dotted.split("."))
    return at.with_suffix(".py").exists() or (at / "__init__.py").exists()


def layer(word):
    return next((i for i, words in enumerate(LAYERS) if word in words), None)


def test_every_module_has_a_layer():
    words = {unit(p) for p in sources("streamai")} - {""}
    assert words <= set().union(*LAYERS)


def test_imports_go_down():
    wrong = []
    for path in sources("streamai"):
        here = unit(path)
        for dotted, _ in imports(path):
            if not dotted.startswith("streamai.") or here == "":
                continue
            there = dotted.split(".")[1]
            same_layer = layer(here) == layer(there)
            single = (ROOT / "streamai" / f"{there}.py").exists()
            ok = here == there or layer(there) < layer(here) or (same_layer and single)
            if not ok and (here, there) not in UPWARD:
                wrong.append(f"{path.relative_to(ROOT)} imports {dotted}")
    assert not wrong


def test_upward_imports_wait_until_called():
    """The few imports that go up are inside functions, so that the lower file loads alone."""
    for path in sources("streamai"):
        for dotted, at_top in imports(path):
            if dotted.startswith("streamai.") and (unit(path), dotted.split(".")[1]) in UPWARD:
                assert not at_top, f"{path.relative_to(ROOT)} imports {dotted} at the top"


def test_no_cycles():
    def ours(path):
        down = {d for d, _ in imports(path) if d.startswith("streamai.")}
        return {d for d in down if (unit(path), d.split(".")[1]) not in UPWARD}

    graph = {name_of(p): ours(p) for p in sources("streamai") if unit(p)}
    state = {}

    def visit(name, way):
        if state.get(name) == "done":
            return
        assert name not in way, "cycle: " + " -> ".join([*way[way.index(name) :], name])
        for to in sorted(graph.get(name, ())):
            if to != name:
                visit(to, [*way, name])
        state[name] = "done"

    for name in sorted(graph):
        visit(name, [])


def test_heavy_libraries_stay_behind_their_doors():
    wrong = [
        f"{path.relative_to(ROOT)} imports {dotted}"
        for path in sources("streamai", "features")
        for dotted, at_top in imports(path)
        if (door := DOORS.get(dotted.split(".")[0])) is not None
        and ("features" if "features" in path.parts else unit(path)) not in door
        and not (not at_top and ("/".join(path.parts[-2:]), dotted.split(".")[0]) in COMMANDS_WITH_A_KEY)
    ]
    assert not wrong


def test_files_are_short():
    long = {
        str(p.relative_to(ROOT)): n
        for p in sources("streamai", "features", "agents", "tests", "replay_data")
        if (n := len(p.read_text(encoding="utf-8").splitlines())) > FILE_LINES
    }
    assert not long, f"over {FILE_LINES} lines: {long}"


def test_functions_are_short():
    long = {}
    for path in sources("streamai", "features", "agents", "replay_data"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                n = node.end_lineno - node.lineno + 1
                if n > FUNCTION_LINES:
                    long[f"{name_of(path)}.{node.name}"] = n
    assert not long, f"over {FUNCTION_LINES} lines: {long}"


def test_names_say_what_a_thing_is():
    empty_words = re.compile(r"(Manager|Helper|Handler|Utils?|Base)$|^Abstract")
    for path in sources("streamai", "features", "agents", "replay_data"):
        assert path.stem not in ("utils", "helpers", "common", "misc"), path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                assert not empty_words.search(node.name), f"{path}: class {node.name}"


@pytest.mark.parametrize("module", ["streamai.live.app", "agents.recommend", "agents.trade"])
def test_worker_loads_neither_torch_nor_polars(module):
    """In an interpreter of its own: what a worker imports decides its memory and its start."""
    code = f"import sys, {module}; print(*sorted({{'torch', 'polars', 'pandas'}} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


def test_importing_streamai_is_light():
    heavy = "{'numba', 'faust', 'torch', 'polars', 'rocksdict'}"
    code = f"import sys, streamai; print(*sorted({heavy} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as e:
        cli.parser(command).parse_args([command, "--help"])
    assert e.value.code == 0
    assert f"streamai {command}" in capsys.readouterr().out


def test_commands_are_the_modules_of_cli():
    modules = {p.stem for p in (ROOT / "streamai" / "cli").glob("*.py")} - {"__init__"}
    helpers = {m for m in modules if m.startswith("_")}
    missing = set(cli.COMMANDS) - modules
    assert not missing, f"commands without a module: {missing}"
    for m in modules - helpers - set(cli.COMMANDS):
        text = (ROOT / "streamai" / "cli" / f"{m}.py").read_text(encoding="utf-8")
        assert "def add(" not in text, f"cli/{m}.py is a command that COMMANDS does not list"


def readme_lines():
    """Commands in the README's shell blocks, continuation lines joined, comments gone."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for block in re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                yield words


def test_readme_commands_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    seen = 0
    for words in readme_lines():
        program = words[0].rsplit("/", 1)[-1]
        if program == "streamai":
            words = words[1 : words.index("|")] if "|" in words else words[1:]
            words = [w for w in words if w != "&"]
            cli.parser(words[0]).parse_args(words)  # exits with 2 when an option does not exist
            seen += 1
        elif program == "make":
            for target in [w for w in words[1:] if "=" not in w]:
                assert re.search(rf"^{target}:", makefile, re.M), f"README: make {target}"
            seen += 1
    assert seen >= 10


def test_readme_python_compiles():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert blocks
    for i, block in enumerate(blocks):
        compile(block, f"README.md, Python block {i}", "exec")
