"""A page that shows runs and steers them: python -m train.dashboard RUNS_DIR"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SECONDS_TO_END = 5.0
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Dashboard:
    """A dashboard in a process of its own, which ends when this one does.

    Attributes:
        url: where to look, the token included.
    """

    def __init__(self, process: subprocess.Popen, url: str):
        self.url, self._process = url, process

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def start_dashboard(runs: Path) -> Dashboard:
    """Serve the runs in a folder, at the lowest priority. UserError when that does not work."""
    command = [sys.executable, "-m", "train.dashboard", str(Path(runs).absolute()), "--with-parent"]
    root = Path(__file__).parent.parent.parent
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    # A session of its own keeps Ctrl-C from it: that is for the run, which then saves.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               start_new_session=True, env={**os.environ, "PYTHONPATH": paths, **ONE_THREAD})
    url = process.stdout.readline().strip()
    if not url:
        process.stdin.close()
        process.stdout.close()
        from train.errors import UserError  # loads the engine, which the dashboard's process does without

        raise UserError(f"the dashboard did not start: exit code {process.wait()}")
    return Dashboard(process, url)
