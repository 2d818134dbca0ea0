# `make run` and `make test` do all of their set-up themselves; they need make and Python 3.11 or newer.
# On Linux, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu spares a machine without GPU the CUDA packages.
.PHONY: help run test check lint types doc-tables demo-model comparison figures bench bench-mesa bench-methods bench-sharing bench-lm-eval check-gpu bench-gpu \
	wheel hook-cost
.DELETE_ON_ERROR:

BIN := .venv/bin
# The first Python found that is new enough; `make PYTHON=/path/to/python ...` overrides it.
PYTHON ?= $(shell for p in python3 python python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-16s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: .venv/installed ## evaluate the demo model, as the README shows
	$(BIN)/lm_eval --model mesa-hf --tasks passkey_long

# Two at a time, each file by one process, in the order of the folders: the long files of pipelines come early enough.
TWO_PROCESSES := -n 2 --dist loadfile --no-loadscope-reorder
test: .venv/installed-test ## run the fast tests
	HF_HUB_OFFLINE=1 WANDB_MODE=offline $(BIN)/python -m pytest $(TWO_PROCESSES)

check: lint types test ## all that a change must pass

lint: .venv/installed-dev ## style of the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev ## strict types
	$(BIN)/mypy

doc-tables: .venv/installed ## tables of docs/ that follow from declarations
	$(BIN)/python -m mesa_lm.pipelines.development.doc_tables docs

demo-model: .venv/installed ## train the demo model again, about an hour
	$(BIN)/python -m mesa_lm.pipelines.development.train_demo_model mesa_lm/demo/model

# Every method, and Mesa with every weave, on the demo model: the tables of docs/comparison.md.
COMPARED := $$($(BIN)/python -c 'import mesa_lm; print(*mesa_lm.available_methods())') \
	mesa,weave=rerope mesa,weave=leaky_rerope mesa,weave=self_extend
comparison: .venv/installed ## tables and figures of docs/comparison.md
	for method in $(COMPARED); do \
		$(BIN)/lm_eval --model mesa-hf --model_args method=$$method --tasks passkey_long \
			--metadata '{"num_samples": 100}' --log_samples --output_path results/comparison || exit; \
		$(BIN)/lm_eval --model mesa-hf --model_args method=$$method --tasks long_ppl \
			--output_path results/comparison || exit; \
	done
	$(BIN)/mesa-lm plot results/comparison --task passkey_long --out docs/figures/comparison_passkey.png
	$(BIN)/mesa-lm plot results/comparison --task long_ppl --metric nll --out docs/figures/comparison_nll.png
	$(BIN)/mesa-lm leaderboard results/comparison

# From few samples: they show what figures and pages look like, not how good methods are.
BROWSER := chromium --headless --no-sandbox --disable-gpu --hide-scrollbars
figures: .venv/installed ## pictures of docs/figures.md and docs/leaderboard.md; needs chromium
	for method in origin mesa rerope self_extend yarn; do \
		$(BIN)/lm_eval --model mesa-hf --model_args method=$$method --tasks passkey_long,long_ppl --log_samples \
			--metadata '{"num_samples": 10, "lengths": [512, 1024, 2048, 4096]}' --output_path results/board || exit; \
	done
	for method in origin mesa; do \
		$(BIN)/lm_eval --model mesa-hf --model_args method=$$method --tasks long_ppl,passkey_grid \
			--metadata '{"num_samples": 10}' --output_path results/demo || exit; \
	done
	$(BIN)/mesa-lm plot results/board --task passkey_long --out docs/figures/lines_demo.png
	$(BIN)/mesa-lm plot results/demo --task long_ppl --metric nll --out docs/figures/nll_demo.png
	$(BIN)/mesa-lm plot results/demo --task long_ppl --by position --out docs/figures/position_demo.png
	$(BIN)/mesa-lm plot results/demo --task passkey_grid --by depth --out docs/figures/depth_demo.png
	$(BIN)/mesa-lm leaderboard results/board --html results/board.html
	echo '<body style="margin: 0 55px; background: #888"><iframe src="board.html" style="width: 390px; height: 1000px; border: 0">' \
		> results/phone.html
	$(BROWSER) --window-size=1280,780 --screenshot=docs/figures/leaderboard.png file://$(CURDIR)/results/board.html
	$(BROWSER) --window-size=1280,780 --screenshot=docs/figures/leaderboard_dark.png \
		--blink-settings=preferredColorScheme=0 file://$(CURDIR)/results/board.html
	$(BROWSER) --window-size=500,1000 --screenshot=docs/figures/leaderboard_phone.png file://$(CURDIR)/results/phone.html

# Most of the two hours is plain attention at 64k.
BENCH := $(BIN)/mesa-lm bench --out results/bench
bench: bench-mesa bench-methods bench-sharing bench-lm-eval ## tables of docs/performance.md, about two hours on an idle machine

bench-mesa: .venv/installed ## Mesa beside transformers alone
	$(BENCH)/mesa --method stock --method origin --method mesa --lengths 1k,2k,4k,16k,64k --repeats 3

bench-methods: .venv/installed ## every method
	$(BENCH)/methods --method all --lengths 8k,16k,32k --repeats 3 --warm-up 0

bench-sharing: .venv/installed ## what requests share
	$(BIN)/python -m mesa_lm.pipelines.development.chunk_sharing

bench-lm-eval: .venv/installed ## shares of time of an lm_eval run
	for task in passkey_long long_ppl; do \
		$(BIN)/python -m mesa_lm.pipelines.development.time_shares --model mesa-hf --tasks $$task || exit; \
	done

check-gpu: .venv/installed-test ## tests that need a GPU
	HF_HUB_OFFLINE=1 WANDB_MODE=offline $(BIN)/python -m pytest -m gpu

# One stage per shape and length; called again it goes on where it was interrupted. Lengths that run out of memory are
# results; beyond 128k tokens plain attention would take longer than all else together.
GPU_SHAPES := llama-2-7b llama-3-8b
GPU_LENGTHS := 4k 8k 16k 32k 64k 128k 256k 512k
GPU_OPTIONS := --dtypes bfloat16 --device cuda
bench-gpu: .venv/installed ## 7B and 8B shapes on a GPU with 80 GB or more
	for shape in $(GPU_SHAPES); do for length in $(GPU_LENGTHS); do \
		out=results/bench/gpu/$$shape/$$length; \
		case $$length in 256k|512k) methods="mesa";; 32k) methods="stock origin mesa rerope streaming_llm";; \
			*) methods="stock origin mesa";; esac; \
		test -d $$out || { rm -rf $$out.part; $(BIN)/mesa-lm bench --out $$out.part --shape $$shape $(GPU_OPTIONS) --lengths $$length \
			$$(printf -- '--method %s ' $$methods) && mv $$out.part $$out; } || exit; \
	done; done
	$(BIN)/mesa-lm plot results/bench/gpu --metric prefill_s --out results/bench/gpu/prefill.png

wheel: .venv/pyvenv.cfg ## build dist/*.whl
	$(BIN)/pip wheel --no-deps --wheel-dir dist .

# Read and execute the .pth file.
hook-cost: .venv/pyvenv.cfg ## what the start-up hook adds to every Python start
	$(BIN)/python -m timeit -n 100 -r 20 -s "import site" "site.addpackage('mesa_lm/harness', 'startup.pth', set())"

.venv/pyvenv.cfg:
	@test -n "$(PYTHON)" || { echo "mesa-lm needs Python 3.11 or newer: make PYTHON=/path/to/python ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

# Stamps: installed again only when what is installed changes; sources are used in place.
SETUP := pyproject.toml constraints.txt mesa_lm/harness/startup.pth
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.venv/installed: $(SETUP) | .venv/pyvenv.cfg
	$(INSTALL) .
	@touch $@

.venv/installed-%: $(SETUP) | .venv/pyvenv.cfg
	$(INSTALL) ".[$*]"
	@touch $@
