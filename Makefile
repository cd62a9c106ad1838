.DEFAULT_GOAL := help
.PHONY: help setup run test e2e check format lock clean bench-download

PYTHON ?= python3
BIN := .venv/bin
PORT ?= 11434
MODELS ?=
MODEL_PATH ?= .models
CODE := images tests tools benchmarks

help: ## Say what there is
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: ## Set up .venv, everything pinned (the others call it)
	@$(PYTHON) tools/setup.py

run: setup ## Fetch a real small model and serve it; MODELS="ids or hf:// sources" for others, PORT=11434
	@exec $(BIN)/python tools/run.py --models "$(MODELS)" --model-path "$(MODEL_PATH)" --port $(PORT)

test: setup check ## Lint, types and all tests but those of e2e
	$(BIN)/pytest --ignore=tests/e2e

e2e: setup ## Take the part of a user: run the main job as the README says, end to end
	$(BIN)/pytest tests/e2e

check: setup ## Lint and types; edits nothing
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy -p nlocalmodels_downloader -p nlocalmodels_server
	$(BIN)/mypy tools tests
	$(BIN)/mypy benchmarks

bench-download: setup ## Measure the downloader against curl, aria2c and huggingface_hub; writes benchmarks/download/RESULTS.md
	@exec $(BIN)/python benchmarks/download/bench.py $(ARGS)

format: setup ## Format and fix what can be fixed
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

lock: setup ## Pin all dependencies anew, with hashes
	$(BIN)/python tools/lock.py

clean: ## Remove the environment, the models of `make run` and all caches of tools in this folder
	rm -rf .venv .models .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
