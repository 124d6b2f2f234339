PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: report test test-slow test-browser test-real check docs bench clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@

report: .venv/installed  ## a first report on a shipped model
	$(BIN)/interp run studies/demo.toml --out runs/demo
	$(BIN)/interp report runs/demo

test: .venv/installed  ## the fast tests
	$(BIN)/pytest -n 2

test-slow: .venv/installed  ## what takes longer or damages files
	$(BIN)/pytest -n 2 -m '(slow or faults) and not browser and not real'

test-browser: .venv/installed  ## what needs a Chromium
	$(BIN)/pytest -m browser

test-real: .venv/installed  ## what needs a real model (93 MB, fetched once into ~/.cache/interp)
	$(BIN)/pytest -n 2 --dist loadfile -rs -m real

check: .venv/installed  ## linters, types, layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/installed  ## the pages; tutorials that have changed are executed
	$(BIN)/mkdocs build --strict

bench: .venv/installed  ## all benchmarks, about an hour on two idle cores, and the page
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group bench
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks --page

clean:
	rm -rf .venv runs site dist
