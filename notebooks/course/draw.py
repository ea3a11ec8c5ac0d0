"""Figures in a notebook that live offline: plotly's script travels inside the cell's output, as in mechwork's own
results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#6e7781")
DASHES = ("solid", "dash", "dot", "dashdot")


class Shown:
    """A page that Jupyter shows in a frame."""

    def __init__(self, page: str, height: int, words: str) -> None:
        self.page, self.height, self.words = page, height, words

    def _repr_html_(self) -> str:
        from mechwork.display import frame

        return frame(self.page, height=self.height)

    def __repr__(self) -> str:
        return self.words


def show(figure: Figure, words: str) -> Shown:
    """Any plotly figure; `words` say what it shows, for those who cannot see it."""
    from mechwork.render.page.figure import figure_fragment, figures_page

    height = int(figure.layout.height or 400) + 110
    return Shown(figures_page(words, [figure_fragment(figure, words)]), height, words)


def workbench(model: Any, task: Any, **given: Any) -> Any:
    """The live workbench where the notebook extra is installed; else words that say how to get it.

    >>> course.workbench(model, task, scores=scores, circuit=circuit)
    """
    if find_spec("anywidget") is None:
        print(
            "The live workbench is not installed here: pip install 'mechwork[notebook]' and restart the kernel, or "
            f"run  mechwork serve {model.cfg.model_name} --task {task.name}  in a terminal."
        )
        return None
    import mechwork as mw

    return mw.explore(model, task, **given)


def lines(x: Sequence[float], ys: Mapping[str, Sequence[float]], *, title: str, x_title: str, y_title: str) -> Shown:
    """Several lines over the same x."""
    import plotly.graph_objects as go

    from mechwork.render.page.figure import titled

    figure = go.Figure()
    for (name, y), colour, dash in zip(ys.items(), COLOURS, DASHES, strict=False):
        figure.add_trace(
            go.Scatter(
                x=list(x), y=list(y), name=name, mode="lines", line={"color": colour, "dash": dash, "width": 2.5}
            )
        )
    titled(figure, "", "", width=680, height=360)
    figure.update_xaxes(title=x_title)
    figure.update_yaxes(title=y_title)
    figure.update_layout(showlegend=len(ys) > 1)
    return show(figure, title)
