"""A real Chromium, driven by its DevTools protocol over a pair of pipes: no driver, no port, no network."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
]


class Browser:
    """One page of one browser."""

    def __init__(self, folder: Path) -> None:
        """Start it.

        Args:
            folder: For its profile and what it downloads.
        """
        assert CHROMIUM is not None
        self.downloads = folder / "downloads"
        self.requests: list[str] = []
        self.problems: list[str] = []
        self._number = 0
        self._unread = b""
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()

        def connect() -> None:
            # Chromium reads commands from 3 and writes answers to 4.
            ends = os.dup(to_browser), os.dup(from_browser)
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
        self._process = subprocess.Popen(
            command, preexec_fn=connect, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        self._session: str | None = None
        targets = self.send("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                found: dict[str, Any] = answer["result"]
                return found

    def open(self, path: Path, fragment: str = "", *, width: int = 1280, height: int = 900) -> None:
        """Open a file in a window of a width, on a phone where that is narrow."""
        self.requests.clear()
        self.problems.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.send("Page.navigate", url="about:blank")  # another fragment alone would load nothing
        self.send("Page.navigate", url=path.as_uri() + fragment)
        while self.run("document.readyState + location.protocol") != "completefile:":
            time.sleep(0.02)

    def media(self, media: str = "", **features: str) -> None:
        """Show the page as print, or to someone who prefers dark."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.send("Emulation.setEmulatedMedia", media=media, features=named)

    def run(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def picture(self, path: Path, whole: bool = False) -> None:
        """Save what is seen as PNG."""
        found = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def printed(self) -> bytes:
        """Return the page printed as PDF."""
        return base64.b64decode(self.send("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"])

    def downloaded(self, name: str) -> str:
        """Return the content of a file that was downloaded."""
        path, end = self.downloads / name, time.monotonic() + 20
        while not path.is_file():
            assert time.monotonic() < end, f"{name} was not downloaded"
            time.sleep(0.05)
        return path.read_text(encoding="utf-8")

    def close(self) -> None:
        """End it."""
        os.close(self._write)
        self._process.terminate()
        self._process.wait(timeout=20)
        os.close(self._read)

    def _message(self) -> dict[str, Any]:
        """Return the next message, and note requests and errors."""
        while b"\0" not in self._unread:
            part = os.read(self._read, 1 << 16)
            assert part, "the browser ended"
            self._unread += part
        first, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        given = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
        if message.get("method") == "Log.entryAdded":
            self.problems.append(given["entry"]["text"])
        if message.get("method") == "Runtime.exceptionThrown":
            self.problems.append(given["exceptionDetails"].get("text", ""))
        return message
