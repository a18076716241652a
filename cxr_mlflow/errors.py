"""The one exception that means: the user can mend this, and the message says how."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: the message names the file or flag at fault and what to do about it.

    The command line prints it as one line and exits with status 2. Anything else that is raised is
    a defect of ours and keeps its traceback.
    """
