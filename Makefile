# `make run` and `make test` do all of their set-up themselves; they need make and Python 3.11 or newer.
# On Linux, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu spares a machine without GPU the CUDA packages.
.PHONY: run test check lint types demo-model comparison wheel hook-cost
.DELETE_ON_ERROR:

BIN := .venv/bin
# The first Python found that is new enough; `make PYTHON=/path/to/python ...` overrides it.
PYTHON ?= $(shell for p in python3 python python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

run: .venv/installed
	$(BIN)/lm_eval --model mesa-hf --tasks passkey_long

test: .venv/installed-test
	HF_HUB_OFFLINE=1 WANDB_MODE=offline $(BIN)/python -m pytest

check: lint types test

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev
	$(BIN)/mypy

demo-model: .venv/installed
	$(BIN)/python -m pipelines.demo_model mesa_lm/demo/model

# Every method, and Mesa with every weave, on the demo model: the tables of docs/comparison.md.
COMPARED := $$($(BIN)/python -c 'import mesa_lm; print(*mesa_lm.methods())') \
	mesa,weave=rerope mesa,weave=leaky_rerope mesa,weave=self_extend
comparison: .venv/installed
	for method in $(COMPARED); do \
		$(BIN)/lm_eval --model mesa-hf --model_args method=$$method --tasks passkey_long \
			--metadata '{"num_samples": 100}' --log_samples --output_path results/comparison || exit; \
		$(BIN)/lm_eval --model mesa-hf --model_args method=$$method --tasks long_ppl \
			--output_path results/comparison || exit; \
	done
	$(BIN)/mesa-lm plot results/comparison --task passkey_long --out docs/figures/comparison_passkey.png
	$(BIN)/mesa-lm plot results/comparison --task long_ppl --metric nll --out docs/figures/comparison_nll.png
	$(BIN)/mesa-lm leaderboard results/comparison

wheel: .venv/pyvenv.cfg
	$(BIN)/pip wheel --no-deps --wheel-dir dist .

# What the start-up hook adds to every Python start: read and execute the .pth file.
hook-cost: .venv/pyvenv.cfg
	$(BIN)/python -m timeit -n 100 -r 20 -s "import site" "site.addpackage('mesa_lm', 'startup.pth', set())"

.venv/pyvenv.cfg:
	@test -n "$(PYTHON)" || { echo "mesa-lm needs Python 3.11 or newer: make PYTHON=/path/to/python ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

# Stamps: installed again only when what is installed changes; sources are used in place.
SETUP := pyproject.toml constraints.txt mesa_lm/startup.pth
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.venv/installed: $(SETUP) | .venv/pyvenv.cfg
	$(INSTALL) .
	@touch $@

.venv/installed-%: $(SETUP) | .venv/pyvenv.cfg
	$(INSTALL) ".[$*]"
	@touch $@
