"""Records: the facts that are committed to Git, one module, one dataclass family and one schema per kind of file.

Reading is strict and total: a record holds only what its schema allows, or RecordError names the file, the line and the
key. Writing is canonical: what was written by mlx and is read and written again keeps its bytes. Records open no files;
bytes come in and go out.
"""
