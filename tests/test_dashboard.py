"""The dashboard's data and its door: curves as they grow, and who is refused."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from urllib.parse import quote, urlsplit

import pytest
import tomli_w

from dashboard_runs import GROUPS, SAMPLE, append, evaluation_row, experts_row, make_run, training_row
from models.experts_config import ExpertsConfig
from sources import ROOT
from test_control import FakeSession, training
from train.dashboard import start_dashboard
from train.dashboard.curves import POINTS, Curve, Curves
from train.dashboard.runs import Runs


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs", "demo-1", 20, 100)


def joined(have: dict, answer: dict) -> dict:
    """What a page shows after an answer, by the rule in page/data.js."""
    if answer["whole"]:
        return answer
    series = {}
    for name, curve in have["series"].items():
        piece = answer["series"].get(name, {"x": [float("inf")]})
        kept = sum(x < piece["x"][0] for x in curve["x"])
        series[name] = {part: values[:kept] + piece.get(part, []) for part, values in curve.items()}
    events = [event for event in have["events"] if event["step"] < have["upto"]] + answer["events"]
    return {**answer, "series": series, "events": events}


def test_curves_by_name(run):
    curves = Curves(run / "metrics.jsonl")
    curves.refresh()
    drawing = curves.drawing()
    assert drawing["whole"] and drawing["upto"] == 20 and drawing["events"] == []
    assert drawing["series"]["val_loss"] == {"x": [10, 20], "y": [2.5, 2.5]}
    assert drawing["series"]["loss"]["y"] == pytest.approx([training_row(s)["loss"] for s in range(1, 21)], rel=1e-5)
    assert {f"grad_norms/{group}" for group in GROUPS} <= set(drawing["series"])


def test_experts_are_curves_by_layer(run):
    (run / "config.toml").write_text(tomli_w.dumps({"model": {"n_layers": 6, "feed_forward": "moe", "experts": {
        "first_dense": 1, "every": 2}}, "run": {"steps": 100}}))
    append(run, experts_row(21, [[5, 3], [8, 0]]), experts_row(22, [[6, 2], [4, 4]]))
    append(run, {"step": 23, "experts": {"max_vio": None, "entropy": ["x"], "dead": "x"}}, {"step": 24, "experts": 1})
    drawing = Runs(run.parent).get("demo-1").drawing()
    series = drawing["series"]
    assert series["max_vio/layers.2"] == {"x": [21, 22], "y": [0.25, 0.5]}
    assert series["max_vio/layers.4"]["y"] == [1.0, 0.0] and series["load_entropy/layers.2"]["y"] == [0.5, 0.5]
    assert series["dead_experts"]["y"] == [1, 0] and series["balance_loss"]["y"] == [1.3, 1.3]
    assert drawing["load"] == {"first": 22, "last": 22, "layers": [2, 4], "choices": [[6, 2], [4, 4]]}
    assert not any(name.startswith(("load/", "experts/")) for name in series)


def test_the_last_load_of_experts_is_sent_with_every_answer(run):
    curves = Curves(run / "metrics.jsonl", lambda: [4])
    curves.refresh()
    have = curves.drawing()
    assert have["load"] is None
    for step in (24, 30):
        append(run, experts_row(step, [[step, 1], [0, 0]]))
    curves.refresh()
    answer = curves.drawing(have["upto"], have["generation"], first=21, last=22)
    assert answer["load"] == {"first": 25, "last": 30, "layers": [4, 1], "choices": [[30, 1], [0, 0]]}
    append(run, experts_row(3, [[7, 7]]))
    curves.refresh()
    assert curves.drawing()["load"] == {"first": 3, "last": 3, "layers": [4], "choices": [[7, 7]]}
    (run / "new").write_text(json.dumps(training_row(1)) + "\n")
    os.replace(run / "new", run / "metrics.jsonl")
    curves.refresh()
    assert curves.drawing()["load"] is None


@pytest.mark.parametrize("load", [None, 3, "x", {}, [], [[]], [[], []], [3], [[1, 2], [3]], [[1], 2], [["<b>"]],
                                  [[1.5]], [[True]], [[-1]], [[None]], [[[1]]], [[1 << 53]], [[1] * 257] * 256])
def test_loads_that_are_no_table_are_left_out(run, load):
    append(run, experts_row(21, [[5, 3]]), {"step": 22, "loss": 2.0, "experts": {"load": load, "max_vio": [0.5]}})
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(experts_row(23, [[1, 1]]))[:-9])
    curves = Curves(run / "metrics.jsonl")
    curves.refresh()
    drawing = curves.drawing()
    assert drawing["load"] == {"first": 1, "last": 21, "layers": [0], "choices": [[5, 3]]}
    assert drawing["series"]["max_vio/layers.0"]["x"] == [21, 22]


@pytest.mark.parametrize("first_dense, every", [(0, 1), (2, 1), (1, 3), (0, 2)])
def test_which_layers_have_experts_is_known_from_the_settings(run, first_dense, every):
    experts = ExpertsConfig(first_dense=first_dense, every=every)
    (run / "config.toml").write_text(tomli_w.dumps({"model": {"n_layers": 7, "experts": asdict(experts)}}))
    assert Runs(run.parent).get("demo-1").expert_layers() == [layer for layer in range(7) if experts.here(layer)]


def test_only_what_is_new_is_read_and_sent(run):
    curves = Curves(run / "metrics.jsonl")
    curves.refresh()
    have = curves.drawing()
    version = curves.version
    curves.refresh()
    assert curves.version == version
    append(run, {"step": 21, "event": "set", "key": "lr"}, training_row(21))
    curves.refresh()
    assert curves.version != version
    answer = curves.drawing(have["upto"], have["generation"])
    assert not answer["whole"]
    assert answer["series"]["loss"]["x"] == [20, 21] and answer["series"]["val_loss"]["x"] == [20]
    assert answer["events"] == [{"step": 21, "event": "set", "key": "lr"}]
    after = curves.drawing()
    assert joined(have, answer) == {**after, "whole": False}


def test_a_page_that_is_kept_up_to_date_shows_what_a_new_one_would(tmp_path):
    run, curves, have = tmp_path, Curves(tmp_path / "metrics.jsonl"), None
    for step in range(1, 4 * POINTS, 37):
        append(run, *(training_row(s) for s in range(step, step + 37)), evaluation_row(step + 36))
        if step % 5 == 0:
            append(run, {"step": step + 36, "event": "save", "path": "p"})
        curves.refresh()
        have = curves.drawing() if have is None else joined(have, curves.drawing(have["upto"], have["generation"]))
    whole = curves.drawing()
    assert {key: have[key] for key in ("series", "events", "generation")} == {
        key: whole[key] for key in ("series", "events", "generation")}
    assert POINTS / 2 <= len(whole["series"]["loss"]["x"]) <= POINTS


def test_thinned_points_hold_mean_and_range():
    curve = Curve()
    for step in range(1, 2 * POINTS + 2):
        curve.append(step, float(step % 4))
    width = curve.width(0, len(curve.steps))
    assert width == 4
    piece = curve.thinned(9, len(curve.steps), width)
    assert piece["x"][:2] == [9, 13]
    assert (piece["y"][0], piece["low"][0], piece["high"][0]) == (1.5, 0.0, 3.0)
    assert (piece["y"][-1], piece["low"][-1], piece["high"][-1]) == (1.0, 1.0, 1.0)


def test_a_part_of_the_steps_is_shown_finer(tmp_path):
    append(tmp_path, *(training_row(step) for step in range(1, 4 * POINTS)))
    curves = Curves(tmp_path / "metrics.jsonl")
    curves.refresh()
    part = curves.drawing(first=100, last=200)["series"]["loss"]
    assert part["x"] == list(range(100, 201)) and "low" not in part


def test_a_file_written_anew_is_read_anew(run):
    curves = Curves(run / "metrics.jsonl")
    curves.refresh()
    have = curves.drawing()
    rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)[:11]
    (run / "new").write_text("".join(rows))
    os.replace(run / "new", run / "metrics.jsonl")
    curves.refresh()
    answer = curves.drawing(have["upto"], have["generation"])
    assert answer["whole"] and answer["upto"] == 10 and answer["series"]["loss"]["x"] == list(range(1, 11))


@pytest.mark.parametrize("junk", ["not JSON", "[]", "5", "{}", '{"step": "x", "loss": 1}', '{"step": 21, "loss": NaN}',
                                  '{"step": 21, "loss": "low"}', '{"step": 21, "loss": true}', "\x00", "[" * 100_000,
                                  '{"step": 1%s, "loss": 1}' % ("0" * 30), '{"step": 21, "loss": 1%s}' % ("0" * 400),
                                  '{"step": -1, "loss": 1}', '{"step": 21, "event": "x", "loss": NaN}'],
                         ids=lambda junk: junk[:30])
def test_lines_that_are_no_rows_are_passed_over(run, junk):
    with open(run / "metrics.jsonl", "a") as file:
        file.write(junk + "\n")
    append(run, training_row(22))
    curves = Curves(run / "metrics.jsonl")
    curves.refresh()
    drawing = curves.drawing()
    assert drawing["series"]["loss"]["x"][-2:] == [20, 22]
    json.dumps(drawing, allow_nan=False)


def test_half_a_line_waits_for_its_other_half(run):
    curves = Curves(run / "metrics.jsonl")
    text = json.dumps(training_row(21)) + "\n"
    for part in (text[:30], text[30:]):
        with open(run / "metrics.jsonl", "a") as file:
            file.write(part)
        curves.refresh()
    assert curves.step == 21 and curves.drawing()["series"]["loss"]["x"][-1] == 21


def test_the_list_of_runs(run):
    make_run(run.parent, "完成", 100, 100)
    (run.parent / "no-run").mkdir()
    rows = {row["name"]: row for row in Runs(run.parent).rows()}
    assert {name: (row["state"], row["step"], row["total"]) for name, row in rows.items()} == {
        "demo-1": ("stopped", 20, 100), "完成": ("finished", 100, 100)}
    assert rows["demo-1"]["val_bits_per_byte"] == 0.9
    assert [row["name"] for row in Runs(run).rows()] == ["demo-1"]
    with training(FakeSession(run)) as ear:
        ear.publish({"state": "paused", "step": 20, "total": 100})
        assert Runs(run.parent).rows()[0] | {"state": "paused"} == Runs(run.parent).rows()[0]


def test_a_run_that_has_logged_nothing_yet(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.toml").write_text("broken = ")
    row, = Runs(tmp_path).rows()
    assert (row["name"], row["step"], row["total"], row["loss"]) == ("a", 0, None, None)
    assert Runs(tmp_path).get("a").drawing()["series"] == {}


class Client:
    """Asks a dashboard as a browser does."""

    def __init__(self, url: str):
        parts = urlsplit(url)
        self.port, self.token, self.path = parts.port, parts.query.removeprefix("token="), f"/?{parts.query}"

    def ask(self, method: str, path: str, body: object = None, **headers: str | None) -> tuple[int, bytes, dict]:
        """Status, body, headers; an underscore in a header's name is a hyphen, None leaves it out."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = {"Host": f"127.0.0.1:{self.port}", "Authorization": f"Bearer {self.token}"}
        sent |= {"Content-Type": "application/json"} if body is not None else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        content = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in sent.items():
            if value is not None:
                connection.putheader(name, value)
        if content is not None:
            connection.putheader("Content-Length", str(len(content)))
        try:
            connection.endheaders(content)
            answer = connection.getresponse()
            return answer.status, answer.read(), {key.lower(): value for key, value in answer.getheaders()}
        finally:
            connection.close()

    def get(self, path: str) -> object:
        status, body, _ = self.ask("GET", path)
        assert status == 200, body
        return json.loads(body)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A dashboard with a finished run and one that trains, and a client."""
    root = tmp_path_factory.mktemp("runs")
    make_run(root, "done", 20, 20)
    session = FakeSession(make_run(root, "live", 20, 1000), 20)
    dashboard = start_dashboard(root)
    with training(session) as ear:
        ear.publish({"state": "running", "step": 20, "total": 1000})
        yield Client(dashboard.url), session
    dashboard.close()


@pytest.fixture
def client(served):
    return served[0]


def control(run="live", command="pause", arguments=None) -> dict:
    return {"run": run, "command": command, "arguments": arguments or {}}


def test_the_page_needs_nothing_from_elsewhere(client):
    status, page, headers = client.ask("GET", client.path, Authorization=None)
    assert status == 200 and b"http:" not in page and b"https:" not in page
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    for name in ("page.css", "main.js", "chart.js", "board.js", "controls.js", "data.js", "heat.js", "numbers.js",
                 "words.js"):
        status, text, headers = client.ask("GET", f"/page/{name}", Authorization=None)
        assert status == 200
        assert text.replace(b"http://www.w3.org/2000/svg", b"").count(b"://") == 0
        assert b"innerHTML" not in text and b"eval(" not in text
        assert headers["content-type"].startswith("text/css" if name.endswith("css") else "text/javascript")


def test_data(client):
    found = {row["name"]: row["state"] for row in client.get("/api/runs")["runs"]}
    assert found == {"live": "running", "done": "finished"}
    drawing = client.get("/api/curves?run=done")
    assert drawing["series"]["loss"]["x"] == list(range(1, 21))
    again = client.get(f"/api/curves?run=done&after={drawing['upto']}&generation={quote(drawing['generation'])}")
    assert not again["whole"] and len(again["series"]["loss"]["x"]) == 1
    assert client.get("/api/samples?run=done") == [{"step": 10, "text": f"10: {SAMPLE}\n"},
                                                   {"step": 5, "text": f"5: {SAMPLE}\n"}]


def test_controls(served):
    client, session = served
    status, body, _ = client.ask("POST", "/api/control", control())
    assert (status, json.loads(body)) == (200, {"message": "paused after step 20"})
    assert session.paused
    status, body, _ = client.ask("POST", "/api/control", control(command="sample", arguments={"text": "从前"}))
    assert json.loads(body)["text"] == "从前 你好\x1b[31m"
    status, body, _ = client.ask("POST", "/api/control", control(command="set", arguments={"lr": "-1"}))
    assert (status, json.loads(body)) == (200, {"error": "optim.lr must be above 0: got -1.0"})
    status, body, _ = client.ask("POST", "/api/control", control(run="done"))
    assert status == 409 and "is not being trained" in json.loads(body)["error"]
    client.ask("POST", "/api/control", control(command="resume"))


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Basic {token}", "Bearer {token}x", "{token}",
                                    "Bearer \u00fc"])
def test_without_the_token_nothing_is_told_and_nothing_done(served, header):
    client, session = served
    header = header and header.format(token=client.token)
    for method, path, body in (("GET", "/api/runs", None), ("GET", "/api/curves?run=live", None),
                               ("GET", "/api/samples?run=live", None), ("POST", "/api/control", control())):
        status, text, _ = client.ask(method, path, body, Authorization=header)
        assert status == 401 and b"live" not in text
    assert client.ask("GET", "/", Authorization=header)[0] == 401
    assert client.ask("GET", "/?token=wrong")[0] == 401
    assert not session.paused


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8321", "127.0.0.1.evil.example", "10.0.0.5", "",
                                  "localhost.evil.example:80", "evil.example:127.0.0.1"])
def test_another_host_name_is_refused(served, host):
    client, session = served
    for method, path, body in (("GET", client.path, None), ("GET", "/page/main.js", None), ("GET", "/api/runs", None),
                               ("POST", "/api/control", control())):
        assert client.ask(method, path, body, Host=host)[0] == 403
    assert not session.paused


def test_a_request_without_a_host_is_refused(client):
    assert client.ask("GET", client.path, Host=None)[0] == 400


@pytest.mark.parametrize("host", ["localhost:{port}", "127.0.0.1:9000", "localhost", "[::1]:80"])
def test_this_machine_by_another_name_or_through_a_tunnel(client, host):
    host = host.format(port=client.port)
    assert client.ask("GET", "/api/runs", Host=host, Origin=f"http://{host}")[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1:{port}",
                                    "http://localhost:{port}", ""])
def test_a_foreign_origin_is_refused_even_with_the_token(served, origin):
    client, session = served
    origin = origin.format(port=client.port)
    assert client.ask("POST", "/api/control", control(), Origin=origin)[0] == 403
    assert client.ask("GET", "/api/runs", Origin=origin)[0] == 403
    assert not session.paused


def test_what_a_browser_calls_cross_site_is_refused(client):
    assert client.ask("GET", "/api/runs", Sec_Fetch_Site="cross-site")[0] == 403
    assert client.ask("GET", "/page/main.js", Sec_Fetch_Site="same-site")[0] == 403
    assert client.ask("GET", "/api/runs", Sec_Fetch_Site="same-origin")[0] == 200


@pytest.mark.parametrize("path, status", [
    ("/api/curves", 404), ("/api/curves?run=..", 404), ("/api/curves?run=../live", 404), ("/api/samples?run=/etc", 404),
    ("/api/curves?run=live&after=x", 400), ("/api/curves?run=live&first=-5", 400),
    ("/api/curves?run=live&last=1e9", 400),
    ("/api/curves?run=live&after=99999999999999999999", 400), ("/page/app.py", 404), ("/page/..%2fapp.py", 404),
    ("/page/../app.py", 404), ("/nothing", 404), ("/api/control", 405),
])
def test_bad_addresses(client, path, status):
    assert client.ask("GET", path)[0] == status


@pytest.mark.parametrize("body, status", [
    (b"", 400), (b"{", 400), (b"[]", 400), (b"{}", 400), (b"[" * 50_000, 400), (b"\xff", 400), (b" " * 70_000, 413),
    (json.dumps({**control(), "run": "none"}).encode(), 404), (json.dumps({**control(), "run": 5}).encode(), 404),
    (json.dumps({**control(), "command": 5}).encode(), 400), (json.dumps({**control(), "arguments": []}).encode(), 400),
])
def test_bad_bodies(served, body, status):
    client, session = served
    assert client.ask("POST", "/api/control", body)[0] == status
    assert not session.paused


def test_a_body_that_is_no_json_by_its_type_is_refused(client):
    assert client.ask("POST", "/api/control", control(), Content_Type="text/plain")[0] == 415
    assert client.ask("POST", "/api/runs", control())[0] == 405


def test_garbage_on_the_port_hurts_nobody(client):
    for garbage in (b"\x00" * 1000, b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 50_000, b"\x16\x03\x01"):
        with socket.create_connection(("127.0.0.1", client.port), timeout=30) as connection:
            try:
                connection.sendall(garbage)
                connection.shutdown(socket.SHUT_WR)
                assert connection.recv(12) in (b"", b"HTTP/1.1 400")
            except OSError:
                pass  # the server has hung up already
    assert client.ask("GET", "/api/runs")[0] == 200


def test_it_listens_on_this_machine_alone(client):
    lines = [line.split() for line in open("/proc/net/tcp").readlines()[1:]] if os.path.exists("/proc/net/tcp") else []
    if not lines:
        pytest.skip("needs /proc/net/tcp")
    addresses = {line[1].split(":")[0] for line in lines
                 if line[3] == "0A" and int(line[1].split(":")[1], 16) == client.port}
    assert addresses == {"0100007F"}


def test_it_ends_with_its_parent(tmp_path):
    script = ("import sys, time\nfrom pathlib import Path\nfrom train.dashboard import start_dashboard\n"
              "print(start_dashboard(Path(sys.argv[1])).url, flush=True)\ntime.sleep(60)\n")
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE,
                              text=True)
    client = Client(parent.stdout.readline().strip())
    assert client.ask("GET", "/api/runs")[0] == 200
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(300):
        try:
            client.ask("GET", "/api/runs")
        except OSError:
            return
        time.sleep(0.1)
    pytest.fail("the dashboard outlived its parent")


def command(*words) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "train.dashboard", *map(str, words)], cwd=ROOT, capture_output=True,
                          text=True, timeout=60)


def test_mistakes_of_the_command(tmp_path, client):
    for words, rule in (((tmp_path / "none",), "RUNS_DIR must be a folder"), ((tmp_path, "--port", "70000"), "--port"),
                        ((tmp_path, "--port", client.port), "cannot listen on 127.0.0.1"), (("--wrong",), "--wrong")):
        done = command(*words)
        assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
        assert done.stderr.startswith("error: ") and rule in done.stderr


def test_its_process_loads_no_engine():
    script = ("import sys, train.dashboard.__main__\n"
              "print([name for name in ('torch', 'numba', 'engine') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
