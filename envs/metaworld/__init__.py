"""Meta-World in lerobot's keys, our tasks made of its own, experts and demonstrations."""

from vivace.envs.opengl import load_mujoco

load_mujoco()  # before whatever else imports it
