"""Cameras for tests: a server on this machine that sends pictures as cameras do, one part behind the other."""

import base64
import itertools
import socketserver
import struct
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np

SIZE = (48, 64)


def picture(red, size=SIZE):
    """A picture of one colour, or grey with a red square, as JPEG."""
    colours = np.full((*size, 3), 120, np.uint8)
    if red is True:
        colours[:24, :32] = (20, 20, 230)
    elif red is not False:
        colours[:] = red[::-1]
    return cv2.imencode(".jpg", colours, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


class Camera:
    """What a camera sends to each who connects, and what tests know of it.

    Attributes:
        sessions: A function of the connection's ``send`` for each of them; the last serves all that follow.
        connections: Number of connections so far.
    """

    def __init__(self, *sessions):
        self.sessions, self.connections = sessions, 0
        self.closing = threading.Event()
        self.sent = threading.Event()

    def send_all(self, pictures, then_wait=True):
        """Give a session that sends pictures, and holds the line until the test ends."""

        def session(send):
            for each in pictures:
                send(each)
            self.sent.set()
            if then_wait:
                self.closing.wait(20)

        return session


@contextmanager
def serving(camera, other=None):
    """Serve a camera at ``/live``, and other answers, as (type, bytes), by path; gives the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            if path in (other or {}):
                kind, content = other[path]
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                return
            camera.connections += 1
            session = camera.sessions[min(camera.connections, len(camera.sessions)) - 1]
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            session(self._send)

        def _send(self, jpeg):
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            self.wfile.write(head.encode() + jpeg + b"\r\n")

        def log_message(self, *_):
            pass

        def handle(self):
            with suppress(ConnectionError, TimeoutError):  # who looked went away
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/live"
    finally:
        camera.closing.set()
        server.shutdown()
        server.server_close()


@contextmanager
def rtsp_camera(units, password=None):
    """Serve H.264 by RTSP as cameras do, RTP on the same line; gives the address.

    Args:
        units: The units of the stream, without start codes, of each picture, again and again.
        password: ``user:password`` that is asked for, if any.
    """
    asked = f"Basic {base64.b64encode(password.encode()).decode()}" if password else None
    closing = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            with suppress(ConnectionError, TimeoutError):
                while (request := self.rfile.readline().decode()) and not closing.is_set():
                    self.answer(*request.split()[:2])

        def answer(self, method, address):
            lines = iter(lambda: self.rfile.readline().decode().strip(), "")
            head = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            if asked and head.get("authorization") != asked:
                self.say("401 Unauthorized", head, 'WWW-Authenticate: Basic realm="camera"')
            elif method == "OPTIONS":
                self.say("200 OK", head, "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")
            elif method == "DESCRIBE":
                sdp = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
                sdp += "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:track1\r\n"
                self.say(
                    "200 OK", head, f"Content-Base: {address}/", "Content-Type: application/sdp", content=sdp
                )
            elif method == "SETUP":
                self.say("200 OK", head, "Transport: RTP/AVP/TCP;unicast;interleaved=0-1", "Session: 1")
            elif method == "PLAY":
                self.say("200 OK", head, "Session: 1")
                self.play()
            else:
                self.say("200 OK", head)

        def say(self, status, head, *lines, content=""):
            lines = [f"RTSP/1.0 {status}", f"CSeq: {head['cseq']}", *lines, f"Content-Length: {len(content)}"]
            self.wfile.write(("\r\n".join(lines) + "\r\n\r\n" + content).encode())

        def play(self):
            number = 0
            for time in itertools.count():
                for unit in (picture := units[time % len(units)]):
                    last = 0x80 if unit is picture[-1] else 0
                    rtp = (
                        struct.pack(">BBHII", 0x80, last | 96, number & 0xFFFF, 4500 * time & 0xFFFFFFFF, 1)
                        + unit
                    )
                    self.wfile.write(struct.pack(">cBH", b"$", 0, len(rtp)) + rtp)
                    number += 1
                if closing.wait(0.02):
                    return

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    user = f"{password}@" if password else ""
    try:
        yield f"rtsp://{user}127.0.0.1:{server.server_address[1]}/stream"
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
