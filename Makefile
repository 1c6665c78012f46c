# Each target works on a fresh machine with Python 3.10 to 3.13: it makes .venv, installs, then does its job.
#
# PyTorch: a CPU build in .venv is kept. To get one on Linux without the CUDA download, give the address of PyTorch's
# CPU wheels (pytorch.org, "Get Started", compute platform CPU): make pretrain TORCH_INDEX=ADDRESS

PYTHON ?= python3
TORCH_INDEX ?=
WORKERS ?= auto
ARGS ?=
PY = .venv/bin/python
HAS_GPU := $(shell command -v nvidia-smi)
TORCH := $(if $(HAS_GPU),torch>=2.11,torch==2.13.0)

.PHONY: pretrain test test-slow chat bench gpu clean

pretrain: .venv/ready
	$(PY) -m train.pretrain $(ARGS)

chat: .venv/ready
	$(PY) -m models.chat $(ARGS)

test: .venv/ready-test
	$(PY) -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal $(ARGS)

test-slow: .venv/ready-test
	$(PY) -m pytest -m slow $(ARGS)

bench: .venv/ready-test
	$(PY) -m bench.step $(ARGS)

gpu: .venv/ready-gpu
	$(PY) -m bench.gpu $(ARGS)

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 10) <= sys.version_info < (3, 14) else "Loam needs Python 3.10 to 3.13, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv

.venv/torch: .venv/bin/python
	$(PY) -m pip install --upgrade pip --quiet
	$(PY) -c 'import torch' 2>/dev/null || $(PY) -m pip install '$(TORCH)' $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(PY) -c 'import torch; print("" if torch.version.cuda else "-c constraints.txt")' > .venv/pip-options
	touch $@

.venv/ready: .venv/torch pyproject.toml constraints.txt
	$(PY) -m pip install --quiet -e . $$(cat .venv/pip-options)
	$(PY) -m kernels.cpu.warm
	$(PY) -m tokenizer.warm
	touch $@

.venv/ready-test: .venv/ready
	$(PY) -m pip install --quiet -e '.[test]' $$(cat .venv/pip-options)
	touch $@

# Liger-Kernel is a rival of the benchmarks, which do without it where it cannot be had.
.venv/ready-gpu: .venv/ready-test
	$(if $(HAS_GPU),$(PY) -m pip install --quiet liger-kernel || echo "Liger-Kernel is left out")
	touch $@

clean:
	rm -rf .venv build *.egg-info
