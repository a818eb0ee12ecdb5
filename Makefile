# The one list of commands, for people and CI alike. `make demo` and `make test` need Python 3.11+ and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python .ci/install.py $(BIN)/python --constraint constraints.txt

.PHONY: help setup demo serve test chaos test-unit lint settings format docs bench clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/runtime: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 …" >&2; exit 2; }
	@echo "making $(VENV)" >&2
	@$(PYTHON) -m venv $(VENV)
	@echo "installing the pinned dependencies into $(VENV) (about 2 GB, a few minutes the first time)" >&2
	@$(PIP) --editable .
	@touch $@

$(VENV)/development: $(VENV)/runtime
	@echo "installing what tests need into $(VENV)" >&2
	@$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/docs: pyproject.toml constraints.txt | $(VENV)/runtime
	@echo "installing what builds the site into $(VENV)" >&2
	@$(PIP) --editable '.[docs]'
	@touch $@

setup: $(VENV)/development  ## create .venv with everything for work on the code

demo: $(VENV)/runtime  ## the main job from end to end; DATA=file.csv for your own Sentiment140 file
	@$(BIN)/sentiment demo $(if $(DATA),--data '$(DATA)')

serve: $(VENV)/runtime  ## serve over HTTP until Ctrl-C; MODEL=bundle (or else the demo's, trained if need be), PORT=8000
ifeq ($(MODEL),)
	@test -f runs/demo/model/bundle/MANIFEST.json || $(BIN)/sentiment demo
endif
	@$(BIN)/sentiment serve --model $(or $(MODEL),runs/demo/model/bundle) $(if $(PORT),--port $(PORT))

# Beside as many other processes as there are cores, threads only wait for each other.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 RAYON_NUM_THREADS=1
# What `make test` runs, with and without Ray.
TESTED := not slow and not gpu and (always or not chaos)

test: $(VENV)/development  ## all tests: those without Ray on all cores, then those on a local Ray
	$(ONE_THREAD) $(BIN)/python -m pytest tests -m "not ray and $(TESTED)" --numprocesses auto
	$(BIN)/python -m pytest tests/cluster tests/ray tests/serve -m "ray and $(TESTED)"

chaos: $(VENV)/development  ## kill nodes, drivers and writes, and write docs/results/chaos.md; a few minutes
	CHAOS_RESULTS=docs/results $(BIN)/python -m pytest tests --ignore tests/unit -m "chaos and not slow"

test-unit: $(VENV)/development  ## the unit tier only: no Ray, about a minute
	$(ONE_THREAD) $(BIN)/python -m pytest tests/unit --numprocesses auto

lint: $(VENV)/development  ## ruff and mypy --strict
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

settings: $(VENV)/runtime  ## write the sections of ray_config.yaml and docs/settings.md again, from sentiment/settings.py
	@$(BIN)/sentiment config --yaml > ray_config.yaml.new && mv ray_config.yaml.new ray_config.yaml
	@$(BIN)/sentiment config --markdown > docs/settings.md

format: $(VENV)/development  ## let ruff rewrite what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/docs  ## the pages and the API reference as a site, into site/; a broken link or docstring fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/runtime  ## measure the main job into docs/results; DATA="a.csv b.parquet" ARCHIVE="tweets.jsonl" MODEL=bundle
	$(BIN)/python benchmarks/main_job.py jobs $(if $(DATA),--data $(DATA)) $(if $(ARCHIVE),--archive $(ARCHIVE))
	$(if $(and $(MODEL),$(ARCHIVE)),for lane in bilstm size resume; do \
	$(BIN)/python benchmarks/scoring.py $$lane --model $(MODEL) --input $(firstword $(ARCHIVE)) || exit; done)

clean:  ## remove the environment, runs and caches
	rm -rf $(VENV) runs site .mypy_cache .ruff_cache .pytest_cache *.egg-info
