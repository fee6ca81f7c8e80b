"""A pytest plugin: the kernels of another processor for the whole run. See harness.py; no tests of its own."""

import os

from tests.native import harness, remote
from vitrail.ops import native

_processor = os.environ[harness.ENVIRONMENT]
_folder = harness.folder_of(_processor)
if _processor == "neon":
    remote.use(_folder)
else:
    native._FOLDER = _folder
