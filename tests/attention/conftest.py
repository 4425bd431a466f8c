"""The kernel's tiny models (``tests/models/tiny_models.py``) and its attention written out by hand, for the tests here."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "models"))
