"""`vivace-ros`: the ROS 2 node's entry point; imports without ROS, and says in one line what is missing.

    vivace-ros --example > robot.yaml        # a parameter file to fill in
    vivace-ros --ros-args --params-file robot.yaml
    ros2 launch $(vivace-ros --launch-file) params:=robot.yaml

The node itself is `lifecycle.PolicyNode`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

_FOLDER = Path(__file__).parent
LAUNCH_FILE = _FOLDER / "node_launch.py"
"""For `ros2 launch`."""
_USAGE = """usage: vivace-ros [--ros-args --params-file robot.yaml …]   run the policy node
       vivace-ros --example                               print a parameter file to fill in
       vivace-ros --launch-file                           print the path of the launch file"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until it is told to end; returns the exit code, 2 for bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--example"]:
        from vivace.deploy.ros2.parameters.example import example

        print(example(), end="")
        return 0
    if arguments[:1] == ["--launch-file"]:
        print(LAUNCH_FILE)
        return 0
    if arguments and arguments[0] != "--ros-args":
        print(_USAGE, file=sys.stdout if arguments[0] in ("-h", "--help") else sys.stderr)
        return 0 if arguments[0] in ("-h", "--help") else 2
    try:
        from vivace.deploy.ros2.process import run
    except ImportError as error:
        print(
            f"vivace-ros: no package {error.name!r}; source a ROS 2 installation for this Python "
            "(Humble 3.10, Jazzy 3.12), or pip install 'vivace[ros]'",
            file=sys.stderr,
        )
        return 2
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
