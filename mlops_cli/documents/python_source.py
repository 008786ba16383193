"""Python source as a syntax tree: parsed, never run."""

from __future__ import annotations

import ast
import warnings

from mlops_cli.documents.document import located


def parse_source(data: bytes, name: str) -> ast.Module:
    """Parse the Python file called `name`; RecordError says `name:line` and what is wrong.

    The grammar is that of the Python which runs mlx.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the file says, such as "\\d": whoever runs it is told
            return ast.parse(data)
    except SyntaxError as error:
        raise located(name, error.lineno or 1, f"not valid Python: {error.msg}") from error
    except (RecursionError, MemoryError):
        raise located(name, 1, "not readable as Python: nested too deeply") from None
    except ValueError as error:  # a NUL character
        raise located(name, 1, f"not valid Python: {error}") from error
