"""axe-core, as for the other pages."""

from tests.render.conftest import axe  # noqa: F401 - a fixture
