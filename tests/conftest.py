"""Fixtures shared by the whole suite, and how its property tests choose their examples."""

import os
from pathlib import Path

import pytest
from hypothesis import settings
from servers import postgres, postgres_url, s3, s3_store  # noqa: F401

# The same examples every time, or a red run says nothing about the change that it is red for; no
# deadline, or a busy machine is a fault. `make fuzz` looks for new ones: what it finds becomes an
# `@example`, and the blob that it prints reproduces it until then.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("fuzz", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile("ci")

ROOT = Path(__file__).resolve().parent.parent
# files that take minutes begin first, or one of two workers waits for the other at the end
LONG = ("test_cli", "test_experiments", "test_story", "test_gates", "test_reports", "test_wheel")


def pytest_collection_modifyitems(items):
    "The long files first, in this order; all else as it was."
    order = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(Path(item.fspath).stem, len(LONG)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    "Folder of real results; tests that need it skip where it is absent."
    folder = Path(os.environ.get("RACING_SHARED", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(
            f"no real results at {folder} (set RACING_SHARED to a folder that holds hkjc/,"
            " netkeiba/ …)"
        )
    return folder


@pytest.fixture(scope="session")
def hong_kong_store(shared_data, tmp_path_factory):
    "The real Hong Kong results as stored."
    return _real("hkjc", shared_data, tmp_path_factory)


@pytest.fixture(scope="session")
def hong_kong(hong_kong_store):
    "The wide frame of the real Hong Kong results."
    return hong_kong_store.starts()


@pytest.fixture(scope="session")
def japan_store(shared_data, tmp_path_factory):
    "The real Japanese results as stored."
    return _real("netkeiba", shared_data, tmp_path_factory)


@pytest.fixture(scope="session")
def japan(japan_store):
    "The wide frame of the real Japanese results."
    return japan_store.starts()


def _real(source: str, shared_data: Path, tmp_path_factory):
    from racing_core.config import home
    from racing_core.data.ingest import ingest
    from racing_core.data.store import Store

    if not (shared_data / source).is_dir():
        pytest.skip(f"no {source} results in {shared_data}")
    where = home(tmp_path_factory.mktemp("real"), env={})
    ingest(source, shared_data / source, where)
    return Store(where, source)
