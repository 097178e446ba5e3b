"""A port where the ranks of a test meet."""

import random
import socket


def meeting_port() -> int:
    """A free port below those that the system hands out by itself.

    One of the latter may be given to any other connection before the first rank listens there, and
    the ranks would then wait for one another in vain.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port between 20000 and 32000")
