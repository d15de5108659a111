"""Errors, files, progress, the door of the scripts: what every room may use."""

import sys

_package = sys.modules["daft"]
if "convert_batchnorm" not in getattr(_package, "__all__", ()):
    # Two other packages on the index have this import name, and pip lets one lie over another.
    raise ImportError(
        f"{_package.__file__} is another package's, installed over Domain-Aware Fine-Tuning: uninstall that "
        "one, and install this one again",
        name="daft",
    )
