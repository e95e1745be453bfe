"""The fixtures of the package's tests serve here, too."""

from tests.conftest import *  # noqa: F403
from tests.conftest import _as_in_a_fresh_process  # noqa: F401
