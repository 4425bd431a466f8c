"""A small mixture of prompted tasks in the manner of xP3 (Muennighoff et al. 2023): every task by name.

`sources.py` reads the data, `task.py` says what records and prompts are, and each other file holds the tasks of a few
clusters: their records and the wording of their prompts, side by side.
"""

from inscape.data.prompts import documents, held_out, language, translation, words
from inscape.data.prompts.sources import Sources, corpora_folder
from inscape.data.prompts.task import Kind, Prompt, Record, Task

#: Every task by name, trained ones first.
TASKS: dict[str, Task] = {
    task.name: task for module in (translation, language, documents, words, held_out) for task in module.TASKS
}

__all__ = ["TASKS", "Kind", "Prompt", "Record", "Sources", "Task", "corpora_folder"]
