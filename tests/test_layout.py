"""Arrows run one way (CONTRIBUTING.md): what computes knows nothing of files, logs, programs or the embedded world."""

import ast
from pathlib import Path

import pytest

import fairjax

ROOT = Path(fairjax.__file__).parent
FOLDERS = {path.parent.name for path in ROOT.glob("*/*.py")}

MAY_IMPORT = {
    "models": {"schema_errors"},  # which says in one line what is wrong with a config.json
    "diffusion": {"models"},
    "adapters": {"models"},
    "fairness": set(),
}
"""Of fairjax, by what takes arrays and returns them."""


def imported(folder):
    """What a folder's files import of the rest of fairjax: folders and files of its own, by name."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "fairjax":
                found |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fairjax."):
                found.add(node.module.split(".")[1])
            elif isinstance(node, ast.Import):
                found |= {name.name.split(".")[1] for name in node.names if name.name.startswith("fairjax.")}
    return found - {folder}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_what_takes_arrays_knows_of_nothing_else(folder):
    assert imported(folder) == MAY_IMPORT[folder]


def test_what_measures_knows_nothing_of_training_and_nothing_knows_the_programs():
    assert "training" in FOLDERS and "training" not in imported("evaluation")
    programs = {"api", "gallery", "generate", "status"}
    for folder in FOLDERS:
        assert not imported(folder) & programs, folder
    for folder in FOLDERS - {"training"}:
        assert "checkpoints" not in imported(folder), folder
