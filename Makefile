PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1
unexport PYTHONDONTWRITEBYTECODE  # tests start Python hundreds of times: what is compiled is kept

.PHONY: report real test test-shapes test-slow test-browser test-real newest check docs docs-fast bench clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@

report: .venv/installed  ## a first report on a shipped model
	$(BIN)/interp run studies/demo.toml --out runs/demo
	$(BIN)/interp report runs/demo

real: .venv/installed  ## a report on a real model (93 MB, fetched once into ~/.cache/interp), in about 10 minutes
	$(BIN)/interp get smollm2-135m
	$(BIN)/interp run --model smollm2-135m --task ioi-english --task facts --n 32 --budget 8 --out runs/smollm2
	$(BIN)/interp report runs/smollm2

test: .venv/installed  ## the fast tests
	$(BIN)/pytest -n 2 --dist loadfile

test-shapes: .venv/installed  ## every analysis once, and the engine, with the shapes of all tensors checked
	CHECK_SHAPES=1 $(BIN)/pytest -n 2 tests/test_contract.py tests/test_forward.py \
		tests/test_replay.py tests/test_backward.py tests/test_capture.py -k 'not contract_is_kept'

test-slow: .venv/installed  ## what takes longer or damages files
	$(BIN)/pytest -n 2 --dist loadgroup -m '(slow or faults) and not browser and not real'

test-browser: .venv/installed  ## what needs a Chromium
	$(BIN)/pytest -n 2 -m browser

test-real: .venv/installed  ## what needs a real model (93 MB, fetched once into ~/.cache/interp)
	$(BIN)/pytest -n 2 --dist loadfile -rs -m real

newest: .venv/installed  ## families on the newest TransformerLens, in an environment of its own; reported, blocks nothing
	$(PYTHON) -m venv .cache/newest
	.cache/newest/bin/python -m pip install --quiet --constraint constraints.txt torch
	.cache/newest/bin/python -m pip install --quiet --editable . --group dev
	.cache/newest/bin/python -m pip install --quiet --upgrade transformer-lens
	.cache/newest/bin/python -m pip list | grep -i -E '^(transformer|torch)'
	-.cache/newest/bin/pytest -q -n 2 -m 'slow or not slow' tests/test_families.py tests/test_finding.py

check: .venv/installed  ## linters, types, layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/installed  ## the pages; tutorials that have changed are executed, about 5 minutes for all
	$(BIN)/mkdocs build --strict

docs-fast: .venv/installed  ## the pages with tutorials as they are written, in a few seconds
	DOCS_FAST=1 $(BIN)/mkdocs build --strict

bench: .venv/installed  ## all benchmarks, about an hour on two idle cores, and the page
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group bench
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks --page

clean:
	rm -rf .venv runs site dist
