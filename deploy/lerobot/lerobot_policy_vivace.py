"""A plug-in: lerobot imports every installed distribution whose name begins with `lerobot_policy_`."""

from vivace.deploy.lerobot.plugin import install

install()
