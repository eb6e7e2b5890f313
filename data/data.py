"""Makes `python data/custom.py` work as `python -m data.custom` does.

A script's folder is where Python looks for modules first. There `import data` finds this file,
which says that the modules of the package `data` are those beside it.
"""
from pathlib import Path

__path__ = [str(Path(__file__).parent)]
