"""Boards: one entry (JSON) per strategy, what their numbers can support, and tables that say so."""
