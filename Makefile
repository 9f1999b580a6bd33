# Two commands matter: make demo (see it work) and make test (check that it works).
# Each makes .venv by itself and installs only when pyproject.toml has changed.

VENV := .venv
PYTHON_IN := $(VENV)/bin/python
PIP := $(PYTHON_IN) -m pip install --quiet --quiet --disable-pip-version-check --no-input
OUT ?= hemolens-demo
WORKERS ?= 2
ARGS ?=

.PHONY: help demo pacs-demo test quick lint docs clean

help:
	@echo "make demo   analyze the built-in phantom head; ends with the path of a report (OUT=folder)"
	@echo "make pacs-demo   Orthanc, hemolens and the OHIF viewer on this computer, with the demo scan sent through"
	@echo "make test   run every test (ARGS='-k name' for some of them, WORKERS=n);"
	@echo "            the DICOM reports are also read by dcmtk if it is there: apt-get install dcmtk"
	@echo "make quick  the tests that take less than about five seconds each"
	@echo "make lint   ruff and mypy"
	@echo "make docs   check the documentation: links, snippets, every verb and option"
	@echo "make clean  remove .venv and caches"

demo: $(VENV)/.core
	@$(PYTHON_IN) -m hemolens analyze --demo -o "$(OUT)" --overwrite

pacs-demo: $(VENV)/.pacs
	@$(PYTHON_IN) tools/pacs_demo.py $(ARGS)

# One thread for each worker: two workers of two threads on two cores wait for each other.
test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(PYTHON_IN) -m pytest -n $(WORKERS) $(ARGS)

lint: $(VENV)/.lint
	$(PYTHON_IN) -m ruff check .
	$(PYTHON_IN) -m ruff format --check .
	$(PYTHON_IN) -m mypy

quick: $(VENV)/.test
	OMP_NUM_THREADS=1 $(PYTHON_IN) -m pytest -n $(WORKERS) -m "not slow" $(ARGS)

docs: $(VENV)/.test
	$(PYTHON_IN) -m pytest tests/test_docs.py $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.core: pyproject.toml tools/make_venv.sh
	@sh tools/make_venv.sh $(VENV)
	@echo "Installing hemolens into $(VENV) ..."
	@$(PIP) -e .
	@touch $@

$(VENV)/.pacs: pyproject.toml tools/make_venv.sh
	@sh tools/make_venv.sh $(VENV)
	@echo "Installing hemolens with its PACS part into $(VENV) ..."
	@$(PIP) -e '.[pacs]'
	@touch $@

$(VENV)/.test: pyproject.toml tools/make_venv.sh
	@sh tools/make_venv.sh $(VENV)
	@echo "Installing hemolens with its test and training parts into $(VENV) (torch is large: some minutes) ..."
	@$(PIP) -e '.[openvino,pacs,web,data,train,export,test]'
	@touch $@

# mypy follows imports into torch and onnx, so it wants them too.
$(VENV)/.lint: $(VENV)/.test
	@$(PIP) -e '.[all]'
	@touch $@
