"""From a pool and rules to a subset: rules, engine, cache of values, cuts, assets."""
