# `make demo` and `make test` need nothing; `make table2` to `table6` make the paper's tables. All set up .venv first.
PYTHON ?= python3
BIN := .venv/bin

STUDIES := training_size conversion_batches rate_grid shift_family head_rate probe_solver
TABLES := table2 table3 table4 table5 table5_onefactor table6 small small_resnet18 strategies
OUT = results
# Variables that narrow a table's runs, as lists with commas: make table5 BACKBONES=swav SEEDS=0 LAUNCHER=workers
narrow = $(if $(DATASETS),--datasets '$(DATASETS)') $(if $(BACKBONES),--backbones '$(BACKBONES)') $(if $(METHODS),--methods '$(METHODS)') $(if $(SEEDS),--seeds '$(SEEDS)')
train = $(BIN)/python scripts/train.py -m $(if $(LAUNCHER),hydra/launcher=$(LAUNCHER))

.PHONY: setup demo test kill-test benchmark gpu-check figures report wandb-sync dashboard clean $(TABLES) $(TABLES:=-plan) $(STUDIES) $(STUDIES:=-plan)

setup: .venv/.ready

# torch takes most of the minutes and of the 6 GB.
.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "setup: $(PYTHON) is older than 3.11; name another: make setup PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -c 'import torch, torchvision, timm; print("setup: torch", torch.__version__, "torchvision", torchvision.__version__, "timm", timm.__version__)' \
		|| { echo "setup: torch, torchvision and timm do not import together (see above). Remove .venv, make sure"; \
		     echo "       that pip is not pointed at a local torch build (PIP_FIND_LINKS), and run make again."; exit 1; }
	@touch $@

# LP, FT, LP-FT and DAFT on the embedded images and network: a table, then a picture.
demo: setup
	$(BIN)/python scripts/train.py -m method=lp,ft,lp_ft,daft wandb.mode=disabled paths.runs=runs/demo
	$(BIN)/python scripts/figures.py runs/demo --out runs/demo/demo.png

# What Table 4 measures once the runs are there.
table4: measure = $(BIN)/python scripts/robustness.py table4 || status=1;

small: OUT = results/small/efficientnet_lite0
small_resnet18: OUT = results/small/resnet18_tin64
strategies: OUT = results/small
strategies: draw = $(BIN)/python scripts/figures.py strategies --kind conversion --out $(OUT)/strategies.png || status=1;

# What a table lacks is run, then the table is written, with gaps where runs failed; the exit code is the runs'.
$(TABLES): setup
	@sweeps=$$($(BIN)/python scripts/tables.py $@ --overrides $(narrow)) || exit 1; \
	echo "$$sweeps" | xargs -L1 $(train); status=$$?; $(measure) \
	$(BIN)/python scripts/tables.py $@ --out $(OUT) || exit 1; $(draw) exit $$status

$(TABLES:=-plan): setup
	@sweeps=$$($(BIN)/python scripts/tables.py $(@:-plan=) --overrides $(narrow)) || exit 1; \
	echo "$$sweeps" | xargs -L1 $(train) sweep.plan=true

# How the result depends on a setting: each study is a file of conf/sweep, on the embedded images unless DATASET and
# BACKBONE name others. ARGS='key=value …' changes anything else.
study = $(train) sweep=$(1) wandb.mode=disabled paths.runs=$(RUNS) $(if $(DATASET),dataset=$(DATASET)) \
	$(if $(BACKBONE),backbone=$(BACKBONE)) $(if $(SEEDS),sweep.seeds=[$(SEEDS)]) $(ARGS)
training_size: over = dataset.train.images
conversion_batches: over = method.conversion_batches
shift_family: over = dataset.shift_strength
head_rate: over = method.lr_head
probe_solver: over = method.probe_solver
$(STUDIES): RUNS = $(or $(DAFT_RUNS),runs)/$@
$(STUDIES): OUT = results/small/sensitivity/$@
$(filter-out probe_solver,$(STUDIES)): draw = $(BIN)/python scripts/figures.py $(RUNS) --kind $@ --out $(OUT) $(if $(WANDB),--wandb) &&

$(STUDIES): setup
	$(call study,$@)
	$(draw) \
	$(BIN)/python scripts/tables.py $(RUNS) $(if $(over),--over $(over)) --out $(OUT)

$(STUDIES:=-plan): RUNS = $(or $(DAFT_RUNS),runs)/$(@:-plan=)
$(STUDIES:=-plan): setup
	@$(call study,$(@:-plan=)) sweep.plan=true

# The paper's figures of the small runs, as PNG and PDF, and with WANDB=1 there too; other runs: scripts/figures.py --help.
figures: setup
	$(BIN)/python scripts/figures.py small --out results/small/efficientnet_lite0/figures $(if $(WANDB),--wandb)

# All tables, figures and runs in one file that opens without a server.
report: setup
	$(BIN)/python scripts/report.py --out runs/report.html

# Every finished record that W&B does not have yet, one run each; then the project's report there. Both need an account.
wandb-sync: setup
	$(BIN)/python scripts/wandb_sync.py $(or $(RUNS),$(DAFT_RUNS),runs)

dashboard: setup
	$(BIN)/python scripts/dashboard.py --save

# One process more than there are cores: half of the time of the long tests is waiting for what they start.
test: setup
	n=$$(getconf _NPROCESSORS_ONLN); PYTHONDONTWRITEBYTECODE= PYTHONWARNDEFAULTENCODING=1 \
		$(BIN)/python -m pytest -n $$((n < 8 ? n + 1 : 8)) --dist loadfile --no-loadscope-reorder

# Kill a sweep at random times, 20 rounds; about a quarter of an hour on two cores.
kill-test: setup
	$(BIN)/python tests/kill_test.py --log results/benchmarks/kill_test.log

benchmark: setup
	$(BIN)/python tests/benchmark.py --check

# The measure of a GPU machine, in less than ten minutes: results/benchmarks/<gpu>.md. Without a GPU it says what that is.
gpu-check: setup
	$(BIN)/python -m tests.gpu_check

clean:
	rm -rf cache .venv
