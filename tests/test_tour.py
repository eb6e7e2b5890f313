"""The tour: its cells run, and the outputs in it are those of a whole run."""
import json
import re

import pytest

from experiments.exercise import ROOT, copy_project

TOUR = ROOT / "experiments" / "tour.ipynb"
SMALL = {  # what a test adds to the commands of the cells
    "{python} pretrain.py": "--n_embd=32 --n_head=2 --epochs=0.02 --eval_interval=99",
    "{python} finetune.py": "--epochs=1",
    "--n_members=3": "--n_members=2 --n_embd=32 --n_head=2 --finetune=--epochs=1 "
                     '--pretrain="--epochs=0.02 --eval_interval=99"'}


def test_outputs_are_whole_and_of_no_machine():
    content = TOUR.read_text("utf-8")
    assert len(content) < 400_000
    for cell in json.loads(content)["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"], cell["source"]
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error"
            text = "".join(output.get("text", "")) + "".join(output.get("data", {}).get(
                "text/plain", ""))
            assert not re.search(r"""(^|[\s"'(=:])(/\w|[A-Z]:\\)""", text, re.M), text


def test_every_cell_runs(tmp_path, monkeypatch):
    """In a copy of the project, with small models."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    project = tmp_path / "project"
    copy_project(project)
    notebook = nbformat.read(TOUR, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for command, flags in SMALL.items():
        assert any(command in cell.source for cell in cells), command
        for cell in cells:
            cell.source = cell.source.replace(command, f"{command} {flags}")
    nbclient.NotebookClient(notebook, timeout=300, resources={
        "metadata": {"path": str(project / "experiments")}}).execute()
    assert (project / "out/committee-pocket-places-bert1/committee.json").exists()
