"""What the notebooks of the course share: a look at the installation, exercises that judge answers, a place for
results.

    import course
    course.begin("1")                        # is everything here? says what to do if not
    course.check("1.1", answer, effects)     # right, or what is wrong with it
    course.hint("1.1"); course.solution("1.1")
    course.predict("1", "at S2")             # taken down before a number is shown; not judged
    course.export("grades.csv", "A. Student")  # what was answered, in how many attempts
    course.place("first_circuit.html")       # where a notebook saves

The first lines must run on any Python 3, because saying that a Python is too old is their work.
"""

from .start import begin, place

try:
    from . import n0, n1, n2, n3, n4, n5, n6, n7, n8, n9, n10, n11  # noqa: F401 - each adds its exercises
    from .draw import lines, show, workbench
    from .exercise import EXERCISES, check, export, hint, passed, predict, solution
    from .real import live, real_model
except (ImportError, SyntaxError) as problem:  # an older Python, or no mechwork: begin() says which
    _PROBLEM = problem
    EXERCISES = {}

__all__ = [
    "EXERCISES",
    "begin",
    "check",
    "export",
    "hint",
    "lines",
    "live",
    "passed",
    "place",
    "predict",
    "real_model",
    "show",
    "solution",
    "workbench",
]
