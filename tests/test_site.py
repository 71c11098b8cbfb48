"""The site of notebooks from outside: real executions of small notebooks, their pages and their failures."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from racing_core.config import shipped
from racing_core.errors import BadInput
from racing_core.pages.notebooks import FLOORS, floor, rooms
from racing_core.pages.site import main

WORDS, CODE = "markdown", "code"
PRICES = [
    (WORDS, "# prices <b>\n> What a price & a `chance` are."),
    (CODE, "#| default_exp prices"),
    (CODE, "#| export\nSHARE = 0.8\n\n\ndef chance(odds):\n    return SHARE / odds"),
    (WORDS, "## A picture\nOf `prices.chance`; `nobody` is no room."),
    (
        CODE,
        "import matplotlib.pyplot as plt\n\n_, ax = plt.subplots()\nax.plot([chance(x) for x in (2, 4, 8)])",
    ),
    (CODE, "#| slow\nprint('it took', 'long')"),
    (CODE, "#| eval: false\nraise SystemExit(3)"),
    (CODE, "print('<script>alert(1)</script>', chance(4))"),
    (CODE, "import sys\n\nprint('a bar', file=sys.stderr)"),
    (
        CODE,
        "from IPython.display import HTML\n\nHTML('<style>body { color: red }</style><i>own</i>')",
    ),
    (CODE, "import os\n\nos.path.basename(os.getcwd()), os.environ['IN_TEST']"),
    (CODE, "assert not [m for m in sys.modules if m.startswith('racing_core.features')]"),
]
SUMS = [
    (WORDS, "# sums\n> Of things."),
    (CODE, "total = 1 + 1"),
    (CODE, "assert total == 3, '<total> is two'"),
    (CODE, "print('never ' + 'reached')"),
]


def write(file: Path, cells: list[tuple[str, str]]) -> None:
    made = [
        dict(cell_type=kind, id=f"c{i}", metadata={}, source=source)
        | (dict(outputs=[], execution_count=None) if kind == CODE else {})
        for i, (kind, source) in enumerate(cells)
    ]
    file.write_text(json.dumps(dict(cells=made, metadata={}, nbformat=4, nbformat_minor=5)))


def build(nbs: Path, *more: str) -> int:
    return main(["--nbs", str(nbs), "--out", str(nbs.parent / "site"), *more])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "A site of two notebooks, one of which fails, and what the command said."
    top = tmp_path_factory.mktemp("site")
    nbs = top / "nbs"
    nbs.mkdir()
    write(nbs / "01_prices.ipynb", PRICES)
    write(nbs / "02_sums.ipynb", SUMS)
    command = ["-m", "racing_core.pages.site", "--nbs", str(nbs), "--out", str(top / "site")]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    pages = {p.stem: p.read_text(encoding="utf-8") for p in (top / "site").glob("*.html")}
    return done, pages


def test_outputs_are_on_the_page(site):
    page = site[1]["prices"]
    assert page.count('<img alt="" src="data:image/png;base64,') == 1
    assert "matplotlib.lines" not in page, "what a plot returns is dull"
    assert "(&#39;nbs&#39;, &#39;1&#39;)" in page, "it runs in its folder, as a test"
    assert "a bar</pre>" not in page
    assert "it took long" not in page and "not run: slow" in page
    assert "not run: eval is false" in page


def test_a_failing_notebook_fails_the_command_and_names_the_cell(site):
    done, pages = site
    assert done.returncode == 1
    assert "02_sums.ipynb, cell 3: AssertionError: <total> is two" in done.stderr
    assert "1 of 2 notebooks failed" in done.stderr and "01_prices" not in done.stderr
    assert "AssertionError: &lt;total&gt; is two" in pages["sums"]
    assert "never reached" not in pages["sums"]
    assert re.search(r"sums</code></a>\s*<strong[^>]*>failed", pages["index"])


def test_names_are_text_and_styles_of_outputs_stay_in_their_frame(site):
    _, pages = site
    assert "prices &lt;b&gt;" in pages["index"] and "prices <b>" not in pages["index"]
    assert "<title>prices &lt;b&gt;" in pages["prices"]
    assert "<script" not in pages["prices"] and "&lt;script&gt;alert(1)" in pages["prices"]
    assert "<style>body" not in pages["prices"]
    assert 'srcdoc="&lt;style&gt;body { color: red }' in pages["prices"]


def test_the_pages_are_linked_and_fetch_nothing(site):
    _, pages = site
    assert set(pages) == {"index", "prices", "sums"}
    for page in pages.values():
        local = set(re.findall(r'href="([^"#]+\.html)', page))
        assert local <= {f"{p}.html" for p in pages}
        assert not re.search(r'(?:src|srcset)="(?!data:)|<link|@import|url\(', page)
        assert "http" not in re.sub(r'<a [^>]*href="http[^>]*>', "", page)
    prices = pages["prices"]
    assert 'href="prices.html#chance"' in prices or 'href="#chance"' in prices
    for name in ("chance", "SHARE"):
        assert prices.count(f'id="{name}"') == 1
    assert '<a rel="next" href="sums.html">' in prices
    assert '<a rel="prev" href="prices.html">' in pages["sums"]
    assert "<code>nobody</code>" in prices and "nobody.html" not in prices


def test_what_did_not_change_is_not_executed_again(tmp_path):
    nbs, ran = tmp_path / "nbs", tmp_path / "ran"
    nbs.mkdir()
    count = f"with open({str(ran)!r}, 'a') as f: f.write('x')"
    counted = [(WORDS, "# counted\n> So often."), (CODE, count), (CODE, "#| slow\n1 + 1")]
    write(nbs / "01_counted.ipynb", counted)

    def runs(*more: str) -> int:
        assert build(nbs, *more) == 0
        return len(ran.read_text())

    assert runs() == 1
    assert runs() == 1
    (tmp_path / "site" / "counted.html").unlink()
    assert runs() == 1 and (tmp_path / "site" / "counted.html").is_file(), (
        "rendered from what is kept"
    )
    assert runs("--slow") == 2, "other cells are another execution"
    assert runs("--slow", "--force") == 3
    write(nbs / "01_counted.ipynb", [*counted, (WORDS, "More.")])
    assert runs("--slow") == 4
    write(
        nbs / "02_failing.ipynb", [(WORDS, "# failing\n> Always."), (CODE, count), (CODE, "1 / 0")]
    )
    assert build(nbs, "--slow") == build(nbs, "--slow") == 1
    assert len(ran.read_text()) == 6, "what failed is executed again, what passed is not"
    (nbs / "02_failing.ipynb").unlink()
    assert build(nbs, "--slow", "counted") == 0
    assert not (tmp_path / "site" / "failing.html").exists(), "no page without its notebook"


def test_each_notebook_has_a_process_of_its_own_and_may_die_in_it(tmp_path, capfd):
    lazy = "import sys\n\nassert 'antigravity_of_tests' not in sys.modules"
    write(
        tmp_path / "01_a.ipynb", [(CODE, lazy), (CODE, "sys.modules['antigravity_of_tests'] = sys")]
    )
    write(tmp_path / "02_b.ipynb", [(CODE, lazy)])
    write(
        tmp_path / "03_c.ipynb",
        [(CODE, "import os, signal\n\nos.kill(os.getpid(), signal.SIGKILL)")],
    )
    write(tmp_path / "04_d.ipynb", [(CODE, lazy)])
    here = os.getcwd()
    assert build(tmp_path, "--workers", "1") == 1
    said = capfd.readouterr().err
    assert "1 of 4 notebooks failed" in said and "03_c.ipynb: its process died (-9)" in said
    assert os.getcwd() == here


def test_a_notebook_that_is_not_there_is_refused(tmp_path):
    write(tmp_path / "01_a.ipynb", [(CODE, "1")])
    with pytest.raises(BadInput, match=r"no such notebook: got 'b'"):
        build(tmp_path, "b")
    with pytest.raises(BadInput, match="no notebooks"):
        build(tmp_path / "nothing")


def test_every_floor_has_its_name_and_no_two_rooms_share_a_page():
    house = rooms(shipped("nbs"))
    assert {floor(r) for r in house if r.name != "readme"} <= set(FLOORS.values())
    assert len({r.page for r in house}) == len(house)
    assert "index.html" not in {r.page for r in house}


def test_importing_the_room_needs_no_development_tools():
    probe = "import racing_core.pages.site, sys; print({'nbdev', 'execnb', 'IPython', 'nbconvert'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
