# make help lists what there is.
PYTHON ?= python3
BIN := .venv/bin
OUT := demo/out
ORT = $(shell $(BIN)/python -c "import onnxruntime; print(onnxruntime.__version__)")
STAMP := .venv/.installed
.DEFAULT_GOAL := help
# Most of the 19,000 files of the packages are never imported: each is compiled when it first is, and kept,
# also where the environment says otherwise. pip would compile all of them, one after the other.
export PYTHONDONTWRITEBYTECODE :=
.PHONY: help setup browser demo notebook picture test test-gpu bench lint format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(STAMP) ## make .venv and install the project with pinned versions

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt \
		-e '.[ort,rtx,torch,triton,ray,demo,dev]'
	$(MAKE) --no-print-directory .venv/tritonserver
	@touch $@

# A real tritonserver for the tests. Its Python backend wants NumPy 1: hence an environment of its own. On a
# machine that there is none for, its tests are skipped.
.venv/tritonserver:
	$(PYTHON) -m venv --without-pip $@.new
	$(BIN)/python -m pip --python $@.new/bin/python install --quiet --disable-pip-version-check --no-deps \
		nvidia-pytriton==0.7.0 numpy==1.26.4 onnxruntime==$(ORT) flatbuffers==25.12.19 \
		&& mv $@.new $@ || echo "No tritonserver for this Python or machine: the tests that need one are skipped."

# Debian's where we may install it, else Playwright's own.
CHROMIUM = command -v chromium-headless-shell || command -v chromium || command -v chromium-browser || command -v google-chrome
browser: setup ## a Chromium for the tests of the report, where there is none
	@$(CHROMIUM) || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
			chromium-headless-shell fonts-dejavu-core >/dev/null; \
	else $(BIN)/python -m playwright install --only-shell chromium; fi

demo: setup ## export MiniLM, prune it 2:4, build, validate, and say where the artifact lies
	$(BIN)/python demo/export_minilm.py $(OUT)
	$(BIN)/sparseflow-trt prune $(OUT)/minilm.onnx -o $(OUT)/minilm.2to4.onnx
	$(BIN)/sparseflow-trt build $(OUT)/minilm.2to4.onnx -o $(OUT)/minilm.artifact \
		--policy a100-80gb --dim batch=1,8,32 --dim seq=8,128,256
	$(BIN)/sparseflow-trt validate $(OUT)/minilm.artifact --reference $(OUT)/minilm.2to4.onnx \
		--inputs $(OUT)/sentences.npz

notebook: setup ## run the demo notebook and save it with its outputs
	$(BIN)/python demo/run_notebook.py demo/sparseflow_trt_demo.ipynb

# A process that has none left takes half of what another has to do: each keeps whole files, and what a file prepares,
# and none waits long at the end.
test: setup ## run the tests (no GPU)
	$(BIN)/python -m pytest -n auto --dist worksteal

# On a machine with a GPU, with a Python that has the package, TensorRT, cuda-bindings and pytest; no setup.
# From its own folder, since here `-m` would find sparseflow_trt/ without the three folders that belong to it.
test-gpu: ## run the tests that need a GPU, on PYTHON's packages
	cd tests/gpu && $(if $(findstring /,$(PYTHON)),$(abspath $(PYTHON)),$(PYTHON)) -m pytest . --confcutdir=. -p no:cacheprovider \
		--gpu-summary $(abspath $(or $(SPARSEFLOW_RESULTS),benchmarks/results))/gpu_tests.json

picture: demo browser ## the picture of the report in the README
	$(BIN)/python demo/photograph_report.py $(OUT)/minilm.artifact docs/images/report.png

bench: demo ## run the benchmarks that need no GPU (half an hour)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	for script in overheads error_by_step inspect_large sparsity_tools triton_reliability; do $(BIN)/python benchmarks/$$script.py || exit 1; done

lint: setup ## ruff, mypy and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typing
	$(BIN)/python -c "import setuptools; setuptools.setup()" -q build_py --build-lib build/typing
	$(BIN)/mypy
	cd build/typing && ../../$(BIN)/lint-imports --config ../../setup.cfg

format: setup ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what was built
	rm -rf build dist *.egg-info $(OUT) .pytest_cache .mypy_cache .ruff_cache
