"""Which replica a request goes to: a session's own by its hash, the least busy one where there is no session.

In: a session's name and how many requests each replica has. Out: the replicas, best first. Knows no Ray.
"""

import random
from collections.abc import Mapping
from hashlib import blake2b

MUCH_LONGER = 8  # requests: to join a batch costs less than to take a long prompt in anew

ANYWHERE = "\0"  # begins the sessions that reach their replica however busy it is; no header can hold it


def ranked(session: str, lengths: Mapping[str, int | None]) -> list[str]:
    """Return the names of all replicas, best first; `lengths` are their requests, None where not known.

    A session's order stays when other replicas come and go. Whoever has MUCH_LONGER a queue than the shortest
    comes after the others, unless the session begins with ANYWHERE. Without a session ("") the shortest queue
    is best, and equals are drawn.
    """
    known = {name: length or 0 for name, length in lengths.items()}
    if not session:
        return sorted(known, key=lambda name: (known[name], random.random()))
    limit = min(known.values(), default=0) + MUCH_LONGER
    spills = not session.startswith(ANYWHERE)
    return sorted(known, key=lambda name: (spills and known[name] > limit, _score(session, name)))


def _score(session: str, name: str) -> bytes:
    """Return where a replica stands in a session's order (rendezvous hashing)."""
    return blake2b(f"{name}\0{session}".encode(errors="surrogatepass"), digest_size=16).digest()
