"""Exports: mask shards written as what other programs open; one file a format."""
