"""Bytes by digest: the local cache, remotes, trees of folders, and moving objects between stores.

The one idea: an object is its digest, so every store is a set, and all work is asked for in batches. Nothing here knows
Git, YAML or pipelines. Import the modules by name; this package imports none of them, so that a command pays only for
what it uses.
"""
