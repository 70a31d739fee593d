"""Start the drivekd node: ros2 launch drivekd_bringup drivekd.launch.py bundle:=/path/to/bundle [params:=internvl3-1b]

Advisory output, developed to no ASIL, never the sole input to actuation.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, LogInfo, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution, PythonExpression
from launch_ros.actions import Node


def generate_launch_description() -> LaunchDescription:
    """Arguments, the DDS profiles, the node. The node restarts when it ends by itself (hung inference)."""
    share = Path(get_package_share_directory("drivekd_bringup"))
    fastdds = str(share / "dds" / "fastdds.xml")
    params = PathJoinSubstitution([str(share / "params"), PythonExpression(["'", LaunchConfiguration("params"), ".yaml'"])])
    return LaunchDescription(
        [
            DeclareLaunchArgument("bundle", description="folder of the bundle"),
            DeclareLaunchArgument("params", default_value="demo", description="name of a file in params/: demo, internvl3-1b"),
            DeclareLaunchArgument("namespace", default_value="", description="namespace of the node"),
            DeclareLaunchArgument("respawn", default_value="true", description="start again after exit code 1"),
            LogInfo(msg="drivekd: advisory output, developed to no ASIL, never the sole input to actuation"),
            SetEnvironmentVariable("FASTRTPS_DEFAULT_PROFILES_FILE", fastdds),  # Humble, Jazzy
            SetEnvironmentVariable("FASTDDS_DEFAULT_PROFILES_FILE", fastdds),  # Kilted
            SetEnvironmentVariable("CYCLONEDDS_URI", f"file://{share / 'dds' / 'cyclonedds.xml'}"),
            Node(
                package="drivekd_ros",
                executable="node",
                name="drivekd",
                namespace=LaunchConfiguration("namespace"),
                parameters=[params, {"bundle": LaunchConfiguration("bundle")}],
                output="screen",
                respawn=LaunchConfiguration("respawn"),
                respawn_delay=2.0,
            ),
        ]
    )
