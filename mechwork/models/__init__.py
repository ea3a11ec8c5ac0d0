"""Models: loading, and what a loaded model is made of.

Owns the bridge's construction, the anatomy, and the recipes that trained the bundled models. Imports the bottom layer.

    model = load_model("gpt2-6l")
    read_anatomy(model).n_heads
"""

from .anatomy import CLAIMED as CLAIMED
from .anatomy import ModelAnatomy as ModelAnatomy
from .anatomy import read_anatomy as read_anatomy
from .load import load_model as load_model
