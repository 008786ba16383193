"""The command line: the only floor that knows typer, rich, streams and exit codes; one module per noun."""
