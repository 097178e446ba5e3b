"""A law of a number is a number, of an array an array of its shape."""

from typing import TypeVar

import numpy as np

Value = TypeVar("Value", float, np.ndarray)
