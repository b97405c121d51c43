"""Errors of the command line and the cluster that a user can mend, and the set of all such errors."""

from data_pipeline.errors import DataError
from distributed.errors import RunError
from model.errors import ModelError


class ClusterError(ValueError):
    """A command, the machine or the Ray cluster is not as needed; the message names what and the mend."""


USER_ERRORS = (ClusterError, DataError, ModelError, RunError)
