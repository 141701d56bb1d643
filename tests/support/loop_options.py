"""Options of tests, parted into the loop's settings and the rest."""

from dataclasses import fields

from vivace.deploy.loop.settings import LoopSettings


def part(options, **defaults):
    """Return the loop's settings among options, and what is left of these."""
    names = {field.name for field in fields(LoopSettings)}
    own = {name: value for name, value in options.items() if name in names}
    return LoopSettings(**defaults | own), {k: v for k, v in options.items() if k not in names}
