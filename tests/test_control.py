"""Steering a run from outside: the socket and whoever may open it, hostile clients, every command, its mistakes."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from sources import ROOT
from train import control
from train.asking import NotRunning, ask
from train.commands import handle
from train.config import Config
from train.control import Control
from train.errors import NonFiniteError
from train.loop import Position
from train.pace import Pace
from train.steering import Steering

CONFIG = Config().with_values({"run.steps": 1000, "data.window": 256, "model.max_seq_len": 512})


class FakeSession:
    """What train/commands.py uses of a session, `done` steps into its run."""

    def __init__(self, folder, done=100, config=CONFIG):
        self.config, self.folder = config, SimpleNamespace(path=folder)
        self.position = Position(done, done * config.data.batch_tokens)
        self.steering = Steering(folder / "steering.jsonl")
        self.pace = Pace(config, self.steering)
        self.paused = self.stopping = False
        self.rows, self.said, self.saved, self.bad = [], [], [], None
        self.validate = self.last_evaluation = None
        self.saver = SimpleNamespace(finish=lambda: None)

    def record(self, row):
        self.rows.append(row)

    def say(self, text):
        self.said.append(text)

    def sample(self, prompt):
        if self.bad:
            raise self.bad
        return prompt + " 你好\x1b[31m"

    def save_now(self):
        if self.bad:
            raise self.bad
        folder = self.folder.path / f"checkpoints/step-{self.position.step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state.json").write_text(json.dumps({"format": 1, "step": self.position.step}))
        self.saved.append(self.position.step)

    def evaluate_now(self):
        self.last_evaluation = SimpleNamespace(total=SimpleNamespace(loss=2.5, bits_per_byte=0.9))


@contextmanager
def training(session, steps=True):
    """A thread that does what a run does between two steps."""
    over = threading.Event()
    with Control(session.folder.path) as ear:
        def train():
            while not over.is_set():
                for request in ear.wait(0.01):
                    handle(session, request)

        thread = threading.Thread(target=train)
        if steps:
            thread.start()
        try:
            yield ear
        finally:
            over.set()
            if steps:
                thread.join()


@pytest.fixture
def session(tmp_path):
    return FakeSession(tmp_path)


@pytest.fixture
def running(session):
    with training(session):
        yield session


def told(session, *words) -> dict:
    """A command's answer, from its words as a person types them."""
    command, *rest = words
    return ask(session.folder.path, command, control._arguments(command, rest), 20.0)


def connection(folder) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(20.0)
    client.connect(str(folder / "control.sock"))
    return client


def test_status_is_answered_from_the_last_snapshot_while_the_run_is_busy(session):
    with training(session, steps=False) as ear:
        assert told(session, "status") == {"state": "starting"}
        ear.publish({"state": "running", "step": 7})
        assert told(session, "status") == {"state": "running", "step": 7}


def test_pause_and_resume(running):
    assert told(running, "pause") == {"message": "paused after step 100"}
    assert running.paused
    assert told(running, "pause") == {"message": "paused after step 100"}
    assert told(running, "resume") == {"message": "goes on with step 101"}
    assert not running.paused
    assert told(running, "resume") == {"message": "it was not paused: step 100 is done"}
    assert running.rows == [{"step": 100, "event": "pause"}, {"step": 100, "event": "resume"}]


def test_stop(running):
    assert "saves step 100 and ends" in told(running, "stop")["message"]
    assert running.stopping


def test_save_and_pin(running):
    path = "checkpoints/step-000100"
    assert told(running, "save") == {"message": f"saved: {path}", "path": path}
    folder = running.folder.path / path
    assert running.saved == [100] and not (folder / "pinned").exists()
    assert told(running, "pin")["path"] == path
    assert (folder / "pinned").exists()
    assert running.rows == [{"step": 100, "event": "save", "path": path}] * 2


def test_nothing_is_saved_before_the_first_step(tmp_path):
    session = FakeSession(tmp_path, done=0)
    with training(session):
        assert told(session, "save") == {"error": "nothing to save before the first step: got step 0"}


def test_a_sample_in_chinese(running):
    assert told(running, "sample", "从前") == {"message": "step 100", "text": "从前 你好\x1b[31m"}
    assert told(running, "sample") == {"message": "step 100", "text": " 你好\x1b[31m"}


