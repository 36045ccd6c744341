"""What the texts say of each other, one question a file."""

from .auxiliaries import main_task

FIGURES = (main_task,)
"""Every figure that takes options: `python -m paper_repro figure --list`."""
