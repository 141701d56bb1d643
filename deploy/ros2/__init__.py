"""The ROS 2 lifecycle node around the same loop."""
