"""Execute: how work is cut, run, kept and taken up again.

Owns units (`unit`), the memory budget (`memory`), progress (`progress`), the ledger (`ledger`), and who runs units:
this process (`local`), forked workers (`forked`), Ray (`ray`). Operations are registered by name (`operations`) from
the rooms above. Imports `tasks`, `models` and below.
"""

from .executors import executor as executor
from .ledger import Ledger as Ledger
from .memory import MemoryBudget as MemoryBudget
from .memory import parse_budget as parse_budget
from .progress import Clock as Clock
from .progress import Progress as Progress
from .unit import ModelRef as ModelRef
from .unit import Unit as Unit
from .unit import Work as Work
