"""Winnow's fixed part: types, stages and the command line. Filters, tasks and board entries live beside it."""

__version__ = "0.1.0"

from benchmark.errors import UserError
from benchmark.registry import register_filter, register_selector, register_signal, register_suite, register_task

__all__ = ["UserError", "register_filter", "register_selector", "register_signal", "register_suite", "register_task"]
