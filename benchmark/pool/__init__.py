"""Pools and subsets: metadata, shards, index, uids; checking, importing, sampling and resharding them."""
