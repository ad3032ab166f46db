#!/usr/bin/env python3
"""Drives the demo's page in headless Chromium over its debugging pipe (Python's standard library only).

    chromium.py BROWSER URL RUNS [SHOTS]

URL serves the folder RUNS, in which at least two programs are trained and in which this makes one more run that is not
finished. Prints "ok NAME" or "FAIL NAME: why" for each case; with SHOTS, leaves screenshots there."""
import base64
import json
import os
import select
import subprocess
import sys
import tempfile
import time


class Browser:
    """One page. Messages are JSON ended by NUL on descriptors 3 (to the browser) and 4 (from it)."""

    def __init__(self, program, profile):
        to_read, self.to = os.pipe()
        self.source, from_write = os.pipe()
        # Both ends are moved above 4 first, so that putting them on 3 and 4 overwrites neither.
        high = [os.dup(to_read), os.dup(from_write)]
        for fd in (to_read, from_write):
            os.close(fd)

        def descriptors():
            a, b = (os.dup2(fd, fd + 100) for fd in high)
            os.dup2(a, 3)
            os.dup2(b, 4)

        command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                   "--hide-scrollbars", "--remote-debugging-pipe", "--user-data-dir=" + profile, "about:blank"]
        self.process = subprocess.Popen(command, preexec_fn=descriptors, close_fds=False, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        for fd in high:
            os.close(fd)
        self.rest, self.count, self.errors, self.session = b"", 0, [], None
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(t for t in targets if t["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(domain + ".enable")

    def receive(self, seconds):
        end = time.monotonic() + seconds
        while b"\0" not in self.rest:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.source], [], [], left)[0]:
                raise TimeoutError("the browser does not answer")
            data = os.read(self.source, 1 << 16)
            if not data:
                raise ConnectionError("the browser ended")
            self.rest += data
        line, self.rest = self.rest.split(b"\0", 1)
        return json.loads(line)

    def note(self, message):
        p = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(p["exceptionDetails"])[:300])
        elif message.get("method") == "Log.entryAdded" and p["entry"]["level"] in ("error", "warning"):
            self.errors.append(p["entry"]["text"] + " " + p["entry"].get("url", ""))
        elif message.get("method") == "Runtime.consoleAPICalled" and p["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(p["args"])[:300])

    def call(self, method, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive(40)
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.note(answer)

    def value(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait(self, expression, seconds=15):
        end = time.monotonic() + seconds
        while not self.value(expression):
            if time.monotonic() > end:
                raise TimeoutError("not so after %d s: %s" % (seconds, expression))
            time.sleep(0.1)

    def key(self, key, code, text=None):
        more = {"text": text} if text else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def shape(self, width, dark):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def shot(self, path):
        png = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        with open(path, "wb") as f:
            f.write(base64.b64decode(png))

    def end(self):
        self.process.terminate()
        self.process.wait(20)


TEXT = "document.body.innerText"
ROWS = "document.querySelectorAll('#answers tr').length"
MODEL = "[...document.querySelectorAll('#models button')].find(b => b.value === '%s')"


def loads(b, url, _):
    b.shape(1280, False)
    b.call("Page.navigate", url=url)
    b.wait("document.querySelectorAll('#rows tr').length >= 5")
    b.wait("document.querySelector('#live').textContent.startsWith('Live')")
    b.wait("document.querySelector('#program').textContent.includes('model lora_r16')")


def table_updates(b, _, runs):
    run = os.path.join(runs, "full_ft", "seed990")
    os.makedirs(run, exist_ok=True)
    with open(os.path.join(run, "metrics.jsonl"), "w") as f:
        f.write('{"step": 30, "loss": 0.731, "lr": 0.001, "grad_norm": 1.0}\n{"step": 40, "lo')
    b.wait("document.querySelector('#rows').innerText.includes('step 30') && !%s.includes('step 40')" % TEXT)
    with open(os.path.join(run, "metrics.jsonl"), "a") as f:
        f.write('ss": 0.412, "lr": 0.001, "grad_norm": 1.0}\n')
    b.wait("document.querySelector('#rows').innerText.includes('loss 0.412')")


def sentence_is_answered(b, _, __):
    b.value("document.querySelectorAll('#sentences button')[1].click()")
    b.wait(ROWS + " >= 2 && document.querySelector('#asked').textContent.includes('not bad at all')", 30)
    sums = b.value("[...document.querySelectorAll('#answers tr')].map(r => [...r.cells[2].innerText.matchAll(/[0-9.]+/g)]"
                   ".map(Number).reduce((a, b) => a + b, 0))")
    if not all(abs(s - 1) < 0.003 for s in sums):
        raise AssertionError("probabilities sum to %s" % sums)


def typed_text_is_answered(b, _, __):
    """By keyboard alone, and a text that looks like markup stays text."""
    b.value("document.querySelector('#text').value = ''; document.querySelector('#text').focus()")
    b.call("Input.insertText", text="<img src=x onerror=alert(1)> good")
    b.key("Enter", 13, "\r")
    b.wait("document.querySelector('#asked').textContent.includes('<img src=x')", 30)
    if b.value("document.querySelectorAll('main img[src=x]').length"):
        raise AssertionError("the text became an element")


def empty_text_is_said(b, _, __):
    b.value("document.querySelector('#text').value = '  '; document.querySelector('#ask').click()")
    b.wait("document.querySelector('#asked').textContent.startsWith('Type')")


def models_are_switched(b, _, __):
    b.value((MODEL % "full_ft") + ".click()")
    b.wait("document.querySelector('#program').textContent.includes('model full_ft')")
    b.wait("document.querySelector('#graph img').complete && document.querySelector('#graph img').naturalWidth > 100")
    pressed = b.value("[...document.querySelectorAll('#models [aria-pressed=true]')].map(b => b.value).join()")
    if pressed != "full_ft":
        raise AssertionError("pressed: " + pressed)
    b.value("[...document.querySelectorAll('#views button')].find(b => b.value === 'forward').click()")
    b.wait("document.querySelector('#graph img').src.includes('full_ft.forward')")


def memory_is_zoomed(b, _, __):
    b.value("[...document.querySelectorAll('#classes button')].find(b => b.value === 'optimizer').click()")
    b.wait("[...document.querySelectorAll('#bars rect')].every(r => r.classList.contains('k2'))")
    b.value("document.querySelector('#classes button').click()")
    b.wait("document.querySelectorAll('#bars rect.k3').length >= 2")


def focus_survives_an_update(b, _, runs):
    b.value("document.querySelectorAll('#classes button')[3].focus()")
    with open(os.path.join(runs, "full_ft", "seed990", "metrics.jsonl"), "a") as f:
        f.write('{"step": 50, "loss": 0.399}\n')
    b.wait("document.querySelector('#rows').innerText.includes('loss 0.399')")
    if b.value("document.activeElement.value") != "optimizer":
        raise AssertionError("the focus is lost")


def everything_has_a_name(b, _, __):
    nodes = b.call("Accessibility.getFullAXTree")["nodes"]
    for n in nodes:
        role, name = n.get("role", {}).get("value"), n.get("name", {}).get("value")
        if role in ("button", "textbox", "img", "image", "link", "progressbar", "group") and not name and not n["ignored"]:
            raise AssertionError("a %s without a name" % role)


def fits_a_narrow_screen(b, _, __):
    b.shape(360, True)
    time.sleep(0.5)
    wide = b.value("document.documentElement.scrollWidth")
    if wide > 360:
        raise AssertionError("%d wide" % wide)


def no_console_error(b, _, __):
    b.value("1")
    if b.errors:
        raise AssertionError("; ".join(b.errors))


CASES = [loads, table_updates, sentence_is_answered, typed_text_is_answered, empty_text_is_said, models_are_switched,
         memory_is_zoomed, focus_survives_an_update, everything_has_a_name, fits_a_narrow_screen, no_console_error]


def take_shots(b, folder):
    for width in (360, 1280):
        for dark in (False, True):
            b.shape(width, dark)
            time.sleep(0.7)
            b.shot(os.path.join(folder, "%d-%s.png" % (width, "dark" if dark else "light")))


def main():
    program, url, runs = sys.argv[1:4]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        b = Browser(program, profile)
        try:
            for case in CASES:
                name = "in a browser: " + case.__name__.replace("_", " ")
                try:
                    case(b, url, runs)
                    print("ok " + name, flush=True)
                except Exception as e:  # a case that fails must not hide the others
                    print("FAIL %s: %s" % (name, str(e).replace("\n", " ")[:400]), flush=True)
            if len(sys.argv) > 4:
                take_shots(b, sys.argv[4])
        finally:
            b.end()


main()
