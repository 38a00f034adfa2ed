"""What every stage stands on: records and atomic writes, locks, storage, executor, tables, identity of code."""
