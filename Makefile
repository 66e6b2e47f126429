# Every target makes its own virtual environment; only python3 with venv and a package index are assumed.
PYTHON ?= python3
# Requirement for PyTorch in the full environment (with torchvision and timm) ...
TORCH ?= torch
# ... and in the minimal one, which has neither.
TORCH_MINIMAL ?= torch==2.13.0
# The oldest release that setup.py allows, tried in an environment as minimal.
TRANSFORMERS_OLDEST ?= transformers==5.17.0

# Two single-threaded workers are faster than one test with two threads, whose tensors are small.
PYTEST = -m pytest --numprocesses 2 --dist worksteal

.PHONY: demo test test-slow test-minimal test-oldest test-upstream quality style clean

demo: .venv/.installed
	.venv/bin/python scripts/quickstart.py --output_dir outputs

test: .venv/.installed
	.venv/bin/python $(PYTEST) -m "not slow"

test-slow: .venv/.installed
	.venv/bin/python $(PYTEST) -m slow

test-minimal: .venv-minimal/.installed
	.venv-minimal/bin/python $(PYTEST) -m "not slow"

test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/python $(PYTEST) -m "not slow"

# The tests that Transformers shares between its own models; needs the package index or the cache it fills.
test-upstream: .venv/.installed
	.venv/bin/python tests/upstream/run.py --processes 2

quality: .venv-quality/.installed
	.venv-quality/bin/ruff check .
	.venv-quality/bin/ruff format --check .

style: .venv-quality/.installed
	.venv-quality/bin/ruff check --fix .
	.venv-quality/bin/ruff format .

clean:
	rm -rf .venv .venv-minimal .venv-oldest .venv-quality outputs

.venv/.installed: setup.py
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet "$(TORCH)" --editable ".[train,peft,export,openvino,quantization,test]"
	touch $@

.venv-minimal/.installed: setup.py
	$(PYTHON) -m venv .venv-minimal
	.venv-minimal/bin/python -m pip install --quiet --upgrade pip
	.venv-minimal/bin/python -m pip install --quiet "$(TORCH_MINIMAL)" --editable ".[test]"
	touch $@

.venv-oldest/.installed: setup.py
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --upgrade pip
	.venv-oldest/bin/python -m pip install --quiet "$(TORCH_MINIMAL)" "$(TRANSFORMERS_OLDEST)" --editable ".[test]"
	touch $@

.venv-quality/.installed: setup.py
	$(PYTHON) -m venv .venv-quality
	.venv-quality/bin/python -m pip install --quiet --upgrade pip
	.venv-quality/bin/python -m pip install --quiet "ruff>=0.9"
	touch $@
