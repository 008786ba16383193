"""Trees of folders: reading, comparing and changing them. This is their one public face, but for `tree_merge`.

The one idea: a digest stands for everything beneath it, so what is equal is never read. A comparison opens only folders
and leaves that differ; a change at one path writes only the folders above it; a merge walks what both sides changed.
The bytes of a tree are `tree_format`'s; reading files and deciding what belongs in a tree is done above.
"""

from __future__ import annotations

from mlops_cli.store.tree_diff import Change, TreeDiff, diff
from mlops_cli.store.tree_edit import TreeTarget, edit, graft, write_tree
from mlops_cli.store.tree_extent import Extent
from mlops_cli.store.tree_format import (
    Entry,
    Index,
    Kind,
    Leaf,
    TreeError,
    decode_tree,
    encode_files,
    encode_tree,
    totals,
)
from mlops_cli.store.tree_overlay import Obstructed, Overlaid, Unlisted, overlay
from mlops_cli.store.tree_reading import (
    EMPTY_TREE,
    MOST_WITHOUT_FILES,
    Named,
    TreeSource,
    check_folder,
    check_links,
    find,
    find_names,
    read_link,
    read_totals,
    read_tree,
    split_path,
    tree_objects,
    walk,
)

__all__ = [
    "EMPTY_TREE",
    "MOST_WITHOUT_FILES",
    "Change",
    "Entry",
    "Extent",
    "Index",
    "Kind",
    "Leaf",
    "Named",
    "Obstructed",
    "Overlaid",
    "TreeDiff",
    "TreeError",
    "TreeSource",
    "TreeTarget",
    "Unlisted",
    "check_folder",
    "check_links",
    "decode_tree",
    "diff",
    "edit",
    "encode_files",
    "encode_tree",
    "find",
    "find_names",
    "graft",
    "overlay",
    "read_link",
    "read_totals",
    "read_tree",
    "split_path",
    "totals",
    "tree_objects",
    "walk",
    "write_tree",
]
