"""An experiment: one rule at one scale on one pool, with its seeds. The stages in order, and the entry they end in."""