@pytest.mark.parametrize("error", [NonFiniteError("step 100: logits"), UnicodeEncodeError("utf-8", "x", 0, 1, "bad")])
def test_a_sample_that_fails_ends_no_run(running, error):
    running.bad = error
    assert told(running, "sample", "x") == {"error": f"no sample: {error}"}
    assert running.said == [f"no sample: {error}"]
    running.bad = None
    assert "text" in told(running, "sample", "x")


def test_a_save_that_fails_is_told_and_raised(session):
    session.bad = OSError("no space left on device")
    request = control.Request("save", {})
    with pytest.raises(OSError, match="no space"):
        handle(session, request)
    assert request.answer == {"error": "no space left on device"}


def test_evaluate(running):
    assert "no validation text" in told(running, "evaluate")["error"]
    running.validate = object()
    answer = told(running, "evaluate")
    assert (answer["val_loss"], answer["val_bits_per_byte"]) == (2.5, 0.9)


def test_set_holds_from_the_next_step_on_and_is_durable(running):
    rate = running.pace.lr(100)
    answer = told(running, "set", "lr=1e-4", "over=500")
    assert answer == {"message": f"change 1: lr {rate:g} -> 0.0001, there at step 600", "change": 1}
    assert running.pace.lr(100) == rate > running.pace.lr(101) > running.pace.lr(600) == 1e-4
    assert told(running, "set", "batch_tokens=8192")["change"] == 2
    assert told(running, "set", "seq_len=128")["change"] == 3
    assert running.pace.portion(101, running.position.cursor) == (64, 128)
    assert told(running, "set", "eval_every=7")["change"] == 4
    assert running.pace.due("eval_every", 105) and not running.pace.due("eval_every", 106)
    again = Steering(running.steering.path)
    assert again.changes.lines == running.steering.changes.lines
    assert [row["was"] for row in again.changes_at(101)] == [rate, 4096, 256, 100]


def test_undo(running):
    before = [running.pace.lr(step) for step in range(101, 1001)]
    told(running, "set", "lr=1e-4")
    told(running, "set", "log_every=1")
    assert told(running, "undo", "1") == {"message": "change 1 (lr=0.0001) is undone from step 101 on", "change": 1}
    assert [running.pace.lr(step) for step in range(101, 1001)] == before
    assert told(running, "undo")["change"] == 2
    assert running.pace.every("log_every", 101) == 10
    assert "(none): got 0" in told(running, "undo")["error"]
    assert "(none): got 2" in told(running, "undo", "2")["error"]


def test_a_change_during_the_warm_up_says_where_that_leads(tmp_path):
    session = FakeSession(tmp_path, done=3)
    with training(session):
        assert told(session, "set", "lr=1e-4")["message"].endswith("the warm-up goes on, to 0.001")


@pytest.mark.parametrize("words, error", [
    (["lr=fast"], "optim.lr must be float: got 'fast'"), (["lr=0"], "optim.lr must be above 0"),
    (["lr=nan"], "optim.lr must be a finite number"), (["lr=inf"], "optim.lr must be a finite number"),
    (["lr=1e-4", "over=-5"], "over must be a whole number of steps"),
    (["lr=1e-4", "over=soon"], "over must be a whole number of steps"),
    (["lr=1e-4", "seq_len=64"], "set takes one setting"), (["over=5"], "set takes one setting"),
    (["eval_every=5", "over=5"], "over goes with lr alone"), (["eval_every=-2"], "run.eval_every must be at least -1"),
    (["log_every=0"], "run.log_every must be at least 1"),
    (["checkpoint.every=0"], "checkpoint.every must be at least 1"),
    (["batch_tokens=1000"], "data.batch_tokens must be a multiple of data.seq_len (256): got 1000"),
    (["seq_len=1024"], "data.seq_len must be at most model.max_seq_len (512): got 1024"),
    (["seq_len=96"], "data.batch_tokens must be a multiple of data.seq_len (96)"),
    (["seq_len=512"], "data.seq_len must divide data.window (256): got 512"), (["seq_len=0"], "at least 1"),
    (["model.dim=8"], "set takes one of lr, batch_tokens"), (["batch_tokens=1e4"], "data.batch_tokens must be int"),
])
def test_a_bad_value_gets_the_rule_and_changes_nothing(running, words, error):
    assert error in told(running, "set", *words)["error"]
    assert running.steering.changes.lines == () and not running.steering.path.exists()


