# `make train` and `make test` set everything up by themselves; see README.md.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
BIN := .venv/bin
PORT ?= 5000

.PHONY: help train test drills proof check ui cluster cluster-down image stack stack-down setup lock clean

help: ## Say what there is to make
	@sed -n 's/^\([a-z][a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | \
		while IFS="$$(printf '\t')" read -r name words; do printf '  make %-13s %s\n' "$$name" "$$words"; done

train: setup ## Train the quickstart recipe on this machine
	@$(BIN)/python jobs/train.py --recipe quickstart

# One process more than cores: tests wait at times, for servers and for what they kill; each takes gigabytes.
PROCESSES := $(shell expr $$(nproc 2> /dev/null || echo 2) + 1)
# Compiled tests are kept, whatever the environment says: each process would compile them anew.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest \
	--numprocesses $(PROCESSES) --maxprocesses 8 --dist loadscope --no-loadscope-reorder

test: check ## Lint, types, architecture, then the tests
	@$(PYTEST) -m "not drill"

drills: setup ## The slow tests: clusters of several nodes, hosts and servers, submitted jobs, what is killed, the peers themselves
	@$(PYTEST) -m drill --timeout 600

proof: check ## Both, by the same processes
	@$(PYTEST) --timeout 600

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

ui: setup ## Show the runs in the MLflow UI
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true $(BIN)/mlflow ui \
		--backend-store-uri sqlite:///runs/mlflow.db --host 127.0.0.1 --port $(PORT)

BUILDER ?= $(firstword $(foreach name,docker podman buildah,$(shell command -v $(name))) docker)

image: ## Build the container image
	@commit=$$(git rev-parse HEAD 2> /dev/null || echo unknown); \
		test -z "$$(git status --porcelain 2> /dev/null)" || commit=$$commit-dirty; \
		$(BUILDER) build --file infra/image/Dockerfile --build-arg DISTSENS_COMMIT=$$commit --tag distsens .

STACK ?= /var/tmp/distsens

stack: setup ## Start PostgreSQL, an S3 server, MLflow and a Ray cluster on this machine; infra/README.md
	@$(BIN)/python infra/stack/stack.py up --folder $(STACK)

stack-down: setup ## Stop them; their data stay
	@$(BIN)/python infra/stack/stack.py down --folder $(STACK)

cluster: setup ## Start a Ray cluster of three nodes on this machine, and print the line that makes the jobs join it
	@$(BIN)/python cluster/local/cluster.py up

cluster-down: setup ## End it, and no other Ray
	@$(BIN)/python cluster/local/cluster.py down

setup: .venv/.installed

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "distsens needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11")'
	@echo "installing the locked dependencies into .venv (once; PyTorch makes it a few GB)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

lock: ## Resolve pyproject.toml anew into requirements.lock
	@$(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	@.venv-lock/bin/uv pip compile pyproject.toml --extra server --extra test --extra peers \
		--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --upgrade \
		--output-file requirements.lock
	@rm -r .venv-lock

clean: ## Remove the environment and the caches, not the runs
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
