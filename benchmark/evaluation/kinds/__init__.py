"""Kinds of tasks, one file each: all that is known of a kind stands in its class. `base.py` says what that is."""