def test_rows_never_mix_two_stretches_of_text(running):
    told(running, "set", "seq_len=64")
    told(running, "set", "batch_tokens=192")
    assert "must be a multiple of data.seq_len (256)" in told(running, "undo", "1")["error"]
    running.position.step, running.position.cursor = 101, running.position.cursor + 192
    told(running, "set", "batch_tokens=512")
    assert "data.seq_len must divide the tokens read so far" in told(running, "set", "seq_len=256")["error"]


def test_a_change_must_suit_later_lengths_too(tmp_path):
    config = CONFIG.with_values({"data.lengths": "64:50%,256:50%"})
    session = FakeSession(tmp_path, 10, config)
    with training(session):
        assert "multiple of data.seq_len (256): got 640" in told(session, "set", "batch_tokens=640")["error"]
        assert "change" in told(session, "set", "batch_tokens=512")


def test_an_unknown_command_lists_the_known_ones(running):
    assert told(running, "dance") == {"error": "a run knows evaluate, pause, pin, resume, sample, save, set, status, "
                                      "stop, undo: got 'dance'"}


@pytest.mark.parametrize("line", [b"hello\n", b"[]\n", b"{}\n", b'{"command": 5}\n', b"\xff\xfe\n",
                                  b"[" * 60_000 + b"\n",
                                  b'{"command": "sample", "arguments": {"text": "\\ud800"}}\n', b"x" * 200_000,
                                  b'{"command": "set", "arguments": [1]}\n', b"\n", b"9" * 50_000 + b"\n"])
def test_garbage_gets_an_error_and_hurts_nobody(running, line):
    with connection(running.folder.path) as client:
        try:
            client.sendall(line)
            client.shutdown(socket.SHUT_WR)
            answer = client.recv(65_536)
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
    assert answer == b"" or "error" in json.loads(answer)
    assert told(running, "pause")["message"] == "paused after step 100"


def test_a_line_of_100_mb_is_cut_off(running):
    with connection(running.folder.path) as client, pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(100):
            client.sendall(b"x" * 1_000_000)
    assert "message" in told(running, "pause")


def test_clients_that_hang_are_hung_up_on(running, monkeypatch):
    monkeypatch.setattr(control, "CLIENT_SECONDS", 0.2)
    clients = [connection(running.folder.path) for _ in range(control.MOST_CLIENTS)]
    clients[0].sendall(b'{"comm')
    assert "message" in told(running, "pause")
    assert [client.recv(10) for client in clients] == [b""] * len(clients)
    for client in clients:
        client.close()


def test_clients_that_leave_do_not_shut_out_others(session):
    with training(session, steps=False) as ear:
        for _ in range(2 * control.MOST_CLIENTS):
            with connection(session.folder.path) as client:
                client.sendall(b'{"command": "pause"}\n')
        assert told(session, "status") == {"state": "starting"}
        found = []
        while len(found) < 2 * control.MOST_CLIENTS:
            found += ear.wait(10.0)
        assert {request.command for request in found} == {"pause"}


def test_requests_that_pile_up_are_refused(session, monkeypatch):
    monkeypatch.setattr(control, "MOST_WAITING", 1)
    with training(session, steps=False), connection(session.folder.path) as first:
        first.sendall(b'{"command": "pause"}\n')
        with connection(session.folder.path) as second:
            second.sendall(b'{"command": "pause"}\n')
            answers = [b""]
            first.settimeout(0.1)
            try:
                answers.append(first.recv(1000))
            except TimeoutError:
                answers.append(second.recv(1000))
            assert b"requests to answer before" in b"".join(answers)


def test_two_clients_are_served_at_the_same_time(session):
    with training(session, steps=False) as ear, connection(session.folder.path) as slow:
        slow.sendall(b'{"command": "sample"}\n')
        waiting, = ear.wait(10.0)
        assert told(session, "status") == {"state": "starting"}
        waiting.reply({"text": "late"})
        assert json.loads(slow.recv(1000)) == {"text": "late"}


def test_a_client_waits_as_long_as_the_run_takes(session, monkeypatch):
    monkeypatch.setattr(control, "PATIENCE", 0.01)
    monkeypatch.setattr(control, "CLIENT_SECONDS", 0.05)
    with training(session, steps=False) as ear, connection(session.folder.path) as slow:
        slow.sendall(b'{"command": "sample"}\n')
        waiting, = ear.wait(10.0)
        assert not waiting.wait(0.2)
        waiting.reply({"text": "late"})
        assert json.loads(slow.recv(1000)) == {"text": "late"}


