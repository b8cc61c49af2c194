"""Rules at work on live verdicts: read anew when they change, the old ones working while the new ones have mistakes."""

import asyncio
import os

import pytest

from tapline.service.alerts import alert_watch
from tapline.service.alerts.alert_watch import AlertWatch
from tapline.service.alerts.rule_faults import AlertRulesError
from tapline.service.metrics import Metrics
from tests.logged import capture_logs
from tests.service.alerts.ruled import T0_US, rule, written
from tests.service.history.kept import BUS, flow, trace, until, verdict

NETS = '[list.nets]\nof = "networks"\nfile = "nets.txt"\n'


class Watched:
    """A watch whose looks the test asks for."""

    def __init__(self, folder, text):
        self.folder = folder
        self.metrics, self.alerts = Metrics(), []
        self.watch = AlertWatch(written(folder, text), self.alerts.append, self.metrics, clock_us=lambda: T0_US)

    def fires(self, uid, **fields):
        """The rules that fire on a flow."""
        self.alerts.clear()
        self.watch.flow(BUS, flow(uid, **fields), verdict())
        return [alert.rule for alert in self.alerts]

    def change(self, text, looks=2):
        written(self.folder, text)
        self.look(looks)

    def look(self, looks=2):
        async def body():
            for _ in range(looks):
                await self.watch.look()

        asyncio.run(body())

    def value(self, name, **labels):
        return self.metrics.registry.get_sample_value(f"tapline_{name}", labels)


EACH = "{seconds = 0}"
ONE, TWO = rule(suppress=EACH), rule(suppress=EACH).replace('"r"', '"two"')


def test_alerts_are_told_and_counted(tmp_path):
    watched = Watched(tmp_path, rule() + rule(kind='"trace"').replace('"r"', '"t"'))
    assert watched.fires("a") == ["r"]
    assert watched.fires("b") == []
    watched.watch.trace(trace())
    assert [alert.rule for alert in watched.alerts] == ["t"]
    watched.watch.flow(BUS, flow("c"), None)
    assert watched.value("alerts_total", rule="r", severity="medium") == 1
    assert watched.value("alerts_suppressed_total", rule="r") == 1
    assert watched.value("alerts_suppressed_total", rule="t") == 0
    assert (watched.value("alert_rules"), watched.value("alert_rules_up")) == (2, 1)


def test_rules_with_mistakes_are_refused_at_the_start(tmp_path):
    with pytest.raises(AlertRulesError, match=r"rules.toml:3: rule r: unknown key `lable`, did you mean `label`\?"):
        Watched(tmp_path, rule(lable='"x"'))


def test_changed_rules_work_once_they_are_at_rest(tmp_path):
    watched = Watched(tmp_path, ONE)
    watched.change(TWO, looks=1)
    assert watched.fires("a") == ["r"]  # it may still be being written
    watched.look(1)
    assert watched.fires("b") == ["two"]
    assert watched.value("alerts_total", rule="r", severity="medium") is None
    assert watched.value("alert_rules_read_total", outcome="used") == 2
    watched.look()
    assert watched.value("alert_rules_read_total", outcome="used") == 2  # nothing has changed


def test_a_file_put_in_the_place_of_the_other_is_read(tmp_path):
    """Of the same size and time: by its inode."""
    watched = Watched(tmp_path, ONE)
    old = (tmp_path / "rules.toml").stat()
    other = written(tmp_path, ONE.replace('"r"', '"s"'), "new.toml")
    os.utime(other, ns=(old.st_atime_ns, old.st_mtime_ns))
    other.replace(tmp_path / "rules.toml")
    watched.look()
    assert watched.fires("a") == ["s"]


def test_the_old_rules_work_while_the_new_ones_have_mistakes(tmp_path):
    watched = Watched(tmp_path, ONE)
    with capture_logs() as logs:
        watched.change(TWO + "lable = 3\n")
    assert watched.watch.problem == f"{tmp_path}/rules.toml:4: rule two: unknown key `lable`, did you mean `label`?"
    assert [entry["where"] for entry in logs if "where" in entry] == [watched.watch.problem]
    assert watched.fires("a") == ["r"]
    assert watched.value("alert_rules_up") == 0
    assert watched.value("alert_rules_read_total", outcome="refused") == 1
    watched.look()
    assert watched.value("alert_rules_read_total", outcome="refused") == 1  # said once
    watched.change(TWO)
    assert (watched.watch.problem, watched.fires("b")) == (None, ["two"])
    assert watched.value("alert_rules_up") == 1


def test_rules_that_are_gone_work_on_until_they_are_back(tmp_path):
    watched = Watched(tmp_path, ONE)
    (tmp_path / "rules.toml").unlink()
    watched.look()
    assert "cannot be read: No such file" in watched.watch.problem
    assert watched.fires("a") == ["r"]
    watched.change(ONE)
    assert watched.watch.problem is None


def test_a_list_beside_the_rules_is_read_anew(tmp_path):
    written(tmp_path, "192.0.2.1\n", "nets.txt")
    watched = Watched(tmp_path, NETS + rule(allow='"nets"', suppress=EACH))
    assert watched.fires("a") == []
    written(tmp_path, "192.0.2.2 # another\n", "nets.txt")
    watched.look()
    assert watched.fires("b") == ["r"]
    written(tmp_path, "192.0.2.x\n", "nets.txt")
    watched.look()
    assert watched.watch.problem.startswith(f"{tmp_path}/nets.txt:1: expected an address")
    written(tmp_path, "192.0.2.1\n", "nets.txt")
    watched.look()
    assert (watched.watch.problem, watched.fires("c")) == (None, [])


def test_a_list_that_bad_rules_name_mends_them(tmp_path):
    watched = Watched(tmp_path, ONE)
    watched.change(NETS + TWO)
    assert "nets.txt: cannot be read" in watched.watch.problem
    written(tmp_path, "192.0.2.1\n", "nets.txt")
    watched.look()
    assert (watched.watch.problem, watched.fires("a")) == (None, ["two"])


def test_what_is_asked_for_is_read_at_once_though_nothing_changed(tmp_path, monkeypatch):
    """The task that looks is woken, long before it would look by itself."""
    monkeypatch.setattr(alert_watch, "LOOK_SECONDS", 3600)
    watched = Watched(tmp_path, ONE)

    async def body():
        task = asyncio.create_task(watched.watch.run())
        try:
            async with asyncio.timeout(60):
                watched.watch.reload()
                await until(lambda: watched.value("alert_rules_read_total", outcome="used") == 2)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(body())


def test_it_looks_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(alert_watch, "LOOK_SECONDS", 0.01)
    watched = Watched(tmp_path, ONE)

    async def body():
        task = asyncio.create_task(watched.watch.run())
        try:
            async with asyncio.timeout(60):
                written(tmp_path, TWO)
                await until(lambda: watched.value("alert_rules_read_total", outcome="used") == 2)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(body())
    assert watched.fires("a") == ["two"]
