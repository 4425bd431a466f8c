"""How good a language model is: bits per byte, choices between answers, translation."""
