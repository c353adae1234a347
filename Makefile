# make demo        sentence embeddings with tileattn attention, then `tileattn verify`
# make test        lint, C++ tests, Python tests
# make sim-report  counters of the CUDA kernels in the PTX simulator
# make gpu-check   tests, compute-sanitizer and benchmarks on the GPU of this machine
# make wheel       the wheel for everyone: all kernels, all architectures
# Each sets up what it needs in .venv and build/, and reuses it the next time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILD := build/Release
PIP := $(BIN)/python -m pip --disable-pip-version-check
export CMAKE_BUILD_PARALLEL_LEVEL ?= 2

# The architectures of the GPUs that are here, as nvcc names them; of newer ones than it has code
# for, PTX is compiled at run time.
GPUS := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | sort -u)
GPU_ARCHS := $(filter 80 86 89 90a,$(GPUS:90=90a))
semicolon := ;
space := $(subst ,, )
# To run tileattn: CPU kernels, and the CUDA kernels of a GPU that is here. For tests: machine code
# for one architecture, the rows of cuda/kernels.cmake that differ in kind, and the PTX simulator.
RUN_OPTIONS := TILEATTN_CUDA=$(if $(GPUS),ON,OFF) \
  TILEATTN_CUDA_ARCHS="$(subst $(space),$(semicolon),$(GPU_ARCHS))"
TILEATTN_CUDA ?= AUTO
TILEATTN_CUDA_ARCHS ?= 80
TILEATTN_KERNELS ?= few
TEST_OPTIONS := TILEATTN_TESTS=ON TILEATTN_CUDA=$(TILEATTN_CUDA) \
  TILEATTN_CUDA_ARCHS="$(TILEATTN_CUDA_ARCHS)" TILEATTN_KERNELS=$(TILEATTN_KERNELS)

SOURCES := $(shell find CMakeLists.txt pyproject.toml cpp cuda bindings third_party cmake tests/ptxsim tests/simulator/simulated_cpu.cpp -type f)
FORMATTED := find bindings cpp cuda tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh'

.PHONY: demo test lint format cpp-test python-test sim-report gpu-check wheel clean FORCE
.DELETE_ON_ERROR:

# What is installed for tests runs the demo, too.
demo: $(if $(wildcard $(VENV)/installed-for-tests),$(VENV)/installed-for-tests,$(VENV)/installed)
	@echo "[3/3] the demo: a sentence-embedding model, then tileattn verify"
	@$(BIN)/tileattn demo embed

test: lint cpp-test python-test
	@$(BIN)/python tests/common/times.py $(BUILD)

$(VENV)/requirements: requirements.txt
	@echo "[1/3] packages of requirements.txt into $(VENV)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --no-compile -r requirements.txt
	touch $@

$(VENV)/requirements-dev: requirements-dev.txt $(VENV)/requirements
	$(PIP) install --no-compile -r requirements-dev.txt
	touch $@

$(VENV)/installed: $(VENV)/requirements $(VENV)/python-files $(SOURCES)
	@echo "[2/3] the package: CPU kernels$(if $(GPUS),$(space)and CUDA kernels for $(GPU_ARCHS))"
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh cmake/install.sh $(BIN)/python $(RUN_OPTIONS)
	touch $@

$(VENV)/installed-for-tests: $(VENV)/requirements-dev $(VENV)/test-options $(VENV)/python-files $(SOURCES)
	@echo "the package for tests: $(TEST_OPTIONS)"
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh cmake/install.sh $(BIN)/python $(TEST_OPTIONS)
	touch $(VENV)/installed $@

# Change when their contents do. An editable install knows which Python files there were.
$(VENV)/test-options: CONTENT = $(TEST_OPTIONS)
$(VENV)/python-files: CONTENT = $(shell find python -name '*.py' | sort | cksum)
$(VENV)/test-options $(VENV)/python-files: FORCE | $(VENV)/requirements
	@echo '$(CONTENT)' | cmp -s - $@ || echo '$(CONTENT)' > $@

lint: $(VENV)/requirements-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(FORMATTED) | xargs $(BIN)/clang-format --dry-run -Werror

format: $(VENV)/requirements-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(FORMATTED) | xargs $(BIN)/clang-format -i

cpp-test: $(VENV)/installed-for-tests
	@test -x $(BUILD)/cpp/tests/tileattn_cpp_tests || echo "C++ tests: left out (no GoogleTest; Debian: libgtest-dev)"
	$(BIN)/ctest --test-dir $(BUILD) --output-on-failure --parallel $(CMAKE_BUILD_PARALLEL_LEVEL)

# OpenMP threads that wait actively would take the cores from the other worker.
python-test: $(VENV)/installed-for-tests
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(CMAKE_BUILD_PARALLEL_LEVEL) --junitxml=$(BUILD)/tests.xml

# Another torch than the pinned CPU build: pip install it into .venv first. All head dims, for the
# GPU that is here.
gpu-check: TILEATTN_KERNELS := full
gpu-check: TILEATTN_CUDA_ARCHS := $(subst $(space),$(semicolon),$(GPU_ARCHS))
gpu-check: $(VENV)/installed-for-tests
	$(BIN)/python benchmarks/gpu_check.py

# Counters of the CUDA kernels in the PTX simulator; ARGS="--json FILE", ARGS="--record".
sim-report: $(VENV)/installed-for-tests
	$(BIN)/python tests/simulator/sim_report.py $(ARGS)

# Every kernel for every architecture; what ptxas says of them is recorded, a spill fails.
wheel: $(VENV)/requirements
	PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) wheel . --no-deps --no-build-isolation -w dist \
	  -C build-dir=build/wheel
	$(BIN)/python cuda/resources.py --json --check build/wheel > benchmarks/results/nvcc-13.0/kernels.json

clean:
	rm -rf build dist $(VENV)
