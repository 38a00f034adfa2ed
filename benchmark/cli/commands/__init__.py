"""A file for each command of `winnow`; `cli/command_table.py` lists them."""
