"""Settings for every test: few threads per worker, no network, and property tests that repeat in CI."""

import os

# Read by torch's and tokenizers' native code when they are first imported, which this file must not do: most tests are
# torch-free. Two xdist workers with a thread pool each would fight for the same cores.
os.environ.setdefault(
    "OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else str(min(4, os.cpu_count() or 1))
)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from hypothesis import settings

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, max_examples=200, derandomize=True, print_blob=True)
settings.register_profile("exhaustive", deadline=None, max_examples=5000)
settings.load_profile("ci" if os.environ.get("CI") else "local")

# layer kinds of other packages that are installed here, as docs/adding-a-kind.md installs one, are no part of the laws
os.environ.setdefault("L4SPEC_OWN_KINDS_ONLY", "1")

# a profile of this machine, which `l4spec calibrate` writes, must not change what tests see
os.environ["XDG_CONFIG_HOME"] = os.path.join(os.path.dirname(__file__), "no-such-folder")
