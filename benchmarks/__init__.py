"""Comparisons with peers, each one command; not part of the distribution."""
