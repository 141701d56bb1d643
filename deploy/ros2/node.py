"""`vivace-ros`: the ROS 2 node's entry point; imports without ROS, and says in one line what is missing.

    vivace-ros --example > robot.yaml        # a parameter file to fill in
    vivace-ros --ros-args --params-file robot.yaml
    ros2 launch $(vivace-ros --launch-file) params:=robot.yaml

The node itself is `lifecycle.PolicyNode`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from vivace.deploy.system.last_resort import last_line

_FOLDER = Path(__file__).parent
LAUNCH_FILE = _FOLDER / "node_launch.py"
"""For `ros2 launch`."""
_USAGE = """usage: vivace-ros [--ros-args --params-file robot.yaml …]   run the policy node
       vivace-ros --example                               print a parameter file to fill in
       vivace-ros --launch-file                           print the path of the launch file"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until it is told to end; returns the exit code, 2 for bad input, 1 for the unforeseen."""
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except Exception as error:  # the outermost frame; the robot stands still and is closed by now
        print(last_line(error, "vivace-ros"), file=sys.stderr)
        return 1


def _main(arguments: Sequence[str]) -> int:
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
            f"vivace-ros: no package {error.name!r}{_why(error)}; source a ROS 2 installation for this "
            "Python (Humble 3.10, Jazzy 3.12), or pip install 'vivace[ros]'",
            file=sys.stderr,
        )
        return 2
    return run(arguments)


def _why(error: ImportError) -> str:
    """What keeps a package that is there from being imported, such as a library that is not."""
    return "" if isinstance(error, ModuleNotFoundError) else f" that can be used ({error})"


if __name__ == "__main__":
    sys.exit(main())