def test_a_run_that_ends_answers_who_waits(session):
    with training(session, steps=False):
        client = connection(session.folder.path)
        client.sendall(b'{"command": "pause"}\n')
    with client:
        assert client.recv(1000) in (b"", json.dumps(control.ENDED).encode() + b"\n")
    assert not (session.folder.path / "control.sock").exists()
    with pytest.raises(NotRunning, match="is not being trained"):
        told(session, "status")


def test_only_the_user_may_open_the_socket(session):
    before = os.umask(0)
    try:
        with training(session):
            mode = os.stat(session.folder.path / "control.sock").st_mode
            assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
            assert [path.name for path in session.folder.path.glob(".control-*")] == []
    finally:
        os.umask(before)


def test_a_path_too_long_for_a_socket_goes_to_a_private_folder(tmp_path):
    folder = tmp_path / ("长" * 60)
    folder.mkdir()
    session = FakeSession(folder)
    with training(session):
        place = (folder / "control.path").read_text()
        assert len(place) < control.LONGEST_ADDRESS
        assert stat.S_IMODE(os.stat(os.path.dirname(place)).st_mode) == 0o700
        assert told(session, "pause") == {"message": "paused after step 100"}
    assert not os.path.exists(os.path.dirname(place)) and not (folder / "control.path").exists()


LISTENER = """
import sys, time
from pathlib import Path
from train.control import Control
with Control(Path(sys.argv[1])) as ear:
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("name", ["run", "long" * 30])
def test_what_a_killed_run_left_is_replaced(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    killed = subprocess.Popen([sys.executable, "-c", LISTENER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE)
    assert killed.stdout.readline() == b"ready\n"
    assert ask(folder, "status", seconds=20.0) == {"state": "starting"}
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    left = (folder / "control.path").read_text() if len(name) > 100 else str(folder / "control.sock")
    assert os.path.exists(left)
    with pytest.raises(NotRunning, match="is not being trained"):
        ask(folder, "status")
    session = FakeSession(folder)
    with training(session):
        assert told(session, "pause") == {"message": "paused after step 100"}
        assert len(name) < 100 or not os.path.exists(left)
    assert os.listdir(folder) == []


def test_a_place_from_elsewhere_has_nothing_deleted(session, tmp_path):
    folder = tmp_path / "work" / "loam-notes"
    folder.mkdir(parents=True)
    (folder / "s").write_text("mine")
    (tmp_path / "control.path").write_text(str(folder / "s"))
    with training(session):
        assert "message" in told(session, "pause")
    assert (folder / "s").read_text() == "mine"


def command(*words) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "train.control", *map(str, words)], cwd=ROOT, capture_output=True,
                          text=True, timeout=60)


def test_the_command(running, capsys):
    folder = str(running.folder.path)
    assert control.main([folder, "set", "lr=1e-4"]) == 0
    assert capsys.readouterr().out.startswith("change 1: lr ")
    assert control.main([folder, "sample", "从前"]) == 0
    assert capsys.readouterr().out == "从前 你好\ufffd[31m\nstep 100\n"
    assert control.main([folder, "set", "lr=-1"]) == 2
    assert capsys.readouterr().err == "error: optim.lr must be above 0: got -1.0\n"
    assert control.main([folder, "status"]) == 0
    assert capsys.readouterr().out == "state            starting\n"


@pytest.mark.parametrize("words", [["set"], ["set", "lr"], ["undo", "x"], ["sample", "a", "b"], ["pause", "now"]])
def test_words_that_do_not_fit_a_command(running, words, capsys):
    assert control.main([str(running.folder.path), *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {words[0]} takes ")


def test_the_command_on_a_run_that_does_not_run(tmp_path):
    for folder, rule in ((tmp_path, "is not being trained"), (tmp_path / "none", "is not a run folder")):
        done = command(folder, "status")
        assert (done.returncode, done.stdout) == (2, "")
        assert rule in done.stderr and done.stderr.count("\n") == 1
    done = command(tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_the_command_loads_no_engine():
    script = "import sys, train.control; print([name for name in ('torch', 'numba', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
