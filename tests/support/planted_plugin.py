"""Makes the planted policy and its world known where it is imported, such as in workers."""

import planted

from vivace.envs.registry import register_world
from vivace.policies.load import register_adapter

register_adapter("planted", f"{planted.__name__}:StagedPlanted")
register_world("planted", planted.__name__)
