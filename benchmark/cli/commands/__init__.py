"""A file for each command of `winnow`; `cli/table.py` lists them."""
