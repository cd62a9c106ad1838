.DEFAULT_GOAL := help
.PHONY: help setup run test e2e check format lock clean bench-download bench-engine soak-download soak-server docs chart-lint images bake cluster cluster-down

PYTHON ?= python3
BIN := .venv/bin
PORT ?= 11434
MODELS ?=
MODEL_PATH ?= .models
IMAGE ?=
LAYOUT ?= server
ARCHIVES ?=
ARCHIVE ?=
CONFIG ?=
CODE := images tests tools benchmarks

help: ## Say what there is
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: ## Set up .venv, everything pinned (the others call it)
	@$(PYTHON) tools/setup.py

run: setup ## Fetch a real small model and serve it; MODELS="ids or hf:// sources" for others, PORT=11434
	@exec $(BIN)/python tools/run.py --models "$(MODELS)" --model-path "$(MODEL_PATH)" --port $(PORT)

test: setup check ## Lint, types and all tests but those of e2e; the chart is rendered, not installed
	@$(BIN)/python tools/go_binaries.py helm helm4 helm-docs kube-score >/dev/null && $(BIN)/python tools/chart_tools.py >/dev/null
	$(BIN)/pytest --ignore=tests/e2e

e2e: setup ## Take the part of a user: make run, the images, and the chart on a real cluster (own, kind's, or KUBECONFIG's)
	@$(BIN)/python tools/go_binaries.py kubectl helm helm4 ct >/dev/null && $(BIN)/python tools/chart_tools.py >/dev/null
	@PYTHONPATH=tests:tools $(BIN)/python -m cluster build
	$(BIN)/pytest -v tests/e2e

chart-lint: setup ## Lint the chart with chart-testing
	@ct=$$($(BIN)/python tools/go_binaries.py ct) helm=$$($(BIN)/python tools/go_binaries.py helm) && \
	PATH="$$($(BIN)/python tools/chart_tools.py):$${helm%/*}:$$PATH" $$ct lint --config ct.yaml

docs: setup ## Write the chart's README and schema anew, from its values.yaml
	@$(BIN)/python tools/values_schema.py
	@$$($(BIN)/python tools/go_binaries.py helm-docs) --chart-search-root charts --sort-values-order file --log-level warning

images: setup ## Build images: IMAGES="server downloader" (also downloader-s3), BASE_IMAGE, CA_BUNDLE, ARCHIVES=folder
	@$(BIN)/python tools/images.py build $(or $(IMAGES),server downloader) $(if $(ARCHIVES),--archives "$(ARCHIVES)")

bake: setup ## Build an image with models in it: MODELS="ids, sets or hf:// sources" or CONFIG=downloads.yaml, IMAGE=name:tag
	@$(BIN)/python tools/bake.py $(if $(CONFIG),--config "$(CONFIG)",--models "$(MODELS)") --image "$(IMAGE)" --layout $(LAYOUT) \
	  $(if $(ARCHIVE),--archive "$(ARCHIVE)")

cluster: setup ## Start a real Kubernetes on this machine, without Docker (as root) or by kind
	@PYTHONPATH=tests:tools $(BIN)/python -m cluster up

cluster-down: setup ## Stop that cluster and remove all of it
	@PYTHONPATH=tests:tools $(BIN)/python -m cluster down

check: setup ## Lint and types; edits nothing
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy -p nlocalmodels_downloader -p nlocalmodels_server
	$(BIN)/mypy tools tests
	@# Each benchmark is a folder of scripts of its own, with module names of its own.
	MYPYPATH=benchmarks/download $(BIN)/mypy benchmarks/download
	MYPYPATH=benchmarks/engine $(BIN)/mypy benchmarks/engine
	$(BIN)/hadolint images/*/Dockerfile tests/support/source_image/Dockerfile
	$(BIN)/python tools/values_schema.py --check

bench-download: setup ## Measure the downloader against curl, aria2c and huggingface_hub; writes benchmarks/download/*.md
	@$(BIN)/python benchmarks/download/bench.py $(ARGS)
	@exec $(BIN)/python benchmarks/download/fresh_memory.py

bench-engine: setup ## Measure the server against llama-server, built on first use; ARGS="--quick", "--scenario stall"; writes benchmarks/engine/RESULTS.md
	@exec $(BIN)/python benchmarks/engine/bench.py $(ARGS)

soak-server: setup ## Load the server for an hour and see that nothing grows: ARGS="--minutes 60"
	@PYTHONPATH=tests:tools exec $(BIN)/python -m support.soak_server $(ARGS)

soak-download: setup ## Kill downloads at random, again and again: ARGS="--schedules 200 --minutes 20 --folder /dev/shm"
	SOAK=1 $(BIN)/pytest tests/downloader/test_kill_steps.py tests/downloader/test_shared_volume.py
	@PYTHONPATH=tests exec $(BIN)/python -m support.kill_schedules $(ARGS)

format: setup ## Format and fix what can be fixed
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

lock: setup ## Pin all dependencies anew, with hashes
	$(BIN)/python tools/lock.py

clean: ## Remove the environment, the models of `make run` and all caches of tools in this folder
	rm -rf .venv .models .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
