"""A discovery: from a model and a task to everything the report shows, planned, kept in a folder, and taken up again.

Owns the stages and their costs (`stages`), the plan (`plan`), the folder (`folder`), the check of the data (`check`), the
size of the circuit (`size`) and what verification compares (`verification`). Takes no console and draws through `display`.

    found = mw.discover(model, task, out="reports/ioi")
    print(found.circuit, found.curve)
"""

from .discover import discover as discover
from .discover import load_discovery as load_discovery
from .found import Discovery as Discovery
