# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `synapse-lb bench soak` has sampled, and what it says of it: pure, so that it can be shown to fail."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

import attrs

MOST_GROWTH: Final = 5.0
"""%: what memory may grow by in the part of the run that is judged."""

FEWEST_SAMPLES: Final = 8
"""With fewer samples in that part there is no line through them."""


@attrs.frozen
class Sample:
    """The server at one moment.

    Attributes:
        at: seconds since the first client came.
        process: number of the process: 0, and one more after each restart.
        rss: bytes of resident memory.
        blocks: of Python's allocator, in use.
        descriptors: open file descriptors.
        delayed_calls: of the reactor.
        processor: seconds of processor time so far.
        associations: DTLS associations.
        handshakes: under way.
        peers: of which CoAP keeps something.
        exchanges: open.
        observations: of `/sync`.
        reassembly_bytes: request bodies half received.
        snapshot_bytes: response bodies being fetched.
        running: requests that Synapse serves.
        requests: how many Synapse was asked to serve so far.
    """

    at: float
    process: int
    rss: int
    blocks: int
    descriptors: int
    delayed_calls: int
    processor: float
    associations: int
    handshakes: int
    peers: int
    exchanges: int
    observations: int
    reassembly_bytes: int
    snapshot_bytes: int
    running: int
    requests: int


ZERO_WHEN_GONE: Final = (
    "associations",
    "handshakes",
    "peers",
    "exchanges",
    "observations",
    "reassembly_bytes",
    "snapshot_bytes",
    "running",
)
"""What has to be zero when no client is left."""


KEPT: Final = {
    "synapse_lb.homeserver.room_positions._Stretch": 1024,
    "synapse_lb.msc3079.cbor_shapes.Plan": 4 * 1024 + 2,
    "synapse_lb.msc3079.server_mapping.Answer": 16,
    "synapse_lb.msc3079.server_mapping._Target": 256,
    "synapse_lb.msc3079.x1.plans.Plan": 1024,
    "synapse_lb.msc3079.x1.plans.Form": 1024,
    "synapse_lb.txdtls.movement.Bucket": 1024,
    "synapse_lb.txdtls.cookies.CookieClaim": 1,
    "OpenSSL.SSL.Connection": 1,
}
"""What belongs to no client, is made when it is first needed, and how many of it there may be: tables with a bound of
their own (docs/architecture.md, "What is kept"), and the connection that waits for the next hello."""


@attrs.frozen
class Inside:
    """What may be left behind in the server's process.

    Attributes:
        descriptors: open files and sockets, by kind.
        own_calls: delayed calls of this package, by name.
        objects: of this package, by class.
    """

    descriptors: dict[str, int]
    own_calls: dict[str, int]
    objects: dict[str, int]


@attrs.frozen
class Stop:
    """How one planned stop of Synapse went.

    Attributes:
        status: exit status; negative is the signal that ended it.
        own_calls: delayed calls of this package that the reactor still had afterwards, by name; None if it did not
            tell.
        under_load: whether clients were at work.
    """

    status: int | None
    own_calls: dict[str, int] | None
    under_load: bool


@attrs.define
class Story:
    """All that was seen of a run.

    Attributes:
        samples: in the order of time; only those while clients were there.
        warm_up: seconds that do not count.
        before: what was there before the first client, in the process that was running at the end.
        after: what was there after the last one.
        last: the server after the last client.
        log_errors: lines of Synapse's log that are errors.
        answers_5xx: answers that say that the server has failed, by status.
        behind: observers that never saw the last message of their room.
        stops: planned stops.
    """

    samples: list[Sample]
    warm_up: float
    before: Inside
    after: Inside
    last: Sample
    log_errors: list[str] = attrs.field(factory=list)
    answers_5xx: dict[str, int] = attrs.field(factory=dict)
    behind: int = 0
    stops: list[Stop] = attrs.field(factory=list)


