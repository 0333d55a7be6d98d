"""A case within a time: fewer test-time views or networks where the machine is slow, and a warning that says so."""

import dataclasses
import math
import time

from ..inference import Mirrored
from .members import infer


def infer_within(members, case, image, background, seconds, log):
    """(members that were asked, what they say): as `members.infer`, with as many views and networks as fit.

    The plain view of the first network is timed, and counts as what every other pass will take. Then all networks get
    the same number of views (flips; the plain one first), or, where not even one each fits, the first networks get one.
    One view of one network is always made. Nothing is timed where there is nothing to leave out.
    """
    wished = max(_views(member) for member in members)
    if len(members) * wished == 1 or seconds == math.inf:
        return members, infer(members, case, image, background)
    begun, plain = time.perf_counter(), [_limited(member, 1) for member in members]
    said = infer(plain[:1], case, image, background)
    one = time.perf_counter() - begun
    passes = int(max(0.0, seconds - one) / max(one, 1e-9))  # that fit into what is left
    views = min(wished, passes // len(members))
    if views == wished:
        return members, infer(members, case, image, background)
    asked = [_limited(member, views) for member in members] if views else plain[: max(1, passes)]
    values = dict(views=max(1, views), of_views=wished, networks=len(asked), of_networks=len(members))
    log.warn("the time is short: fewer test-time views or networks are averaged", **values, pass_s=one, left_s=seconds)
    if len(asked) == 1 and views <= 1:
        return asked, said
    return asked, infer(asked, case, image, background)


def _views(member):
    return len(getattr(member.network, "views", (None,)))


def _limited(member, views):
    """The member with so many of its views."""
    if _views(member) <= views:
        return member
    network = Mirrored(member.network.network, member.network.axes, views, member.network.gammas)
    return dataclasses.replace(member, network=network)
