# Everything lives in .venv. Options of the service pass through the environment: LENGTHWISE_PORT=8123 make serve
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install serve lint format quick seconds test test-long test-workers nightly truth gallery hostile sanitize floors pythons findings soak cover model bench fuzz clients engines console-check console-pictures docs rules site proto clean

help: ## Says what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/.development ## Makes the whole development environment in .venv

serve: .venv/.runtime ## Installs the runtime only (no torch, no onnx), and serves the bundled model on port 8000
	@exec $(BIN)/lengthwise serve

lint: .venv/.development .venv/.c-checked ## ruff, mypy, and the modules in C by each compiler that is here
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The image and the wheels are compiled by zig (clang inside), make install by the system's compiler: what one takes,
# another may not. Zig stands in for the compilers of the platforms that nobody here has.
ZIG := $(BIN)/python -m ziglang cc
C_COMPILERS := "cc" "clang" "$(ZIG) -mcpu=baseline" "$(ZIG) -target aarch64-linux-gnu" "$(ZIG) -target aarch64-macos"
C_CHECKS := -O0 -fPIC -ffp-contract=off -DPy_LIMITED_API=0x030B0000 -Wall -Wextra -Wno-unused-parameter -Werror

C_SOURCES := $(wildcard service/lengthwise/*/_*.[ch] service/lengthwise/runtime/kernels/_*.[ch])

# With warnings as errors; again where a source has changed.
.venv/.c-checked: .venv/.development $(C_SOURCES)
	@headers=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))'); \
	for compiler in $(C_COMPILERS); do \
		command -v $${compiler%% *} > /dev/null || { echo "skipped: there is no $$compiler"; continue; }; \
		for file in service/lengthwise/*/_*.c service/lengthwise/runtime/kernels/_*.c; do \
			$$compiler $(C_CHECKS) -I$$headers -c $$file -o .venv/checked.o || { echo "$$compiler does not compile $$file"; exit 1; }; \
		done; \
	done
	@touch $@

format: .venv/.development ## Formats the code
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

# Three workers read the same tests, and a test that starts a server reads the sources again: compiled once is enough.
unexport PYTHONDONTWRITEBYTECODE

# The tests of a file run in their order in one process, until another process has nothing left to do and takes over some.
PARALLEL := --numprocesses auto --dist worksteal

# Says what a set of tests takes of the processor, and bounds it.
BOUNDED := $(BIN)/python -m tests.processor_time

test: .venv/.development ## Every check that a change has to pass: lint, types, tests
	@$(BOUNDED) test $(MAKE) --no-print-directory --jobs 2 lint tests

.PHONY: tests
tests: .venv/.development
	$(BIN)/python -m pytest -q $(PARALLEL)

# The other goals are names of files, which make has nothing to do for. A folder may be the name of a goal, as docs is.
ifneq ($(filter quick,$(MAKECMDGOALS)),)
FILES ?= $(filter-out quick,$(MAKECMDGOALS))
NO_FILES := $(strip $(foreach name,$(FILES),$(if $(wildcard $(name)/.),$(name),$(if $(wildcard $(name)),,$(name)))))
$(if $(NO_FILES),$(error $(NO_FILES): name files that are there))
endif

quick: .venv/.development ## make quick FILE... runs the tests that a change of these files can reach; without names: of what differs from main
	@$(BOUNDED) quick $(BIN)/python -m tests.quick $(FILES) -- -q $(PARALLEL)

seconds: .venv/.development ## Measures anew what each file of tests takes of the processor, which make quick chooses by
	$(BIN)/python -m pytest -q $(PARALLEL) -p tests.support.processor_seconds --seconds tests/seconds.json

test-long: .venv/.development ## The long tests: processes that are attacked, drained and reloaded, thousands of turns each; SHARE=1/4 is a quarter
	$(BIN)/python -m pytest -m "long and not gallery" $(PARALLEL) $(if $(SHARE),--share $(SHARE)) $(COVERED)

test-workers: .venv/.development ## The tests of the service once more, the long ones too, where two workers serve instead of one process
	LENGTHWISE_WORKERS=2 $(BIN)/python -m pytest tests/service -m "not gallery" -q $(PARALLEL)

# What is left to the night counts for coverage, too: these add to what `make cover` wrote.
nightly: COVERED := --cov --cov-append --cov-report=term
nightly: lint cover test-workers test-long gallery fuzz arm ## Every test that needs no tools of its own, with coverage and 400 examples of each law (hours)

# A copy of the sources, so that the modules in use stay as they are.
SANITIZED := runs/sanitized
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined

sanitize: .venv/.development ## Runs the tests of the kernels in C with AddressSanitizer and UndefinedBehaviorSanitizer
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	cp -r pyproject.toml setup.py README.md service model_export $(SANITIZED)
	find $(SANITIZED)/service -name "_*.so" -delete
	cd $(SANITIZED) && CFLAGS="-g $(SANITIZERS)" $(CURDIR)/$(BIN)/python setup.py --quiet build_ext --inplace
	PYTHONPATH=$(SANITIZED)/service:$(SANITIZED)/model_export LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 $(BIN)/python -m pytest -n0 -q -p no:cacheprovider -m "long or not long" \
	tests/service/test_attention_kernels.py tests/service/test_recurrent_kernels.py tests/service/test_convolutions.py tests/service/test_fusion.py tests/service/test_packed_steps.py tests/service/test_integer_kernels.py \
	tests/service/test_integer_layers.py tests/service/test_kernel_states.py tests/service/test_states.py tests/model_export/test_fixed_kernels.py tests/model_export/test_summaries.py $(SANITIZE)

gallery: .venv/.development ## What is tried in full: every model of the galleries, layers and estimators, 1,000 sequences each (an hour)
	$(BIN)/python -m pytest -m gallery $(PARALLEL) $(COVERED)

truth: .venv/.development ## Tests that each model of the galleries is what it is said to be, and records that (after a change of tests/gallery)
	$(BIN)/python -m tests.gallery.truth $(PARALLEL)

hostile: .venv/.development ## The hostile suite by itself: sockets by hand, while memory, files and other callers are watched
	$(BIN)/python -m pytest tests/hostile -m "long or not long"

# The package with the oldest versions that pyproject.toml allows, or (RESOLUTION=highest) the newest ones.
RESOLUTION ?= lowest-direct
FLOORS_PYTHON ?= $(BIN)/python
FLOORS := runs/$(RESOLUTION)-$(notdir $(FLOORS_PYTHON))
FLOORS_TESTS := admin_port app attacks client framing json_body metrics predict settings tls v1 v2

floors: .venv/.development ## The quick tests of the service with the oldest versions allowed; RESOLUTION=highest: with the newest
	$(BIN)/python -m uv venv --quiet --clear --python $(FLOORS_PYTHON) $(FLOORS)
	$(BIN)/python -m uv pip install --quiet --python $(FLOORS)/bin/python --resolution $(RESOLUTION) '.[serve,cpu,client,grpc,tracing,parquet]'
	$(BIN)/python -m uv pip install --quiet --python $(FLOORS)/bin/python hypothesis onnx pytest pytest-asyncio pytest-xdist pyyaml 'tritonclient[http]' trustme
	$(FLOORS)/bin/python -m pytest -q -p no:cacheprovider $(PARALLEL) $(FLOORS_TESTS:%=tests/service/test_%.py)

pythons: .venv/.development ## The same tests with each newer Python that is installed here, and the newest versions
	@for python in python3.12 python3.13 python3.14; do \
		$$python -c "" 2> /dev/null || { echo "skipped: there is no $$python"; continue; }; \
		$(MAKE) --no-print-directory floors RESOLUTION=highest FLOORS_PYTHON=$$python || exit 1; \
	done

findings: ## Runs each script of findings/, which shows a surprise in somebody else's library (PyPI, some minutes); fails if one has changed
	@failed=; for script in findings/*.sh; do echo "$$script"; bash $$script || failed="$$failed $$script"; done; \
	[ -z "$$failed" ] || { echo "changed:$$failed"; exit 1; }

soak: .venv/.development ## Half an hour of chaos, and 30,000 requests while two instances behind nginx restart; SOAK="--minutes 2" is shorter, with SOAK="--workers 2" workers are killed, hang and cannot start
	$(BIN)/python -m benchmarks.soak $(SOAK)
	$(BIN)/python -m pytest tests/deploy/test_balancers.py -m deploy -k "rolling and nginx" -s

cover: .venv/.development ## The tests of the day with branch coverage, and 400 examples of each law; make nightly adds the others to it
	$(BIN)/python -m pytest $(PARALLEL) --hypothesis-profile=nightly --cov --cov-report=term

model: .venv/.development ## Trains, exports, verifies and publishes the bundled model anew
	$(BIN)/python -m benchmarks.bundled_model

docs: .venv/.development ## Draws the pictures and writes the tables of the documents anew
	$(BIN)/python -m benchmarks.masking
	$(BIN)/python -m benchmarks.padding_picture

rules: .venv/.development ## Writes the pages of the rules of check, docs/rules, from their files
	$(BIN)/python -m benchmarks.rule_pages

# Pages link to each other and to files as in the repository, so the source of the site is a copy of it.
SITE := runs/site

site: .venv/.development ## Builds the site into runs/site/html and checks its spelling and links; SITE_OPTIONS="-D nb_execution_mode=off" runs no notebook, "-b linkcheck" asks other hosts
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[site]'
	$(BIN)/codespell $$(git ls-files '*.md' '*.ipynb')
	rm -rf $(SITE)/source && mkdir -p $(SITE)/source
	git ls-files --cached --others --exclude-standard -z | grep --null-data --invert-match '^docs/site/' | xargs --null cp --parents --target-directory $(SITE)/source
	cp docs/site/*.md $(SITE)/source
	$(BIN)/python -m sphinx -q --fail-on-warning --keep-going -c docs/site $(SITE_OPTIONS) $(SITE)/source $(SITE)/html

bench: .venv/.development ## Measures this service beside its peers, in one run
	$(BIN)/python -m benchmarks.bench $(BENCH)

fuzz: .venv/.development ## Sends 10,000 bodies to each protocol's decoder, and mends 1,000 random graphs; FUZZ="--seed 1 --bodies 100000" for others
	$(BIN)/python -m tests.fuzz $(FUZZ)
	$(BIN)/python -m tests.fuzz.json_readers
	$(BIN)/python -m tests.fuzz.mends

clients: .venv/.development ## Runs KServe's client and NVIDIA's perf_analyzer against the service, from environments of their own in runs (300 MB)
	$(BIN)/python -m pytest tests/clients -m clients

# Playwright and axe; the browser itself is a package of the system: apt-get install chromium.
CONSOLE_TOOLS := .venv/npm-console

$(CONSOLE_TOOLS)/package.json: tests/console/package.json | .venv/.development
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[browser]'
	mkdir -p $(CONSOLE_TOOLS) && cp $< $@ && npm install --silent --prefix $(CONSOLE_TOOLS) || { rm -f $@; exit 1; }

console-check: .venv/.development $(CONSOLE_TOOLS)/package.json ## Tests the console in Chromium (apt-get install chromium): flows, accessibility, narrow screens
	$(BIN)/python -m pytest tests/console -m console -rs

console-pictures: .venv/.development $(CONSOLE_TOOLS)/package.json ## Draws docs/console-*.png in Chromium
	$(BIN)/python -m tests.console.pictures

# The package as a user installs it, beside the engines; the sources stay as they are.
ENGINES := runs/engines
$(ENGINES)/installed: pyproject.toml | .venv/.development
	$(BIN)/python -m uv venv --quiet --clear --python $(BIN)/python $(ENGINES)
	$(BIN)/python -m uv pip install --quiet --python $(ENGINES)/bin/python '.[cpu,serve,client,parquet,ray,spark,beam,mlflow]' pytest pytest-asyncio hypothesis
	touch $@

engines: $(ENGINES)/installed ## Runs Ray Serve, MLflow, and Scorer on Ray Data, Spark (with the Java of this machine) and Beam, in an environment of its own in runs (2 GB)
	$(BIN)/python -m uv pip install --quiet --python $(ENGINES)/bin/python --reinstall-package lengthwise --no-deps .
	$(ENGINES)/bin/python -m pytest tests/engines -m engines -rs -p no:cacheprovider

proto: .venv/.development ## Generates the messages of the gRPC protocol from its .proto
	$(BIN)/python -m grpc_tools.protoc -I service --descriptor_set_out=service/lengthwise/grpc/open_inference.binpb --pyi_out=service service/lengthwise/grpc/open_inference.proto

clean: ## Removes what was built
	rm -rf .venv build dist *.egg-info service/lengthwise/*/_*.so service/lengthwise/*/*/_*.so .coverage .mypy_cache .pytest_cache .ruff_cache runs

.venv/bin/python:
	@echo "making .venv"
	@$(PYTHON) -c 'import sys; sys.exit("Lengthwise needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "python's venv module is missing (Debian: apt-get install python3-venv)"; exit 1; }
	@# The pip that Python 3.11 brings takes twice as long to install all this as a new one.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 0 --upgrade pip || true

# Without a compiler or Python's headers the modules in C are left out, and this says so. With both, one that does not
# compile ends the installation.
SOURCES_IN_C := $(wildcard service/lengthwise/*/_*.[ch] service/lengthwise/*/*/_*.[ch])
HEADERS = $(BIN)/python -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))'
INSTALL = @if ! command -v cc > /dev/null || ! $(HEADERS); then export LENGTHWISE_PURE=1; \
	echo "without the modules in C, so serving is slower: there is no C compiler, or no Python.h"; fi; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable

# A change of pyproject.toml, setup.py or of the modules in C installs again; nothing else does.
.venv/.runtime: pyproject.toml setup.py $(SOURCES_IN_C) | .venv/bin/python
	@echo "installing the runtime"
	@rm -f service/lengthwise/*/_*.so service/lengthwise/*/*/_*.so
	$(INSTALL) '.[serve,cpu]'
	@touch $@

# Most of what `dev` brings is never imported: what is imported is compiled then, which takes a quarter less time here.
.venv/.development: pyproject.toml setup.py $(SOURCES_IN_C) | .venv/bin/python
	@echo "installing the development environment (torch among it: some minutes at first)"
	@rm -f service/lengthwise/*/_*.so service/lengthwise/*/*/_*.so
	$(INSTALL) '.[dev]' --no-compile
	@touch $@ .venv/.runtime

include deploy/deploy.mk
