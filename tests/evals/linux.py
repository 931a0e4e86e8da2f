"""What runs programs that a model wrote needs Linux."""

import sys

import pytest

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="programs can be judged on Linux only")
