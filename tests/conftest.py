"""Fixtures shared by the whole suite."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    "Folder of real results; tests that need it skip where it is absent."
    folder = Path(os.environ.get("RACING_SHARED", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real results at {folder} (set RACING_SHARED to a folder that holds hkjc/, netkeiba/ …)")
    return folder
