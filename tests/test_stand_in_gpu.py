"""What runs on a GPU stays there and waits for nothing, as seen on a stand-in for one: tests/*/check_stand_in_gpu.py.

The stand-in is a device type, which is registered for a whole process before autograd is first used: the checks have a process
of their own, the same for all.
"""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from torch.utils import backend_registration

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="needs a torch in which Python can make device types",
)
CHECKS = sorted(path.relative_to(HERE).as_posix() for path in HERE.rglob("check_stand_in_gpu.py"))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[ElementTree.Element]]:
    """Each file's checks, as they went."""
    written = tmp_path_factory.mktemp("stand-in") / "report.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        f"--junitxml={written}",
        *CHECKS,
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[str, list[ElementTree.Element]] = {name: [] for name in CHECKS}
    for case in ElementTree.parse(written).iter("testcase"):
        module = case.get("classname", "").partition(".Test")[0]
        found[module.replace(".", "/").removeprefix("tests/") + ".py"].append(case)
    return found


@pytest.mark.parametrize("name", CHECKS)
def test_on_the_stand_in(name: str, report: dict[str, list[ElementTree.Element]]) -> None:
    cases = report[name]
    assert cases
    wrong = [part.text or "" for case in cases for part in case if part.tag in ("failure", "error")]
    assert not wrong, "\n\n".join(wrong)
