"""Nobody who prints waits for a terminal; one that listens hears everything."""

import subprocess
import sys

CODE = """
import os, sys
from vivace.deploy.telemetry.output_relay import OutputRelay
with OutputRelay():
    print("begin")
    for _ in range({times}):
        os.write(2, b"x" * 65536)
    print("end", file=sys.stderr)
print("after")
"""


def start(times):
    code = CODE.format(times=times)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_what_is_printed_arrives_whole_and_in_order():
    said, errors = start(3).communicate(timeout=60)
    assert said.decode().split() == ["begin", "after"]
    assert errors.decode().strip() == "x" * 3 * 65536 + "end"


def test_a_terminal_that_nobody_reads_stops_nobody():
    process = start(2000)  # 131 MB, far more than any pipe holds
    assert process.wait(60) == 0
    assert process.stdout.read().decode().split() == ["begin", "after"]
    process.stderr.close()
