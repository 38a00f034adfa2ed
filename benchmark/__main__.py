"""`python -m benchmark` is the command `winnow`."""

from benchmark.cli.main import entry_point

if __name__ == "__main__":
    entry_point()
