# Every task of this repository. The environment lives in .venv and is made again only when pyproject.toml or
# constraints-cpu.txt change: the product is installed in place, so an edited source file is used as it is.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
CUDA ?=
PORT ?= 8080
PYTEST_ARGS ?=
TEST_WORKERS ?= 2
# langsmith, which langchain brings along, hooks itself into every pytest and takes over a second to be imported.
PYTEST_OPTIONS := -p no:langsmith_plugin -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

# Preferred index of CPU builds of torch; read by scripts/install_torch.py, which knows the default.
export TORCH_INDEX_URL

BUILD := $(if $(CUDA),cuda,cpu)
# An interpreter that has everything already (a prepared GPU machine) can take the place of .venv: ENV_PYTHON=python3.
ENV_PYTHON ?= $(VENV)/bin/python
OWN_ENV := $(filter $(VENV)/bin/python,$(ENV_PYTHON))
RUNTIME := $(if $(OWN_ENV),$(VENV)/.runtime-$(BUILD))
DEV := $(if $(OWN_ENV),$(VENV)/.dev-$(BUILD))

# setuptools warns at length about every editable installation; ours is one on purpose.
PIP_INSTALL := PYTHONWARNINGS=ignore $(VENV)/bin/python -m pip install --quiet --no-compile --no-build-isolation -c constraints-cpu.txt
EXTRAS := $(if $(CUDA),cuda)
COMMA := ,

IMAGE ?= textgen-endpoint
VERSION = $(shell sed -n 's/^VERSION = "\(.*\)"$$/\1/p' serving/version.py)

.PHONY: help serve test test-full test-browser test-gpu test-sagemaker sdk-environments lint format bench lock image image-check image-size clean

help:  ## this list
	@echo "textgen-endpoint: make TARGET [SETTING=VALUE ...]"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "Settings:"
	@echo "  PYTHON=$(PYTHON)       interpreter for the environment, 3.11 or newer"
	@echo "  HF_MODEL_ID=demo     what 'make serve' serves: demo, a local folder, a Hub id, an s3:// prefix"
	@echo "  PORT=$(PORT)            where it listens"
	@echo "  CUDA=1               use the CUDA build of torch (several GB) and the GPU"
	@echo "  TORCH_INDEX_URL=...  index of CPU builds of torch that is asked first"
	@echo
	@echo "Try:"
	@echo "  make serve"
	@echo "  curl localhost:$(PORT)/invocations -H 'content-type: application/json' -d '{\"inputs\":\"Once upon a time\"}'"

serve: export HF_MODEL_ID ?= demo
serve: export DEVICE ?= $(if $(CUDA),auto,cpu)
serve: export PORT := $(PORT)
serve: $(RUNTIME)  ## serve the embedded demo model on port 8080
	@exec $(ENV_PYTHON) -m serving.cli serve

test: export OMP_NUM_THREADS ?= 1
test: $(DEV)  ## run the suite with reduced counts
	@$(ENV_PYTHON) scripts/sdk_environments.py sagemaker2
	$(ENV_PYTHON) -m pytest $(PYTEST_OPTIONS) $(PYTEST_ARGS)

test-full: export OMP_NUM_THREADS ?= 1
test-full: sdk-environments  ## run the suite with the full counts (long)
	$(ENV_PYTHON) -m pytest $(PYTEST_OPTIONS) --full -m "not gpu" $(PYTEST_ARGS)

test-gpu: $(DEV)  ## run the tests that need a CUDA device (with CUDA=1)
	$(ENV_PYTHON) -m pytest tests/gpu --full -m gpu -W default $(PYTEST_ARGS)

test-browser: export REQUIRE_BROWSER := 1
test-browser: $(DEV)  ## run the playground's tests in Chromium (apt-get install chromium)
	$(ENV_PYTHON) -m pytest tests/integration/local_mode/test_playground_browser.py $(PYTEST_ARGS)

