# The one entry for developing and trying the project; `make help` lists the targets.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

# Never touch another Python; leave no bytecode that would make the sources look changed.
export PIP_REQUIRE_VIRTUALENV := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONDONTWRITEBYTECODE := 1
# Idle OpenMP threads otherwise spin, and slow a busy machine tenfold.
export OMP_WAIT_POLICY := PASSIVE

# Tests never reach a package index.
PYTEST := PIP_NO_INDEX=1 $(BIN)/pytest
# Processes of `make test`, each with one thread and up to 4 GB of memory.
TEST_JOBS ?= 2
PIP_INSTALL := $(BIN)/python -m pip install --quiet
# Of the installation; Python files, configs and tools are used where they are. Folders are listed
# too: their time changes when a file in them is deleted.
SOURCES := $(shell find csrc) $(wildcard dcnv4_mm/ops/*/registration.py) setup.py pyproject.toml
# CUDA kernels are built for the GPUs of this machine; without one, only by `make wheel`.
GPU_ARCHS := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | sort -u)
KERNELS := DCNV4_MM_REQUIRE_EXT=1 $(if $(GPU_ARCHS),DCNV4_MM_CUDA_ARCHS="$(GPU_ARCHS)",DCNV4_MM_NO_CUDA=1)
DIST ?= dist
# Where setup.py looks for it.
NVCC = $(or $(wildcard $(CUDA_HOME)/bin/nvcc),$(shell command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc))
CPP_SOURCES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# `make gpu` works on any machine with a GPU, torch, nvcc and pytest: it needs no .venv.
# `make gpu GPU_DEVICE=cpu` is a dry run on the CPU, whose figures mean nothing.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
GPU_DEVICE ?= cuda
GPU_ARGUMENTS ?=
DRY := $(filter-out cuda,$(GPU_DEVICE))
ON_GPU := PYTHONPATH=$(CURDIR)
# Benchmarks of `make bench` and `make gpu-models`, a few minutes each: make gpu-models STAGES=layers.
OPERATORS := dcnv4 dcnv4_memory host_time dcnv3 flash_deform_attn bev_cross_attn operator_share
STAGES ?= layers ablation backbones detectors training scaling processes
RUN := benchmarks/run.py
# Makes them quick.
TINY := --cases 1x7x7x4x16 --sizes t --image 64 --methods UperNet --seconds 0 --tiny \
	--out work_dirs/gpu-dry-run

.PHONY: help install quickstart test coverage fuzz ptx exhaustive test-mim test-export test-transformers check lint \
	matrix matrix-oldest trials bench bench-transformers gpu gpu-first gpu-build gpu-check gpu-sanitize gpu-bench \
	gpu-peers gpu-models docs audit wheel kernel-package clean
.DELETE_ON_ERROR:

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 24

install: $(VENV)/.installed ## make .venv: pinned wheels, and this clone with its compiled kernels

quickstart: install ## train and evaluate a small detector on generated images through mim
	$(BIN)/python dev/quickstart.py

test: install ## run the tests of this clone
	$(PYTEST) --numprocesses $(TEST_JOBS) --dist loadgroup -m "not mim and not export"

# An environment that borrows all of .venv but mmpretrain.
LANE := .venv-transformers

# What ring 1 and bev promise, and the rest.
INNER := --include='*/dcnv4_mm/ops/*,*/dcnv4_mm/layers/*,*/dcnv4_mm/backbones/*,*/dcnv4_mm/checkpoints/*,*/dcnv4_mm/bev/*'

coverage: install ## run the tests and count the lines that they reach
	PIP_NO_INDEX=1 $(BIN)/python -m coverage run -m pytest -m "not mim and not export"
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --fail-under=95 $(INNER)
	$(BIN)/python -m coverage report --fail-under=85 $(subst include,omit,$(INNER))

fuzz: install ## call the operators 5000 times at random, and read 200 damaged files of each kind
	for seed in 0 1; do $(PYTEST) --hypothesis-profile=long --hypothesis-seed=$$seed tests/fuzz || exit 1; done

ptx: install ## run the tests of the CUDA kernels on their compiled code, without a GPU (needs nvcc)
	$(PYTEST) --numprocesses $(TEST_JOBS) --dist loadgroup -m ptx tests/ops

exhaustive: install ## run the CUDA code on the host for every small shape, each address checked
	$(PYTEST) -m exhaustive tests/ops

test-mim: install $(VENV)/lowest-setuptools ## build wheels, install them in empty environments, drive mim
	$(PYTEST) -m mim

test-export: install ## compile and export whole models
	$(PYTEST) -m export

test-transformers: install $(LANE)/.complete ## test what concerns transformers, beside which mmpretrain cannot be imported
	PIP_NO_INDEX=1 HF_HUB_OFFLINE=1 $(LANE)/bin/python -m pytest tests/hugging_face

# Each lane is a throw-away environment in build/matrix: Python, torch and hosts from wheels.
matrix: ## test all combinations of Python and torch that we support; write docs/support.md
	$(PYTHON) dev/matrix.py --write docs/support.md

matrix-oldest: ## test the oldest Python and torch that we support
	$(PYTHON) dev/matrix.py --lanes oldest --steps torch build tests

check: lint test ## lint, types, import contract, tests

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP_SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

TRIALS := trial-offsets trial-classifier trial-dino trial-upernet trial-mask2former trial-bev trial-motion \
	trial-diffusion

trials: quickstart $(TRIALS) ## the learning targets (minutes each); one alone: make trial-dino

trial-diffusion: install
	OMP_NUM_THREADS=1 $(BIN)/python examples/latent_diffusion/trial.py

trial-%: install
	$(BIN)/python dev/trials.py $*

# Threads wait as they do for users: to wake a passive one takes longer than a short call.
bench: install ## measure operators, layers and networks; write docs/benchmarks.md
	env -u OMP_WAIT_POLICY $(BIN)/python $(RUN) $(OPERATORS) --device cpu --threads 1 2
	env -u OMP_WAIT_POLICY $(BIN)/python $(RUN) $(STAGES) convergence --device cpu
	$(BIN)/python benchmarks/report.py

bench-transformers: install $(LANE)/.complete ## measure DETRs, transformers' too, before and after swapping their attention
	HF_HUB_OFFLINE=1 $(LANE)/bin/python $(RUN) swap_attention --device cpu --threads 1
	$(BIN)/python benchmarks/report.py

# The steps have limits of their own, and none stops the next; FIRST is a folder for what comes out.
FIRST ?= work_dirs/first-contact
gpu-first: ## build, check and measure the CUDA kernels in nine minutes, the most valuable first
	$(GPU_PYTHON) benchmarks/gpu/first_contact.py --out $(FIRST) --device $(GPU_DEVICE)

gpu: gpu-check gpu-sanitize gpu-bench gpu-peers gpu-models ## check and measure the CUDA kernels, in stages

gpu-build: ## build the libraries into the source tree, the CUDA one too
	$(if $(DRY),,DCNV4_MM_REQUIRE_CUDA=1) $(GPU_PYTHON) setup.py --quiet build_ext --inplace

gpu-check: gpu-build ## run the tests that need a CUDA device; fails where there is none
	$(ON_GPU) $(GPU_PYTHON) -m pytest $(if $(DRY),-k on_host,-m gpu) tests/ops

gpu-sanitize: gpu-build ## run small cases under compute-sanitizer, or the host's sanitizers
ifdef DRY
	$(ON_GPU) $(GPU_PYTHON) -m pytest -k sanitizers tests/ops
else
	for tool in memcheck racecheck initcheck; do $(ON_GPU) compute-sanitizer --tool $$tool \
		--error-exitcode 1 $(GPU_PYTHON) -m pytest -m gpu -k recorded_results tests/ops || exit 1; done
endif

gpu-bench: gpu-build ## measure our kernels; goes on where it was cut short
	$(ON_GPU) $(GPU_PYTHON) $(RUN) dcnv4_modes --device $(GPU_DEVICE) $(if $(DRY),$(TINY)) $(GPU_ARGUMENTS)

gpu-peers: gpu-build ## measure other implementations of the operators beside them
	$(ON_GPU) $(GPU_PYTHON) $(RUN) dcnv4 flash_deform_attn bev_cross_attn --device $(GPU_DEVICE) \
		$(if $(DRY),$(TINY)) $(GPU_ARGUMENTS)

gpu-models: gpu-build ## measure layers and networks beside the alternatives
	$(ON_GPU) $(GPU_PYTHON) $(RUN) $(STAGES) --device $(GPU_DEVICE) $(if $(DRY),$(TINY)) $(GPU_ARGUMENTS)

docs: install $(VENV)/.docs ## check the documentation, run its notebook, build its site in build/docs
	$(PYTEST) tests/test_docs.py tests/tools/test_tensorboard.py
	$(BIN)/sphinx-build -q -W --keep-going -c docs . build/docs
	@echo build/docs/docs/index.html

audit: ## look the pinned versions up among the known vulnerabilities (needs the network)
	$(PYTHON) -m venv --clear build/audit
	build/audit/bin/python -m pip install --quiet pip-audit==2.10.1
	build/audit/bin/pip-audit --disable-pip --no-deps $(patsubst %,--requirement %,$(filter-out \
		requirements/lowest.txt,$(wildcard requirements/*.txt)))

# The tag of the oldest Linux that the libraries run on; torch brings its own libraries.
wheel: $(VENV)/.complete ## build the wheel into dist/, with CUDA kernels where there is nvcc
	rm -rf build/wheel
	DCNV4_MM_REQUIRE_EXT=1 $(if $(NVCC),DCNV4_MM_REQUIRE_CUDA=1) $(BIN)/python -m pip wheel --no-deps \
		--no-build-isolation --wheel-dir build/wheel .
	$(BIN)/auditwheel repair --patcher none --exclude 'libtorch_*.so' --wheel-dir $(DIST) build/wheel/*.whl

kernel-package: $(VENV)/.complete ## write dist/dcnv4-mm-kernel, the folder for the kernel loader of Hugging Face's Hub
	DCNV4_MM_REQUIRE_EXT=1 $(if $(NVCC),DCNV4_MM_REQUIRE_CUDA=1) PYTHONPATH=$(CURDIR) \
		$(BIN)/python dev/kernel_package.py $(DIST)/dcnv4-mm-kernel

clean: ## remove what was built; .venv stays
	rm -rf build dist *.egg-info dcnv4_mm/lib dcnv4_mm/.mim $(VENV)/.installed .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

# The stamp is the last thing written and lies inside the environment: one that was interrupted, or
# whose pins have changed, is made anew.
$(VENV)/.complete: $(patsubst %,requirements/%.txt,build main dev)
	@echo "Making $(VENV) of wheels: torch, OpenMMLab and tools, 7 GB. This takes 2 to 5 minutes."
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP_INSTALL) --requirement requirements/build.txt
	$(PIP_INSTALL) --no-deps --requirement requirements/main.txt --requirement requirements/dev.txt
	touch $@

# Editable. The link is for mim and mmengine, which look for a package by its name beside its metadata.
$(VENV)/.installed: $(VENV)/.complete $(SOURCES)
	@echo "Compiling the kernels. This takes about a minute."
	PYTHONWARNINGS=ignore $(KERNELS) $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	ln -sfn $(CURDIR)/dcnv4_mm "$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')/dcnv4_mm"
	touch $@

# Links, which take no time and no space; what .venv installs later is not seen.
$(LANE)/.complete: requirements/transformers.txt $(VENV)/.complete | $(VENV)/.installed
	$(PYTHON) -m venv --clear --without-pip $(LANE)
	cd $(LANE)/lib/python*/site-packages && folder=$$PWD && cd $(CURDIR) && \
		$(PIP_INSTALL) --no-deps --target "$$folder" --requirement $< && \
		for entry in $(CURDIR)/$(VENV)/lib/python*/site-packages/*; do case "$$entry" in \
			*/mmpretrain*|*/__pycache__) ;; \
			*) [ -e "$$folder/$${entry##*/}" ] || ln -s "$$entry" "$$folder" ;; esac; done
	touch $@

# Sphinx and Jupyter bring sixty packages that nothing else needs.
$(VENV)/.docs: requirements/docs.txt $(VENV)/.complete
	$(PIP_INSTALL) --no-deps --requirement $<
	touch $@

$(VENV)/lowest-setuptools: requirements/lowest.txt $(VENV)/.complete
	rm -rf $@
	$(PIP_INSTALL) --no-deps --target $@ --requirement $<
	touch $@
