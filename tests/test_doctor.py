"""Doctor tries what a run would do, names what is damaged, and mends it without deleting anything."""

import json
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest
from test_data_store import season
from test_kept import DAMAGE, damage
from test_together import toy

from racing_core.app import doctor
from racing_core.app.main import main
from racing_core.config import Home, home
from racing_core.data.mend import mend
from racing_core.data.store import Store, write
from racing_core.lab import tracking
from racing_core.release import registry

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def asked(where: Home, capsys, *more: str) -> tuple[int, dict]:
    "Exit code and answer of the command."
    code = main(["doctor", *more, "--json", "--home", str(where.root)])
    return code, json.loads(capsys.readouterr().out)


def states(told: dict) -> dict[str, str]:
    return {c["name"]: c["state"] for c in told["checks"]}


def files(folder: Path) -> list[bytes]:
    return sorted(f.read_bytes() for f in folder.rglob("*.parquet"))


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_store_is_named_and_mended_and_ingested_again(how, tmp_path, capsys):
    where = home(tmp_path, env={})
    store, results = Store(where, "made"), season({0: (3, 2.0), 400: (3, 2.0), 800: (2, 2.0)})
    write(store, results)
    before = store.fingerprint
    victim = damage(store, how)
    kept = files(where.store)
    code, told = asked(where, capsys)
    (said,) = [c["found"] for c in told["checks"] if c["name"] == "sources"]
    assert code == 1 and not told["ready"] and victim.name in said
    code, told = asked(where, capsys, "--mend")
    assert code == 0 and told["ready"] and "made" in told["mended"][0]
    assert files(where.store) == kept, "nothing is deleted"
    years = {t: sorted(years) for t, years in store.manifest["tables"].items()}
    lost = "manifest" not in how
    assert set(map(tuple, years.values())) == {
        ("2020", "2021")[:2] if lost else ("2018", "2020", "2021")
    }
    assert write(store, results) is lost and store.fingerprint == before
    assert mend(store, NOW) is None


def test_mending_asks_the_network_again_for_what_went(tmp_path):
    store = Store(home(tmp_path, env={}), "made")
    write(store, season({0: (3, 2.0), 400: (3, 2.0)}))
    (store.folder / "fetch.json").write_text(
        '{"results": {"since": "2018-01-01", "done": "2026-01-01"}}'
    )
    damage(store, "cut")
    mend(store, NOW)
    assert not (store.folder / "fetch.json").exists()
    assert list(store.folder.parent.glob(".damaged/*/made/fetch.json"))


def test_a_store_of_another_version_is_moved_aside_whole(tmp_path, capsys):
    where = home(tmp_path, env={})
    store = Store(where, "made")
    write(store, season({0: (3, 2.0)}))
    manifest = store.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema": 2', '"schema": 1'))
    assert main(["train", "--source", "made", "--home", str(tmp_path)]) == 2
    assert "stored by another version" in capsys.readouterr().err
    assert asked(where, capsys)[0] == 1
    assert asked(where, capsys, "--mend")[1]["mended"] and write(store, season({0: (3, 2.0)}))


def test_damaged_titles_are_named_and_moved_aside(tmp_path, capsys):
    where = home(tmp_path / "home", env={})
    toy(tmp_path / "one", "one")
    registry.promote(where, tmp_path / "one", "champion", NOW)
    assert states(asked(where, capsys)[1])["champion"] == "ok"
    (where.bundles / "aliases.json").write_text('{"champion": ')
    code, told = asked(where, capsys)
    assert code == 1 and states(told)["champion"] == "wrong" and not told["usable"]
    code, told = asked(where, capsys, "--mend")
    assert code == 0 and states(told)["champion"] == "missing"
    assert list(where.bundles.glob("aliases.json.damaged-*"))
    assert registry.promote(where, tmp_path / "one", "champion", NOW)["log"]


def older(where: Home) -> None:
    "A tracking database as the MLflow before the last change of its tables made it."
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils

    where.runs.mkdir(parents=True)
    engine = utils.create_sqlalchemy_engine(where.tracking_uri)
    utils.InitialBase.metadata.create_all(engine)
    config = utils._get_alembic_config(where.tracking_uri)
    script = ScriptDirectory.from_config(config)
    command.upgrade(config, script.get_revision(script.get_current_head()).down_revision)


def tables_of(file: Path) -> str:
    return sqlite3.connect(file).execute("select version_num from alembic_version").fetchone()[0]


def test_a_tracking_database_of_an_older_version_is_told_and_upgraded(tmp_path, capsys):
    where = home(tmp_path, env={})
    older(where)
    file = where.runs / "mlflow.db"
    before = tables_of(file)
    code, told = asked(where, capsys)
    assert code == 1 and states(told)["tracking"] == "wrong" and told["usable"]
    assert tables_of(file) == before, "looking changes nothing"
    with pytest.warns(UserWarning, match="the run is kept"):
        tracking.record(where, where.runs / "early", "backtest", "made", {}, figures={})
    assert tables_of(file) == before and not list(where.runs.glob("mlflow.db.2*"))
    code, told = asked(where, capsys, "--mend")
    assert code == 0 and states(told)["tracking"] == "ok" and "upgraded" in told["mended"][0]
    assert "told that had waited" in told["mended"][1]
    with sqlite3.connect(file) as db:
        assert db.execute("select count(*) from runs").fetchone() == (1,), "nothing is lost"
    (copy,) = where.runs.glob("mlflow.db.2*")
    assert tables_of(copy) == before != tables_of(file)
    tracking.record(where, where.runs / "one", "backtest", "made", {}, figures={})


def test_a_tracking_database_of_a_later_version_is_told_and_left_alone(tmp_path, capsys):
    where = home(tmp_path, env={})
    tracking.record(where, where.runs / "one", "backtest", "made", {}, figures={})
    file = where.runs / "mlflow.db"
    assert states(asked(where, capsys)[1])["tracking"] == "ok"
    with sqlite3.connect(file) as db:
        db.execute("update alembic_version set version_num = 'fffffffffffe'")
    code, told = asked(where, capsys, "--mend")
    assert code == 1 and states(told)["tracking"] == "wrong"
    assert "cannot be upgraded" in told["mended"][0] and tables_of(file) == "fffffffffffe"


def test_a_file_that_is_no_database_is_told(tmp_path, capsys):
    where = home(tmp_path, env={})
    where.runs.mkdir()
    (where.runs / "mlflow.db").write_bytes(b"not a database at all" * 100)
    code, told = asked(where, capsys)
    assert code == 1 and states(told)["tracking"] == "wrong"


@pytest.mark.parametrize(
    ("have", "lock", "state"),
    [
        ("2.13.0+cpu", "2.13.0", "ok"),
        ("2.13.0", "2.13.0+cpu", "ok"),
        ("2.13", "2.13.0", "ok"),
        ("2.13.1", "2.13.0", "wrong"),
        ("2.13.0rc1", "2.13.0", "wrong"),
    ],
)
def test_versions_are_compared_as_they_are_meant(have, lock, state, monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: have)
    found = doctor.packages("tabnet", ["Torch"], {"torch": lock})
    assert found.state == state and doctor.ready([found]) is (state == "ok")
    assert doctor.usable([found])


def test_ready_is_not_said_beside_something_wrong(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: "0.0.1")
    assert main(["doctor", "--home", str(tmp_path)]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "usable: mend what is wrong"
