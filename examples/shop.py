"""A small shop, served inside one desktop and seen by nobody else. Prints a JSON line for each request it gets.

Needs nothing but the distribution's python3: `python3 shop.py PORT`.
"""

import html
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl

STYLE = "body{font:22px sans-serif;margin:40px}input{font:inherit;display:block;margin:4px 0 18px;width:520px}"
FORM = """<h1>Order tea</h1><form method=post action=/order>
<label>Your name<input name=name autofocus></label>
<label>Kind of tea<input name=tea></label>
<label>How many boxes<input name=boxes type=number></label>
<button style="font:inherit">Order</button></form>"""


class Shop(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.tell(self.path, {})
        self.show("Order tea", FORM)

    def do_POST(self) -> None:
        fields = dict(parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
        self.tell(self.path, fields)
        rows = "".join(f"<li>{html.escape(key)}: <b>{html.escape(value)}</b>" for key, value in fields.items())
        self.show("Thank you", f"<h1>Thank you</h1><p>We got your order:<ul>{rows}</ul>")

    def tell(self, path: str, fields: dict[str, str]) -> None:
        print(json.dumps({"method": self.command, "path": path, "fields": fields}), flush=True)

    def show(self, title: str, body: str) -> None:
        page = f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>{body}".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the name of the method we override
        """Standard error stays quiet; `tell` is our log."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Shop)
    print(json.dumps({"listening": server.server_port}), flush=True)
    server.serve_forever()
