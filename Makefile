# Two commands do everything: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test benchmark clean

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

test: setup
	$(BIN)/python -m pytest

benchmark: setup
	$(BIN)/python scripts/benchmark.py --check

clean:
	rm -rf cache .venv