test-sagemaker: export OMP_NUM_THREADS ?= 1
test-sagemaker: sdk-environments  ## run both lines of the SageMaker SDK, boto3 and the emulator, with the full counts
	$(ENV_PYTHON) -m pytest $(PYTEST_OPTIONS) tests/sagemaker --full -m "not gpu" $(PYTEST_ARGS)

sdk-environments: $(DEV)  ## make .venv-sagemaker2 and .venv-sagemaker3, or leave them when they are right
	@$(ENV_PYTHON) scripts/sdk_environments.py

lint: $(DEV)  ## ruff, mypy --strict, the import rules, hadolint
	$(ENV_PYTHON) -m ruff check .
	$(ENV_PYTHON) -m mypy
	$(ENV_PYTHON) -c 'import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())'
	PATH=$(VENV)/bin:$$PATH hadolint container/Dockerfile container/Dockerfile.cpu

format: $(DEV)  ## sort imports, apply the safe fixes, format
	$(ENV_PYTHON) -m ruff check --fix --quiet . || true
	$(ENV_PYTHON) -m ruff format .

bench: $(DEV)  ## the record of docs/performance.md, against every engine that is installed (BENCH_ARGS=--list)
	$(ENV_PYTHON) -m benchmarks $(BENCH_ARGS)

DOCKERFILE := container/Dockerfile$(if $(CUDA),,.cpu)
# `make image-check` builds without an engine: IMAGE_ARGS hands it what `docker build` would get besides.
IMAGE_STEPS = $(ENV_PYTHON) -m scripts.image_steps $(DOCKERFILE) --build-arg VERSION=$(VERSION) $(IMAGE_ARGS)

lock: $(DEV)  ## pin what the images install, with hashes (LOCK_ARGS=--upgrade for newer versions)
	@$(PIP_INSTALL) uv
	$(ENV_PYTHON) -m scripts.image_lock $(LOCK_ARGS)

image:  ## build the CPU image, with CUDA=1 the CUDA image (needs docker)
	docker build --file $(DOCKERFILE) --build-arg VERSION=$(VERSION) $(IMAGE_ARGS) \
	  --tag $(IMAGE):$(VERSION)$(if $(CUDA),,-cpu) .

image-check: $(DEV)  ## run the image's build steps in clean Debian roots and serve from the result (root, debootstrap)
	@$(IMAGE_STEPS)

image-size: $(DEV)  ## MiB of the image's root file system and run-time environment, by package
	@$(IMAGE_STEPS) --size

clean:  ## remove the environment and all caches
	rm -rf $(VENV) .venv-sagemaker[23] build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# ------------------------------------------------------------------------------------------------ the environment

$(VENV)/.python:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; name Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); try: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "environment: $(VENV) ($$($(PYTHON) -V))"
	@$(PYTHON) -m venv $(VENV) || { echo "make: cannot create $(VENV); on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.torch-$(BUILD): constraints-cpu.txt | $(VENV)/.python
	@$(VENV)/bin/python scripts/install_torch.py --constraints constraints-cpu.txt $(if $(CUDA),--cuda)
	@touch $@

$(VENV)/.runtime-$(BUILD): pyproject.toml $(VENV)/.torch-$(BUILD)
	@echo "environment: installing textgen-endpoint and what it needs"
	@$(PIP_INSTALL) -e '.[local$(if $(EXTRAS),$(COMMA)$(EXTRAS))]'
	@touch $@

$(VENV)/.dev-$(BUILD): pyproject.toml $(VENV)/.torch-$(BUILD)
	@echo "environment: installing textgen-endpoint, what it needs and the test tools"
	@$(PIP_INSTALL) -e '.[dev$(if $(EXTRAS),$(COMMA)$(EXTRAS))]'
	@# TGI's own client asks for huggingface-hub < 1.0, which transformers excludes; it runs with later ones.
	@$(PIP_INSTALL) --no-deps text-generation==0.7.0
	@touch $@ $(VENV)/.runtime-$(BUILD)
