"""The command line: one file per command; options, sweeps, help."""
