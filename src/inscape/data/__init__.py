"""Real data and worlds: numeric facts, the questions about them, the reading of answers, and comparison pairs."""

from inscape.data.facts import Facts, load_facts, save_facts, unambiguous
from inscape.data.numbers import parse_number
from inscape.data.pairs import comparison_pairs, entity_split, require_entity_disjoint, swapped
from inscape.data.properties import PROPERTIES, Comparison, Property, property_named

__all__ = [
    "PROPERTIES",
    "Comparison",
    "Facts",
    "Property",
    "comparison_pairs",
    "entity_split",
    "load_facts",
    "parse_number",
    "property_named",
    "require_entity_disjoint",
    "save_facts",
    "swapped",
    "unambiguous",
]
