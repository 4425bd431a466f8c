"""Generators of facts whose truth is known, because we made them."""

WORLDS = {"numeric": "invented people and places with years, populations, elevations and coordinates"}
"""Name → what it holds; for lists of what there is."""
