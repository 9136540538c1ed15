"""Engines in lockstep: what ``compare-engines`` is made of."""
