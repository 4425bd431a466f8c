"""Attention read from weights: what each first-layer head does with tokens and positions, without running any text."""

from inscape.attention.first_layer import FirstLayer, first_layer
from inscape.attention.position import Position
from inscape.attention.terms import Terms
from inscape.attention.token_scores import TokenScores

__all__ = ["FirstLayer", "Position", "Terms", "TokenScores", "first_layer"]
