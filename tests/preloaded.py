"""Imported by the process whose copies run commands (tests/commands.py), so that they need not import these."""

import gc

import datasets  # noqa: F401
import peft  # noqa: F401
import torch  # noqa: F401
import transformers.trainer  # noqa: F401

import sftcore.cli
import sftcore.train.trainer  # noqa: F401
from sftcore.testing.libraries import spare_libraries

spare_libraries()
gc.freeze()  # its copies need not look through what is imported for garbage
