# Every environment is made from requirements/: ENVIRONMENT.in says what is wanted and ENVIRONMENT.txt which versions of
# that and of all it needs passed the tests. Only python3 with venv and a package index are assumed.
PYTHON ?= python3
# Folder of the locked versions, and the environments' names: `make lock` tries new ones under others.
LOCKS ?= requirements
VENV ?= .venv
# The native attention: built when the package is installed, and again when its sources change. Without a compiler
# PyTorch's operations serve in its place.
NATIVE = src/cait_hf/native/attention.so
# What `make test-newest` installs in place of the newest release, for example its main branch.
TRANSFORMERS_NEWEST ?= transformers

# Two single-threaded workers are faster than one test with two threads, whose tensors are small.
PYTEST = -m pytest --numprocesses 2 --dist worksteal

.PHONY: demo test test-app test-slow test-minimal test-oldest test-newest test-upstream quality style lock clean

demo: $(VENV)/.installed $(NATIVE)
	$(VENV)/bin/python scripts/quickstart.py --output_dir outputs

test: $(VENV)/.installed $(NATIVE)
	$(VENV)/bin/python $(PYTEST) -m "not slow"

test-slow: $(VENV)/.installed $(NATIVE)
	$(VENV)/bin/python $(PYTEST) -m slow

# Without what the optional packages have no part in, and on PyTorch's own operations in place of the native attention.
test-minimal: $(VENV)-minimal/.installed
	CAIT_HF_NATIVE=0 $(VENV)-minimal/bin/python $(PYTEST) -m "not slow" $(foreach name,attention_fused attention_triton compile \
		distributed hub_server model_cards precision training_equivalence upstream_runner,--ignore=tests/test_$(name).py)

test-oldest: $(VENV)-oldest/.installed
	$(VENV)-oldest/bin/python $(PYTEST) -m "not slow"

# The page, in a browser where one is installed (Chromium or Chrome); without Gradio the other targets skip these tests.
test-app: $(VENV)-app/.installed
	$(VENV)-app/bin/python $(PYTEST) -rs tests/test_app.py

# Nothing locked: fails on the day on which a new release of anything breaks something. The upstream tests come from the
# source distribution of a release: a branch has none.
test-newest: $(VENV)-newest/.installed
	$(VENV)-newest/bin/python $(PYTEST) -m "not slow"
	$(if $(filter transformers,$(TRANSFORMERS_NEWEST)),$(VENV)-newest/bin/python tests/upstream/run.py --processes 2)

# The tests that Transformers shares between its own models; needs the package index or the cache it fills.
test-upstream: $(VENV)/.installed
	$(VENV)/bin/python tests/upstream/run.py --processes 2

quality: $(VENV)-quality/.installed
	$(VENV)-quality/bin/ruff check .
	$(VENV)-quality/bin/ruff format --check .
	$(VENV)-quality/bin/mypy
	PYTHONPATH=src $(VENV)-quality/bin/lint-imports --no-cache --no-logo
	$(VENV)-quality/bin/codespell
	$(VENV)-quality/bin/python .ci/check_text.py
	$(VENV)-quality/bin/zizmor --offline --quiet .github
	$(VENV)-quality/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(VENV)-quality/bin/shellcheck .ci/run scripts/benchmark/gpu.sh scripts/accelerate_configs/*.slurm

style: $(VENV)-quality/.installed
	$(VENV)-quality/bin/ruff check --fix .
	$(VENV)-quality/bin/ruff format .

# Resolve the newest versions that requirements/*.in allow, for all platforms and Pythons, and keep them if the tests pass
# in new environments. CUDA's libraries are left out: which of them PyTorch needs depends on the platform.
lock: $(VENV)-quality/.installed
	rm -rf outputs/lock && mkdir -p outputs/lock
	for name in app full minimal oldest quality; do \
		$(VENV)-quality/bin/uv pip compile --quiet --universal --no-header --no-annotate \
			--python-version $$(sed -n 's/^# python >= //p' requirements/$$name.in) \
			--output-file outputs/lock/$$name.all requirements/$$name.in || exit 1; \
		{ echo "# Generated from $$name.in by \`make lock\`."; \
			grep -Ev '^(-e|nvidia-|cuda-|triton=)' outputs/lock/$$name.all; } > outputs/lock/$$name.txt; \
	done
	$(MAKE) LOCKS=outputs/lock VENV=outputs/lock/venv quality test test-app test-upstream test-minimal test-oldest
	cp outputs/lock/*.txt requirements/

$(NATIVE): $(wildcard src/cait_hf/native/*.cpp src/cait_hf/native/*.h) | $(VENV)/.installed
	$(VENV)/bin/python setup.py --quiet build_ext --inplace

clean:
	rm -rf .venv .venv-* outputs build $(NATIVE)

# $(call install,ENVIRONMENT,PIP OPTIONS): from nothing, so that no package of an earlier lock stays. The build of this
# package runs in the environment, whose setuptools is locked, too; it compiles the native attention.
define install
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip setuptools $(2)
	$(@D)/bin/python -m pip install --quiet --no-build-isolation --requirement requirements/$(1).in $(2)
	touch $@
endef

$(VENV)/.installed: setup.py requirements/newest.in requirements/full.in $(LOCKS)/full.txt
	$(call install,full,--constraint $(LOCKS)/full.txt)

$(VENV)-app/.installed: setup.py requirements/app.in $(LOCKS)/app.txt
	$(call install,app,--constraint $(LOCKS)/app.txt)

$(VENV)-minimal/.installed: setup.py requirements/minimal.in $(LOCKS)/minimal.txt
	$(call install,minimal,--constraint $(LOCKS)/minimal.txt)

$(VENV)-oldest/.installed: setup.py requirements/oldest.in $(LOCKS)/oldest.txt
	$(call install,oldest,--constraint $(LOCKS)/oldest.txt)

$(VENV)-quality/.installed: requirements/quality.in $(LOCKS)/quality.txt
	$(call install,quality,--constraint $(LOCKS)/quality.txt)

# Made again by `make clean` or by hand: what is newest changes without a file that says so.
$(VENV)-newest/.installed: setup.py requirements/newest.in
	$(call install,newest,"$(TRANSFORMERS_NEWEST)")
