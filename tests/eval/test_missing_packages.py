"""Each optional package taken away: the verb that needs it says in a line what to install (section 5 of 17).

One process has torch and lerobot loaded; a fork of it tries each verb, so the heavy imports are paid once.
"""

import json
import os
import subprocess
import sys

import pytest

CASES = [
    ("onnx", "export", "export --policy.path=zoo/reach --output_dir=out"),
    ("onnxscript", "export", "export --policy.path=zoo/reach --output_dir=out"),
    ("plotly", "measure", "bench --policy.path=nowhere"),
    ("imageio", "measure", "eval --policy.path=nowhere"),
    ("mujoco", "sim", "explain --policy.path=zoo/reach"),
    ("draccus", "run", "run --bundle=nowhere"),
    ("onnxruntime", "", "check nowhere"),
]
"""(package, extra, command)."""

FORKS = """
import json, os, sys
import numpy, torch
import lerobot.policies.factory

def run(package, command):
    class Missing:
        def find_spec(self, name, *_):
            if name.partition(".")[0] == package:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [n for n in sys.modules if n.partition(".")[0] in (package, "vivace")]:
        del sys.modules[name]
    sys.meta_path.insert(0, Missing())
    from vivace.eval.cli import main
    return main(command.split())

for package, command in json.loads(sys.argv[1]):
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.dup2(writer, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 99
        try:
            code = run(package, command)
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writer)
    with open(reader) as told:
        text = told.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([package, code, text]), flush=True)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, tuple[int, str]]:
    folder = tmp_path_factory.mktemp("missing")
    asked = json.dumps([(package, command) for package, _, command in CASES])
    done = subprocess.run(
        [sys.executable, "-c", FORKS, asked], cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {package: (code, text) for package, code, text in map(json.loads, done.stdout.splitlines())}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize(("package", "extra"), [case[:2] for case in CASES])
def test_a_package_that_is_missing_is_named_with_its_extra(package, extra, told):
    code, text = told[package]
    last = text.strip().splitlines()[-1]
    assert "Traceback" not in text
    assert code == 2, text
    assert package in last
    assert f"pip install 'vivace{f'[{extra}]' if extra else ''}'" in last
