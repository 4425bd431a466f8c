"""The kernel: a Hugging Face causal LM as an instrument. Load · sites · capture · edit · generate · score."""

from inscape.models.capture import Activations, NonFiniteError
from inscape.models.discovery import ModelCheckError
from inscape.models.edit import Edit, EditError, ablate, add, project, scale, set_
from inscape.models.families import FAMILIES, Family
from inscape.models.grid import Donors, Grid
from inscape.models.instrument import load
from inscape.models.lm import LM
from inscape.models.metrics import KL, LogitDifference, Logits, Metric, Probability
from inscape.models.regenerate import Generated
from inscape.models.rerun import Rerun
from inscape.models.score import Scores
from inscape.models.sites import SITES
from inscape.models.store import ActivationStore
from inscape.models.tokens import Window

__all__ = [
    "FAMILIES",
    "KL",
    "LM",
    "SITES",
    "ActivationStore",
    "Activations",
    "Donors",
    "Edit",
    "EditError",
    "Family",
    "Generated",
    "Grid",
    "LogitDifference",
    "Logits",
    "Metric",
    "ModelCheckError",
    "NonFiniteError",
    "Probability",
    "Rerun",
    "Scores",
    "Window",
    "ablate",
    "add",
    "load",
    "project",
    "scale",
    "set_",
]
