"""The rules of the house, read from the source: imports run one way, nothing heavy loads early, parts stay small."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "hemolens"
FILES = sorted(PACKAGE.rglob("*.py"))

GROUND = {"errors", "labels", "notes", "config"}
BELOW_MEASUREMENTS = GROUND | {"geometry", "volume", "sources", "preprocessing", "inference", "measurements"}
ASIDE = {"models", "training", "evaluation", "explain"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "labels": set(),
    "notes": set(),
    "config": {"errors"},
    "geometry": GROUND,
    "volume": GROUND | {"geometry"},
    "sources": GROUND | {"geometry", "volume"},
    "preprocessing": GROUND | {"geometry", "volume"},
    "inference": GROUND | {"geometry", "volume", "sources", "preprocessing"},
    "measurements": BELOW_MEASUREMENTS - {"measurements"},
    "reports": BELOW_MEASUREMENTS,
    "analysis": BELOW_MEASUREMENTS | {"reports"},
    "demo": GROUND | {"geometry", "volume"},
    **dict.fromkeys(ASIDE, BELOW_MEASUREMENTS | ASIDE),
    **dict.fromkeys(("evaluation", "explain"), BELOW_MEASUREMENTS | ASIDE | {"reports"}),
    "deidentification": BELOW_MEASUREMENTS,
    "pacs": BELOW_MEASUREMENTS | {"reports", "analysis", "demo"},
    "web": BELOW_MEASUREMENTS | ASIDE | {"reports", "analysis", "demo", "pacs"},
    "cli": BELOW_MEASUREMENTS | ASIDE | {"reports", "analysis", "demo", "web", "deidentification", "pacs"},
}
"""Part of hemolens → the other parts that it may import. A part that is not named here may not exist."""

HEAVY = ("torch", "onnxruntime", "openvino")
HEAVY_FOR_HELP = (*HEAVY, "numpy", "scipy", "pydicom", "nibabel", "matplotlib", "PIL", "pandas")


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(tree: ast.AST) -> set[str]:
    """Parts of hemolens that a module imports anywhere, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write the full name"
            names = [node.module or ""]
            if node.module == "hemolens":
                names = [f"hemolens.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("hemolens.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    part = part_of(path)
    if part == "__main__":
        return
    imported = imported_parts(ast.parse(path.read_text("utf-8"))) - {part, "__version__"}
    if part == "__init__":
        assert imported <= BELOW_MEASUREMENTS | {"analysis", "reports"}
        return
    assert part in MAY_IMPORT, f"{part} has no place in the import rule; give it one in design and here"
    assert imported <= MAY_IMPORT[part], f"{part} may not import {sorted(imported - MAY_IMPORT[part])}"


def test_the_rule_itself_runs_one_way() -> None:
    order = [part for part in MAY_IMPORT if part not in ASIDE]
    for place, part in enumerate(order):
        later = set(order[place + 1 :])
        assert not MAY_IMPORT[part] & later or part == "demo", part


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_and_functions_stay_small(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.count("\n") < 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 80, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_library_code_neither_exits_nor_reads_the_environment(path: Path) -> None:
    if part_of(path) in {"cli", "__main__"}:
        return
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            assert name not in {"os.environ", "os.getenv", "sys.exit", "os._exit"}, f"line {node.lineno}: {name}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"exit", "quit", "print", "exec", "eval"}, f"line {node.lineno}: {node.func.id}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_module_level_mutable_state(path: Path) -> None:
    """Module-level containers are constants: named in capitals, or not there."""
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(
            node.value, (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp)
        ):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                assert isinstance(target, ast.Name)
                name = target.id.strip("_")
                assert name == name.upper() or target.id == "__all__", f"line {node.lineno}: {target.id}"
        if isinstance(node, ast.Global):
            pytest.fail(f"line {node.lineno}: global")


def modules_after(code: str) -> set[str]:
    script = f"import json, sys\n{code}\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_importing_hemolens_loads_neither_torch_nor_a_runtime() -> None:
    assert not modules_after("import hemolens") & set(HEAVY)


def test_reading_and_measuring_need_no_torch() -> None:
    loaded = modules_after("import hemolens.analysis, hemolens.sources.study, hemolens.reports.folder")
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("arguments", [["--help"], ["analyze", "--help"], ["models", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    loaded = modules_after(f"from hemolens.cli.main import main\nmain({arguments!r})")
    assert not loaded & set(HEAVY_FOR_HELP)
