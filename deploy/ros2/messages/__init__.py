"""ROS 2 messages to observations and back, without ROS 2."""