@attrs.frozen
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of it.
        good: whether it is as it should be.
        text: for people.
    """

    name: str
    good: bool
    text: str


@attrs.frozen
class Line:
    """A straight line through samples (Theil and Sen: the median of all slopes, so that a few outliers do not matter).

    Attributes:
        begin: its value at the first sample.
        slope: per second.
        span: seconds from the first sample to the last.
    """

    begin: float
    slope: float
    span: float

    @property
    def growth(self) -> float:
        """How much it grows from the first sample to the last, in % of `begin`."""
        return 100 * self.slope * self.span / self.begin

    @property
    def per_hour(self) -> float:
        """Its slope per hour."""
        return self.slope * 3600


def line_through(points: Sequence[tuple[float, float]]) -> Line | None:
    """Draw it.

    Args:
        points: seconds and values, in the order of time.

    Returns:
        The line; None if there are too few points.
    """
    if len(points) < FEWEST_SAMPLES:
        return None
    slopes = [
        (value - earlier) / (at - before)
        for number, (at, value) in enumerate(points)
        for before, earlier in points[:number]
        if at > before
    ]
    slope = statistics.median(slopes)
    begin = points[0][0]
    level = statistics.median(value - slope * (at - begin) for at, value in points)
    return Line(level, slope, points[-1][0] - begin)


def judged(story: Story) -> list[Sample]:
    """The samples that count: of the last process, after its warm-up."""
    if not story.samples:
        return []
    process = story.samples[-1].process
    of_it = [sample for sample in story.samples if sample.process == process]
    began = of_it[0].at
    return [sample for sample in of_it if sample.at - began >= story.warm_up]


def more_than(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """What there is more of than before, and than `KEPT` allows."""
    return {
        name: count - before.get(name, 0)
        for name, count in sorted(after.items())
        if count > max(before.get(name, 0), KEPT.get(name, 0))
    }


def verdict(story: Story) -> list[Finding]:
    """Look at everything."""
    return [
        _flat(story, "memory", "rss", 2**20, "MiB"),
        _flat(story, "Python heap", "blocks", 1000, "thousand blocks"),
        _log(story),
        _answers(story),
        Finding(
            "observers",
            not story.behind,
            f"{story.behind} never saw the last message" if story.behind else "all saw the last message",
        ),
        _gone(story),
        _left("file descriptors", story.before.descriptors, story.after.descriptors),
        _left("delayed calls", story.before.own_calls, story.after.own_calls),
        _left("objects", story.before.objects, story.after.objects),
        *(_stop(each) for each in story.stops),
    ]


def _flat(story: Story, name: str, field: str, unit: float, unit_name: str) -> Finding:
    samples = judged(story)
    line = line_through([(sample.at, getattr(sample, field)) for sample in samples])
    if line is None:
        return Finding(
            name, False, f"only {len(samples)} samples after the warm-up: the run was too short to say"
        )
    text = (
        f"{line.begin / unit:.1f} {unit_name} after the warm-up, {line.growth:+.1f} % in the "
        f"{line.span / 60:.1f} min that followed ({line.per_hour / unit:+.1f} {unit_name} per hour)"
    )
    return Finding(name, line.growth <= MOST_GROWTH, text)


def _log(story: Story) -> Finding:
    if not story.log_errors:
        return Finding("log", True, "no error and no traceback")
    return Finding("log", False, f"{len(story.log_errors)} errors, the first: {story.log_errors[0][:300]}")


def _answers(story: Story) -> Finding:
    if not story.answers_5xx:
        return Finding("answers", True, "none says that the server has failed")
    return Finding("answers", False, ", ".join(f"{n} x {what}" for what, n in story.answers_5xx.items()))


def _gone(story: Story) -> Finding:
    left = {name: getattr(story.last, name) for name in ZERO_WHEN_GONE if getattr(story.last, name)}
    if left:
        return Finding("when all had gone", False, _listed(left))
    return Finding("when all had gone", True, "no association, exchange, observation or byte of a body")


def _left(name: str, before: dict[str, int], after: dict[str, int]) -> Finding:
    more = more_than(before, after)
    if more:
        return Finding(name, False, f"left behind: {_listed(more)}")
    return Finding(
        name, True, f"none left behind ({sum(before.values())} before, {sum(after.values())} after)"
    )


def _stop(stop: Stop) -> Finding:
    name = "stop under load" if stop.under_load else "stop"
    if stop.status != 0:
        return Finding(name, False, f"exit status {stop.status}")
    if stop.own_calls is None:
        return Finding(name, False, "the process did not say what it left")
    if stop.own_calls:
        return Finding(name, False, f"delayed calls left: {_listed(stop.own_calls)}")
    return Finding(name, True, "in order; no delayed call left")


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
