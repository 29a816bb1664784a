"""Headless Chromium, driven over its DevTools pipe: no library, no network, no port."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe")
LOWEST = 10
"""Of the descriptors that a browser starts with, so that none is 3 or 4 already."""
UNTIL = """new Promise((answer) => {
  const look = () => {
    if (%s) answer(true);
    else if (performance.now() > last) answer(false);
    else requestAnimationFrame(look);
  };
  const last = performance.now() + 20_000;
  look();
})"""
KEYS = {"Tab": 9, "Enter": 13, " ": 32, "ArrowDown": 40}


class Tab:
    """One page in the browser, with everything that went wrong in it."""

    def __init__(self, send: Any, receive: Any) -> None:
        self._send, self._receive = send, receive
        self._number = 0
        self._session = ""
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._loaded: set[str] = set()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command; events that come before its answer are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._send.write(json.dumps(message).encode() + b"\0")
        self._send.flush()
        while (answer := self._next()).get("id") != self._number:
            self._keep(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        read = bytearray()
        while not read.endswith(b"\0"):
            byte = self._receive.read(1)
            assert byte, "the browser is gone"
            read += byte
        return json.loads(read[:-1])

    def _keep(self, event: dict[str, Any]) -> None:
        name, about = event.get("method"), event.get("params", {})
        if name == "Runtime.exceptionThrown":
            self.errors.append(str(about["exceptionDetails"]))
        if name == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning"):
            self.errors.append(str(about["args"]))
        if name == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.errors.append(str(about["entry"]))
        if name == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        if name == "Page.lifecycleEvent" and about["name"] == "load":
            self._loaded.add(about["loaderId"])

    def open(self, page: Path, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Show a file, and wait until its scripts have run."""
        self.size(width, height)
        self.media(dark=dark)
        loader = self.call("Page.navigate", url=page.resolve().as_uri())["loaderId"]
        while loader not in self._loaded:
            self._keep(self._next())

    def size(self, width: int, height: int) -> None:
        """The window, as small as a phone if need be."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def media(self, dark: bool = False, paper: bool = False) -> None:
        """What the reader prefers, and whether the page is being printed."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        medium = "print" if paper else "screen"
        self.call("Emulation.setEmulatedMedia", media=medium, features=[scheme])

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, expression: str) -> bool:
        """Whether an expression becomes true: a page hears of some changes frames later."""
        return self.js(UNTIL % expression)

    def press(self, key: str) -> None:
        """A key, as a person would."""
        text = {"Enter": "\r", " ": " "}.get(key)
        about: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": KEYS[key]}
        down = about | ({"text": text} if text else {})
        self.call("Input.dispatchKeyEvent", type="keyDown", **down)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def swipe(self, x: float, y: float, distance: float = 0) -> None:
        """One finger, upwards if the distance is below zero; a tap if it is zero."""
        self.call("Emulation.setTouchEmulationEnabled", enabled=True)
        stops = [("touchStart", 0.0), *(("touchMove", i / 8) for i in range(1, 9) if distance)]
        for kind, share in stops:
            finger = {"x": x, "y": y + share * distance}
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[finger])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.call("Emulation.setTouchEmulationEnabled", enabled=False)

    def screenshot(self, image: Path) -> None:
        """The whole page as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        self.size(int(size["width"]), min(int(size["height"]), 16_000))
        image.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """A tab of a browser of its own, which ends with the block."""
    theirs, we_write = os.pipe()
    we_read, answers = os.pipe()
    pipes = [fcntl.fcntl(end, fcntl.F_DUPFD, LOWEST) for end in (theirs, answers)]
    command = [str(CHROMIUM), *OPTIONS, f"--user-data-dir={profile}"]
    # The browser expects its commands at descriptor 3 and answers at 4.
    process = subprocess.Popen(
        ["bash", "-c", 'exec "$@" 3<&{} 4>&{}'.format(*pipes), "bash", *command],
        pass_fds=pipes,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in (theirs, answers, *pipes):
        os.close(end)
    try:
        with os.fdopen(we_write, "wb") as send, os.fdopen(we_read, "rb") as receive:
            yield Tab(send, receive)
    finally:
        process.kill()
        process.wait()
