"""Circuits that come with the package: what was found in the bundled models, with the numbers it was tested by.

``data/circuits/MODEL/TASK.json`` is what `Circuit.save` wrote, ``card.json`` holds the figures, ``README.md`` is the
page to read, ``manifest.json`` the hashes. ``mechwork circuits build`` makes them again.
"""

from __future__ import annotations

from pathlib import Path

from ... import bundled
from ...arguments import checked
from ...errors import UnknownNameError
from ...files import read_json
from .circuit import Circuit

CARD = "card.json"


def circuit_names() -> list[str]:
    """Names of the shipped circuits, ``"gpt2-6l/ioi"``, sorted."""
    folder = bundled.root() / "circuits"
    if not folder.is_dir():
        return []
    cards = sorted(folder.glob(f"*/{CARD}"))
    return [f"{card.parent.name}/{task}" for card in cards for task in sorted(read_json(card)["circuits"])]


@checked
def load_circuit(name: str | Path) -> Circuit:
    """A shipped circuit (``"gpt2-6l/ioi"``), or one from a file that `Circuit.save` wrote.

    Raises:
        UnknownNameError: neither a file nor a shipped circuit has this name; names the nearest.
        ArtefactError: the file is damaged, altered, or of a newer format.

    >>> circuit = load_circuit("gpt2-6l/ioi")
    """
    if Path(name).is_file():
        return Circuit.load(name)
    names = circuit_names()
    if str(name) not in names:
        raise UnknownNameError("circuit", str(name), names)
    model, task = str(name).split("/")
    folder = bundled.path("circuits", model)
    bundled.verify(folder)
    return Circuit.load(folder / f"{task}.json")
