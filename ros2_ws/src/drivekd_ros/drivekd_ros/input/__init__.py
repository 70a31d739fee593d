"""From ROS messages to the newest frame."""
