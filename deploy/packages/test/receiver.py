"""A webhook for the package test: verifies the signature of each message (Standard Webhooks) and appends the body to a file.

receiver.py SECRET-FILE OUT
"""
import base64
import hashlib
import hmac
import http.server
import sys


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with open(sys.argv[1]) as f:
            key = base64.b64decode(f.read().strip().removeprefix("whsec_"))
        message = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + body
        want = "v1," + base64.b64encode(hmac.new(key, message, hashlib.sha256).digest()).decode()
        genuine = hmac.compare_digest(want, self.headers["webhook-signature"])
        with open(sys.argv[2], "ab") as f:
            f.write((b"genuine " if genuine else b"forged ") + body + b"\n")
        self.send_response(204 if genuine else 403)
        self.end_headers()


http.server.HTTPServer(("127.0.0.1", 9000), Receiver).serve_forever()
