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

# A development build makes machine code for one architecture.
export TILEATTN_CUDA_ARCHS ?= 80
export CMAKE_BUILD_PARALLEL_LEVEL ?= 2

SOURCES := $(shell find CMakeLists.txt pyproject.toml cpp cuda bindings third_party cmake tests/ptxsim tests/simulated_cpu.cpp -type f)
FORMATTED := find bindings cpp cuda tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh'

.PHONY: demo test lint format cpp-test python-test sim-report gpu-check wheel clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/tileattn demo embed

test: lint cpp-test python-test

$(VENV)/requirements: requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(VENV)/installed: $(VENV)/requirements $(SOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --no-build-isolation --no-deps \
	  -C cmake.define.TILEATTN_TESTS=ON \
	  -C cmake.define.TILEATTN_CUDA_ARCHS="$(TILEATTN_CUDA_ARCHS)" \
	  -e .
	touch $@

lint: $(VENV)/requirements
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(FORMATTED) | xargs $(BIN)/clang-format --dry-run -Werror

format: $(VENV)/requirements
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(FORMATTED) | xargs $(BIN)/clang-format -i

cpp-test: $(VENV)/installed
	@test -x $(BUILD)/cpp/tests/tileattn_cpp_tests || echo "C++ tests: left out (no GoogleTest; Debian: libgtest-dev)"
	$(BIN)/ctest --test-dir $(BUILD) --output-on-failure

# OpenMP threads that wait actively would take the cores from the other worker.
python-test: $(VENV)/installed
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(CMAKE_BUILD_PARALLEL_LEVEL)

# Another torch than the pinned CPU build: pip install it into .venv first.
gpu-check: $(VENV)/installed
	$(BIN)/python benchmarks/gpu_check.py

# Counters of the CUDA kernels in the PTX simulator; ARGS="--json FILE", ARGS="--record".
sim-report: $(VENV)/installed
	$(BIN)/python tests/sim_report.py $(ARGS)

wheel: $(VENV)/requirements
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip wheel . --no-deps --no-build-isolation -w dist \
	  -C build-dir=build/wheel

clean:
	rm -rf build dist $(VENV)
