"""A pytest plugin: kernels from the folder that native/sanitize.py built. No tests of its own."""

import os
from pathlib import Path

from vitrail.ops.cpu import library

library._FOLDER = Path(os.environ["VITRAIL_TEST_FOLDER"])
