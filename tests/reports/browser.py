"""A headless Chromium that opens one page and tells what happened, over its DevTools protocol. The
websocket client comes with JupyterLab."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import cache as once
from pathlib import Path
from typing import Any

import pytest
import websocket

NAMES = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)  # fmt: skip
REQUIRED = "WORKBENCH_BROWSER"
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--remote-debugging-port=0",
)  # fmt: skip
TOLD = (
    "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded",
    "Page.javascriptDialogOpening",
)  # fmt: skip
WAIT = 60  # seconds for an answer


def program() -> str:
    """Where Chromium is. Skips the test where there is none; fails it where the environment says
    that there must be one, as .ci/run does."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is not None and _starts(found):
        return found
    missing = "no browser that starts to read the page in (Debian: apt-get install chromium)"
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"There is {missing}, and {REQUIRED}=1.", pytrace=False)
    pytest.skip(f"There is {missing}.")


@once
def _starts(browser: str) -> bool:
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "about:blank"]
    try:
        return subprocess.run(command, capture_output=True, timeout=WAIT).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


class Tab:
    """One page. requests: every address it asked for. told: what it said to the console, errors
    and dialogs."""

    def __init__(self, connection: websocket.WebSocket) -> None:
        self.connection, self.numbers, self.session = connection, itertools.count(1), None
        self.requests: list[str] = []
        self.told: list[str] = []
        self.loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for part in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{part}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What Chromium answers; what happens meanwhile is kept."""
        number = self._send(method, parameters)
        while (message := self._next()).get("id") != number:
            pass
        assert "error" not in message, f"{method}: {message['error']}"
        return message["result"]

    def _send(self, method: str, parameters: dict[str, Any]) -> int:
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        self.connection.send(json.dumps(message))
        return number

    def _next(self) -> dict[str, Any]:
        message = json.loads(self.connection.recv())
        method, about = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded = True
        elif method in TOLD:
            self.told.append(f"{method}: {json.dumps(about)[:500]}")
        if method == "Page.javascriptDialogOpening":  # it would stop the page for ever
            self._send("Page.handleJavaScriptDialog", {"accept": True})
        return message

    def open(self, address: str, width: int, height: int = 900) -> None:
        """Load a page on a screen of this size, in CSS pixels, and wait until it is there."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **screen)
        self.loaded = False
        self.call("Page.navigate", url=address)
        while not self.loaded:
            self._next()

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page, awaited where it is a promise."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def image(self) -> bytes:
        """A screenshot of what the screen shows, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    def picture(self, path: Path) -> Path:
        """A screenshot of the whole page as PNG."""
        image = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(image))
        return path


@contextlib.contextmanager
def tab(profile: Path) -> Iterator[Tab]:
    """An empty tab of a Chromium started for it. profile: a folder that does not exist yet."""
    command = [program(), *QUIET, f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as started:
        try:
            connection = websocket.create_connection(
                _address(started, profile), timeout=WAIT, suppress_origin=True
            )
            with contextlib.closing(connection):
                yield Tab(connection)
        finally:
            started.terminate()


def _address(started: subprocess.Popen[bytes], profile: Path) -> str:
    """Where it listens: it writes that to a file once it does."""
    until = time.monotonic() + WAIT
    while time.monotonic() < until:
        assert started.poll() is None, f"Chromium ended with {started.returncode}"
        with contextlib.suppress(OSError, ValueError):
            port, path = (profile / "DevToolsActivePort").read_text().split()
            return f"ws://127.0.0.1:{port}{path}"
        time.sleep(0.05)
    raise AssertionError(f"Chromium did not listen within {WAIT} s")
