"""Raw clips in, a power law with honest error bars out."""

__version__ = "0.1.0"
