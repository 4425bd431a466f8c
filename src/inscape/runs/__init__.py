"""Runs: the folder a study writes, its stages that survive a kill, intervals, figures and the report.

Read `run.py` for how a study is run, `page.py` for what it can say in its report, `intervals.py` for the intervals.
This room knows nothing of models or studies: it keeps tables, numbers, pictures and text.
"""

from inscape.runs.folder import RunFolder, read_run
from inscape.runs.intervals import Interval, bootstrap, bootstrap_paired, proportion, r2
from inscape.runs.page import Headline, Page, Reported, Section
from inscape.runs.report import write_report
from inscape.runs.run import Run
from inscape.runs.writing import RunWriteError

__all__ = [
    "Headline",
    "Interval",
    "Page",
    "Reported",
    "Run",
    "RunFolder",
    "RunWriteError",
    "Section",
    "bootstrap",
    "bootstrap_paired",
    "proportion",
    "r2",
    "read_run",
    "write_report",
]
