"""What `import pydensecrf` finds in the processes that one with `hdcrf.compat.install` starts."""

import sys

from hdcrf.compat import install

del sys.modules[__name__]  # whose place hdcrf.compat takes
install()
