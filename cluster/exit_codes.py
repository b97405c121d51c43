"""What the exit code of a command tells a script or a scheduler."""

DONE = 0
FAILED = 1
USER_ERROR = 2
DRIVER_LOST = 70  # EX_SOFTWARE of sysexits.h, between driver and launcher only: its Ray is gone, a new driver may go on
RESUME_ME = 75  # EX_TEMPFAIL of sysexits.h: the run stopped after a checkpoint and wants `resume`
INTERRUPTED = 130
