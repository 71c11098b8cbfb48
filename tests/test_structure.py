"""House rules that a machine can check: modules are exports, imports go downwards, heavy packages sleep."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").glob("*.ipynb") if p.name[0].isdigit())
MODULES = {re.sub(r"^\d+[a-z]?_", "", p.stem): p for p in NOTEBOOKS}


def cells(notebook: Path) -> list[tuple[str, str]]:
    "Type and source of every cell."
    return [
        (c["cell_type"], "".join(c["source"]))
        for c in json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    ]


def exported(notebook: Path) -> str:
    return "\n".join(
        source
        for kind, source in cells(notebook)
        if kind == "code" and source.startswith("#| export")
    )


def imports(tree: ast.AST) -> set[str]:
    "Modules of racing_core that a piece of code imports, by their name below the package."
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "racing_core":
            base = node.module.removeprefix("racing_core").lstrip(".")
            found |= {
                f"{base}.{a.name}".lstrip(".")
                if f"{base}.{a.name}".lstrip(".") in MODULES
                else base
                for a in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {
                a.name.removeprefix("racing_core.")
                for a in node.names
                if a.name.startswith("racing_core.")
            }
    return found & set(MODULES)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_module_imports_only_from_lower_floors(notebook):
    own = list(MODULES.values()).index(notebook)
    higher = {
        m
        for m in imports(ast.parse(exported(notebook)))
        if list(MODULES.values()).index(MODULES[m]) >= own
    }
    assert not higher, f"{notebook.name} imports from a higher or its own floor: {sorted(higher)}"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_anatomy(notebook):
    raw = json.loads(notebook.read_text(encoding="utf-8"))
    first = "".join(raw["cells"][0]["source"]).splitlines()
    name = re.sub(r"^\d+[a-z]?_", "", notebook.stem)
    assert first[0] == f"# {name}", "the title is the module's path"
    assert first[1].startswith("> "), "the subtitle is one sentence"
    assert not any(source.startswith("# |") for _, source in cells(notebook)), (
        "directives are `#| `"
    )
    assert f"#| default_exp {name}" in [source.strip() for _, source in cells(notebook)]
    assert not any(c.get("outputs") or c.get("execution_count") for c in raw["cells"]), (
        "no outputs are committed"
    )
    assert any(
        kind == "code" and "assert" in source and not source.startswith("#| export")
        for kind, source in cells(notebook)
    ), "it asserts something"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_and_their_cells_are_short(notebook):
    code = [
        source
        for kind, source in cells(notebook)
        if kind == "code" and source.startswith("#| export")
    ]
    assert sum(len(source.splitlines()) for source in code) <= 450
    functions = [
        f for source in code for f in ast.walk(ast.parse(source)) if isinstance(f, ast.FunctionDef)
    ]
    long = {
        f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno - f.lineno + 1 > 40
    }
    assert not long, f"functions over 40 lines: {long}"


def test_modules_are_what_the_notebooks_export(tmp_path):
    for part in ("nbs", "racing_core", "settings.ini", "ruff.toml"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)
    export = [sys.executable, "-c", "import nbdev; nbdev.nbdev_export()"]
    pretty = [sys.executable, "-m", "ruff", "format", "--quiet", "racing_core"]
    for command in (export, pretty):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    modules = sorted(p.relative_to(ROOT) for p in (ROOT / "racing_core").rglob("*.py"))
    differ = [str(p) for p in modules if (tmp_path / p).read_bytes() != (ROOT / p).read_bytes()]
    assert not differ, f"run make export: {differ}"


HEAVY = (
    "matplotlib",
    "pandas",
    "seaborn",
    "scipy",
    "sklearn",
    "lightgbm",
    "mlflow",
    "torch",
    "shap",
    "catboost",
    "xgboost",
    "papermill",
    "litserve",
)


def loaded(code: str) -> list[str]:
    "Heavy packages in memory after some code has run in a process of its own."
    probe = f"{code}\nimport sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    return ast.literal_eval(
        subprocess.run(
            [sys.executable, "-c", probe], check=True, capture_output=True, text=True
        ).stdout
    )


def test_importing_the_package_wakes_nothing_heavy():
    assert loaded("import racing_core, racing_core.app.main") == []
    assert (
        loaded(
            "import racing_core.lab.backtest, racing_core.lab.tracking, racing_core.release.registry"
        )
        == []
    )
    assert loaded("import racing_core.models.zoo; racing_core.models.zoo.settings()") == []


def importers(package: str) -> set[str]:
    "Files of the package and the service that import something."
    files = [*(ROOT / "racing_core").rglob("*.py"), *(ROOT / "serve").rglob("*.py")]
    return {
        f.relative_to(ROOT).as_posix()
        for f in files
        if re.search(rf"^\s*(import|from) {package}\b", f.read_text(encoding="utf-8"), re.M)
    }


def test_only_the_teller_and_the_registry_know_mlflow():
    assert importers("mlflow") <= {"racing_core/lab/teller.py", "racing_core/release/registry.py"}


def test_no_pickle_is_ever_loaded():
    assert not importers("(pickle|joblib|cloudpickle|dill)")


def test_no_function_of_the_service_is_over_40_lines():
    for file in (ROOT / "serve").glob("*.py"):
        for f in ast.walk(ast.parse(file.read_text())):
            if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef):
                assert f.end_lineno - f.lineno < 40, f"{file.name}: {f.name}"


def _asserted(code: str) -> list[str]:
    "Assertions that read a clock themselves."
    asserts = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Assert)]
    said = [ast.unparse(n) for n in asserts]
    return [
        a for a in said if re.search(r"\b(perf_counter|monotonic|process_time|time\.time)\(", a)
    ]


def test_no_test_asserts_on_a_clock():
    "A busy machine is no fault; `make bench` says how long things take."
    files = (ROOT / "tests").glob("*.py")
    found = {f.name: _asserted(f.read_text(encoding="utf-8")) for f in files}
    for f in NOTEBOOKS:
        code = [source for kind, source in cells(f) if kind == "code" and "assert" in source]
        found[f.name] = [a for source in code if "await" not in source for a in _asserted(source)]
    assert not {name: asserts for name, asserts in found.items() if asserts}


def test_property_tests_choose_the_same_examples_every_time(request):
    if request.config.getoption("--hypothesis-profile") != "fuzz":
        chosen = hypothesis.settings.default
        assert chosen.derandomize and chosen.deadline is None
