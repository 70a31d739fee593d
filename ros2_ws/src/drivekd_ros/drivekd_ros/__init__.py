"""The ROS 2 face of a drivekd bundle: camera topics in, three text topics and typed answers out.

    conversions, ego_speed, drops, mailbox, inference, meter, health      plain Python and numpy, tested without ROS
    settings (parameters), messages (typed messages), ask (the action), node (the lifecycle node)      import rclpy
    player (pictures -> camera topics), listener (topics -> JSON lines)      separate programs

Advisory output, developed to no ASIL, never the sole input to actuation.
"""
