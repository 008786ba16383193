"""Real servers on loopback, for tests of what speaks with servers.

Each is a context manager that yields what a client needs to know; ports are chosen free, and all ends with the block.
There is none for Google's and Azure's stores yet.
"""
