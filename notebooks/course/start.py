# ruff: noqa: UP032 - no f-string: this file must at least be read by a Python that is too old
"""The first cell of every notebook: is everything here that the notebook needs? If not, what to do.

Runs on any Python 3 and imports nothing that might be missing before it has looked.
"""

import importlib
import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path

NEEDED = (3, 11)
INSTALL = "in the folder that holds pyproject.toml:  pip install -c constraints.txt .   then restart the kernel"
ABOVE = "Run the cells above first: in Jupyter, menu Run, 'Run All Above Selected Cell'."


class NotReadyError(Exception):
    """Something is missing. Jupyter shows the message alone, without a traceback."""

    def _render_traceback_(self):
        return [str(self)]


def begin(notebook):
    """Look at the installation and say so; raises `NotReadyError`, with what to do, when the notebook cannot run here.

    May be called again at any time. From then on a name that no cell has made yet says which cells to run.
    """
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info < NEEDED:
        raise NotReadyError(
            "This notebook needs Python {}.{} or newer; this kernel runs {}.\n"
            "Choose another kernel (menu Kernel, 'Change Kernel'), or make an environment with a newer Python and, "
            "{}".format(*NEEDED, version, INSTALL)
        )
    if importlib.util.find_spec("mechwork") is None and not _install_where_hosted():
        raise NotReadyError(
            "mechwork is not installed in the Python of this kernel ({}).\nInstall it, {}".format(
                sys.executable, INSTALL
            )
        )
    warnings.filterwarnings("ignore", message="IProgress not found")
    import mechwork

    missing = [
        name for name in ("load_model", "patch", "attribute", "score_edges", "report") if not hasattr(mechwork, name)
    ]
    if missing:
        raise NotReadyError(
            "The mechwork found at {} has no {}: it is another version, or another folder of that name.\nInstall this "
            "one, {}".format(mechwork.__file__, ", ".join(missing), INSTALL)
        )
    _check_models()
    _calm()
    _explain_missing_names()
    print(
        "Notebook {}: Python {}, mechwork {}, bundled models found. No network, no GPU and no other browser are "
        "needed.\n"
        "Run the cells from top to bottom; running one again is harmless.".format(
            notebook, version, mechwork.__version__
        )
    )


def _install_where_hosted():
    """On Colab and Binder, where a machine is new each time, install mechwork; says whether it is there afterwards.

    Offline first: a wheel beside the notebook or in dist/, else the folder above, if it is the repository. On a machine
    of one's own nothing is ever installed.
    """
    if not ("COLAB_RELEASE_TAG" in os.environ or "BINDER_SERVICE_HOST" in os.environ):
        return False
    command = [sys.executable, "-m", "pip", "install", "-q"]
    above = Path("..")
    wheels = sorted(Path().glob("mechwork-*.whl")) or sorted((above / "dist").glob("mechwork-*.whl"))
    if wheels:
        command += [str(wheels[-1])]
    elif (above / "pyproject.toml").exists():
        command += ["-c", str(above / "constraints.txt"), str(above)]
    else:
        return False
    print("Installing mechwork on this hosted machine; this takes some minutes.")
    subprocess.check_call(command)  # noqa: S603 - pip of this Python, with paths that lie here
    importlib.invalidate_caches()
    if importlib.util.find_spec("mechwork") is None:
        return False
    package = sys.modules[__package__]
    if not hasattr(package, "check"):  # its exercises need mechwork and were left out
        importlib.reload(package)
    return True


def place(name):
    """Where to save `name`: the folder `reports` beside the notebook, made if need be."""
    folder = Path("reports")
    folder.mkdir(exist_ok=True)
    return folder / name


def _check_models():
    from mechwork.bundled import model_names
    from mechwork.errors import MechworkError

    try:
        there = "gpt2-6l" in model_names()
    except (MechworkError, OSError):
        there = False
    if not there:
        raise NotReadyError(
            "The bundled models are not part of this installation.\nInstall mechwork again, {}".format(INSTALL)
        )


def _calm():
    """No progress bars in the output."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _explain_missing_names():
    """In Jupyter: a NameError, which is what running cells out of order gives, says what to do."""
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return
    shell = get_ipython()
    if shell is not None:
        shell.set_custom_exc((NameError,), _say_above)


def _say_above(shell, kind, value, trace, tb_offset=None):
    shell.showtraceback((kind, value, trace), tb_offset=tb_offset)
    print("{} {}".format(value, ABOVE))
