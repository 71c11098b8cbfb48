# Two commands for a newcomer: `make run` and `make test`. Everything they need is installed into $(VENV) from one lock.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
LOCK   := requirements.lock
SOURCE ?= simulated
DATA   ?=
ARGS   ?=
ROUNDS ?= 5
# several processes on few cores: one thread each, or OpenMP threads spend their time waiting for one another
ONE    := OMP_NUM_THREADS=1 POLARS_MAX_THREADS=2

.PHONY: help run test export samples docs notebooks suite nightly fuzz bench lint readme lab clean openmp system
help:           ## what there is to make
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

run: $(VENV)/.run ## the main job: simulate, features, backtest, report, bundle, one prediction (SOURCE=hkjc DATA=folder for real results)
	@$(BIN)/racing run --source $(SOURCE) $(if $(DATA),--data $(DATA)) $(ARGS)

test: lint docs suite ## the whole suite: notebooks, package, reports, service, pages

export: $(VENV)/.test ## notebooks to modules, both in the house's format
	@$(BIN)/ruff format --quiet nbs reports tests serve benchmarks setup.py
	@$(BIN)/nbdev_export && $(BIN)/nbdev_clean && $(BIN)/ruff format --quiet racing_core

samples: $(VENV)/.test ## the sample cards anew, after a change of the simulator
	@$(BIN)/python -c "from pathlib import Path; from racing_core.app.samples import write_samples; write_samples(Path('data/sample'))"

lint: $(VENV)/.test
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check .

docs: $(VENV)/.test ## run every notebook with its assertions, and render all with their outputs to _docs/index.html
	@$(ONE) $(BIN)/python -m racing_core.pages.site --workers 2 --slow $(ARGS)

notebooks: docs

suite: $(VENV)/.test system
	@$(ONE) $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder tests

nightly: $(VENV)/.test ## the fair market on forty small worlds: false claims of an edge, and coverage of the interval (minutes)
	@FAIR_WORLDS=40 $(ONE) $(BIN)/python -m pytest -q -s tests/test_fair_market.py

fuzz: $(VENV)/.test ## the property tests with other examples every time, ROUNDS times; what is found becomes an @example
	@for i in $$(seq $(ROUNDS)); do \
	$(ONE) $(BIN)/python -m pytest -q -n 2 -m hypothesis --hypothesis-profile fuzz $(ARGS) tests || exit 1; done

bench: $(VENV)/.test ## times and memory, which no test asserts: waits, features, the rooms up to the bets, batches
	@$(ONE) $(BIN)/python benchmarks/waits.py
	@$(ONE) $(BIN)/python benchmarks/features.py --races 4000
	@$(ONE) $(BIN)/python benchmarks/rooms.py --races 1600
	@$(ONE) $(BIN)/python benchmarks/grid.py

readme: $(VENV)/.test ## render README.md from nbs/index.ipynb
	@$(BIN)/jupyter nbconvert --log-level ERROR --to markdown --output-dir . --output README nbs/index.ipynb
	@sed -i 's#](images/#](nbs/images/#' README.md

lab: $(VENV)/.run ## JupyterLab on the notebooks
	@$(BIN)/racing lab

clean:          ## remove the environment and caches; the home folder is kept
	rm -rf $(VENV) _docs build *.egg-info .pytest_cache .ruff_cache .hypothesis

# --- environments: one lock, two sizes -------------------------------------------------------------------------------
comma   := ,
INSTALL = $(PIP) install --no-build-isolation -c $(LOCK) -e ".[$(1)]" 2>$(VENV)/install.log || { cat $(VENV)/install.log >&2; exit 1; }

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed and '$(PYTHON)' is not there: install it, or name it with make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -c $(LOCK) pip setuptools wheel 2>$(VENV)/install.log || { cat $(VENV)/install.log >&2; exit 1; }

$(VENV)/.run: $(LOCK) settings.ini setup.py | $(VENV)/bin/python
	@echo "installing racing-core into $(VENV) (some minutes the first time)"
	@$(call INSTALL,serve$(comma)ui)
	@$(BIN)/python -c "import lightgbm" 2>/dev/null || $(MAKE) --no-print-directory openmp
	@touch $@

$(VENV)/.test: $(LOCK) settings.ini setup.py | $(VENV)/bin/python
	@echo "installing racing-core with all extras into $(VENV) (some minutes the first time)"
	@$(call INSTALL,all)
	@$(BIN)/python -c "import lightgbm" 2>/dev/null || $(MAKE) --no-print-directory openmp
	@touch $@ $(VENV)/.run

# --- Debian packages: LightGBM wants OpenMP, the tests want a browser and two servers -------------------------------------------
SERVERS = chromium redis-server postgresql
APT = if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq --no-install-recommends
openmp:
	@$(APT) libgomp1 >/dev/null; else echo "LightGBM needs OpenMP: sudo apt-get install libgomp1" >&2; exit 2; fi

system:
	@command -v chromium >/dev/null && command -v redis-server >/dev/null && ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 \
	|| { $(APT) $(SERVERS) >/dev/null; else echo "tests of pages, of the shared cache and of PostgreSQL are skipped: sudo apt-get install $(SERVERS)" >&2; fi; }
