"""Stages: the graph they form, the plan that says which must run and why, and the runner that carries it out."""
