"""What holds for every test: the --accept option, few threads, and examples that repeat."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# Set before anything imports torch, so that the subprocesses of a test inherit it too.
THREADS = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
os.environ.setdefault("OMP_NUM_THREADS", THREADS)
os.environ.setdefault("MKL_NUM_THREADS", THREADS)

# The same examples in every run. To go looking for new ones: --hypothesis-profile=explore
settings.register_profile(
    "steady",
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
steady = settings.get_profile("steady")
settings.register_profile("explore", steady, derandomize=False, max_examples=2000)
settings.load_profile("steady")


class RootIsNotATest:
    """The root has an __init__.py because it is the package; pytest would import it again."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path, parent):
        """Collect the root as a plain folder."""
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_configure(config):
    """Hooks in a conftest are not asked about the folders above it; those of a plugin are."""
    config.pluginmanager.register(RootIsNotATest(), "root-is-not-a-test")


def pytest_addoption(parser):
    """Golden tests: `--accept` rewrites the expected half of a file with what came out."""
    parser.addoption("--accept", action="store_true", help="rewrite what golden tests expect")


@pytest.fixture
def accept(request) -> bool:
    """Whether golden tests should rewrite what they expect."""
    return request.config.getoption("--accept")
