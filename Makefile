# Everything runs from .venv, which is made from the lock file and made again when the lock changes.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.made-from-the-lock
LOCK   := requirements/dev.lock
UV     := .tools/uv/bin/uv

# More arguments for pytest: make test PYTEST="-k settings"
PYTEST  ?=
WORKERS ?= auto
MUTATIONS ?=
BENCH   ?=
# Queue libraries to compare with, each in an environment of its own, for they want different redis-py.
QUEUES  := arq taskiq streaq

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow soak mutations bench bench-full bench-docs lint format docs lock dist clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## Set up, then run twelve varied requests against an embedded Redis and Nomad simulator
	$(BIN)/dispatch-worker dev --demo 12

test: lint ## Set up, then check style and types and run all tests
	$(BIN)/pytest -n $(WORKERS) $(PYTEST)

test-slow: $(STAMP) ## Set up, then run the tests that take minutes
	$(BIN)/pytest -m slow $(PYTEST)

soak: $(STAMP) ## Break everything while 10,000 messages flow (SEED, MESSAGES, SEEDS in a row, TOPOLOGY=sentinel)
	$(BIN)/python -m tests.soak

mutations: $(STAMP) ## Plant faults in a copy of the product, one at a time; the tests that guard it must fail
	$(BIN)/python -m tests.faults.mutations $(MUTATIONS)

bench: $(STAMP) $(QUEUES:%=.tools/bench/%/.made) ## Set up, then measure for some two minutes (one alone: make bench BENCH=end_to_end)
	$(BIN)/python -m benchmarks $(BENCH)

bench-full: $(STAMP) $(QUEUES:%=.tools/bench/%/.made) ## Set up, then measure with more and longer rounds
	$(BIN)/python -m benchmarks --full $(BENCH)

bench-docs: $(STAMP) ## Write what was measured last into docs/performance.md
	$(BIN)/python -m benchmarks.report

.tools/bench/%/.made: requirements/bench-%.lock
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

.PHONY: test-deploy test-kube image-test deploy-tools chart-docs sbom
test-deploy: $(STAMP) sbom ## Set up, then check image file, chart, compose file, Nomad jobs and wheel
	$(BIN)/pytest -m deploy -n $(WORKERS) tests/deploy $(PYTEST)

test-kube: $(STAMP) ## Set up, then install the chart on a real kube-apiserver (builds it: minutes; needs etcd)
	PYTHON=$(PYTHON) deploy/tools.sh kube
	$(BIN)/pytest -m kube -n 0 tests/deploy $(PYTEST)

image-test: $(STAMP) ## Set up, then build the image on a base of Debian packages and run it (root, buildah, mmdebstrap)
	$(BIN)/pytest -m image -n 0 tests/deploy $(PYTEST)

# Exit code 3: there is no Go. What needs its commands is then skipped, in CI it fails.
deploy-tools:
	@PYTHON=$(PYTHON) deploy/tools.sh || [ $$? -eq 3 ]

lint: $(STAMP) ## Check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(STAMP) ## Put the code into its form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(STAMP) ## Write the pages that are made from the code
	$(BIN)/dispatch-worker config --format markdown > docs/settings.md
	$(BIN)/python deploy/helm/schema.py
	$(BIN)/python deploy/licences.py

chart-docs: deploy-tools ## Write the chart's README
	.tools/bin/helm-docs --log-level error --chart-search-root deploy/helm --sort-values-order file

$(STAMP): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCK)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

# runtime.lock and build.lock are for the container image. They take their versions from dev.lock, so that
# what is shipped is what was tested.
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --custom-compile-command "make lock" pyproject.toml

lock: $(UV) ## Choose the newest versions that pyproject.toml allows, and write requirements/*.lock
	$(COMPILE) --upgrade --all-extras --group build --group test -o $(LOCK)
	$(COMPILE) --constraint $(LOCK) --extra fast --extra otel -o requirements/runtime.lock
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --custom-compile-command "make lock" --constraint $(LOCK) --group build -o requirements/build.lock
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --custom-compile-command "make lock" --upgrade --group deploy -o requirements/deploy.lock
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --custom-compile-command "make lock" --upgrade --group go -o requirements/go.lock
	for queue in $(QUEUES); do \
	  $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --custom-compile-command "make lock" --upgrade --group bench-$$queue -o requirements/bench-$$queue.lock; done

$(UV):
	$(PYTHON) -m venv --clear .tools/uv
	.tools/uv/bin/python -m pip install --quiet --disable-pip-version-check uv

dist: $(STAMP) ## Build the source distribution and the wheel, byte for byte the same from the same commit
	rm -rf dist
	SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct)} $(BIN)/python -m build --no-isolation

sbom: dist deploy-tools ## Build, install that into an empty environment, and write what came with it: dist/sbom.cdx.json
	rm -rf .tools/runtime && $(PYTHON) -m venv --without-pip .tools/runtime
	$(INSTALL) --require-hashes -r requirements/runtime.lock
	$(INSTALL) --no-index --no-deps dist/*.whl
	.tools/checks/bin/cyclonedx-py environment --output-reproducible --output-file dist/sbom.cdx.json \
	  .tools/runtime/bin/python

INSTALL = .tools/checks/bin/pip --quiet --disable-pip-version-check --python .tools/runtime/bin/python \
  install --only-binary :all: --no-compile

clean: ## Remove everything that was made
	rm -rf $(VENV) .tools build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
