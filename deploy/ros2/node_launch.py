"""Launch file: the policy node with a parameter file, in a namespace, in simulated time if asked for.

    ros2 launch $(vivace-ros --launch-file) params:=robot.yaml namespace:=left_arm

It needs the packages launch and launch_ros, which come with a ROS 2 installation and are not on PyPI. The
node activates itself if its parameter autostart is true; else use ros2 lifecycle or a lifecycle manager.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue


def generate_launch_description() -> LaunchDescription:
    """Describe the node; `vivace-ros` is found on PATH, it is in no ament package."""
    sim_time = ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)
    return LaunchDescription(
        [
            DeclareLaunchArgument("params", description="Parameter file; vivace-ros --example prints one."),
            DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node."),
            DeclareLaunchArgument("use_sim_time", default_value="false", description="Follow /clock."),
            LifecycleNode(
                executable="vivace-ros",
                name="vivace",
                namespace=LaunchConfiguration("namespace"),
                parameters=[LaunchConfiguration("params"), {"use_sim_time": sim_time}],
                output="screen",
            ),
        ]
    )
