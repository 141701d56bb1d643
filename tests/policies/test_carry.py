"""What chunks leave to the next: handed to those that follow them, and to no others."""

import copy

import numpy as np

from vivace.policies.carry import FOLLOWED, NOTHING, SLOTS, Slot, followed, slots_of

MAKER, OTHER = object(), object()


def test_a_slot_gives_what_the_newest_chunk_left_to_who_follows_that_very_chunk():
    slot = Slot()
    assert slot.get(MAKER, (7, 0)) == NOTHING, "the first chunk of an episode"
    slot.put(MAKER, (7, 4), {"n": 1})
    assert slot.get(MAKER, (7, 4)) == {"n": 1}
    assert slot.get(MAKER, (7, 4)) == {"n": 1}, "asking again after a failure changes nothing"
    assert slot.get(MAKER, (7, 0)) == NOTHING, "the newest chunk was skipped"
    assert slot.get(MAKER, (8, 4)) == NOTHING, "another episode"
    assert slot.get(OTHER, (7, 4)) == NOTHING, "another plan made it"
    kept = copy.copy(slot)
    slot.clear()
    assert slot.get(MAKER, (7, 4)) == NOTHING
    assert kept.get(MAKER, (7, 4)) == {"n": 1}


def test_what_is_said_of_the_chunk_before_names_it():
    keys = [(7, 8), (9, 8)]
    assert followed({}, keys) == [((), -1), ((), -1)]
    said = {FOLLOWED: np.array([[4, 3], [-1, 0]])}
    assert followed(said, keys) == [((7, 4), 3), ((), 0)]


def test_who_runs_one_episode_needs_no_slots_of_his_own():
    own, brought = Slot(), [Slot(), Slot()]
    assert slots_of({}, own, 1) == [own]
    assert own not in slots_of({}, own, 2), "two episodes share nothing"
    assert slots_of({SLOTS: brought}, own, 2) is brought
