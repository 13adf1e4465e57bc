"""The way to an engine's unix socket. The SDK's own leaves a socket open, in a cycle, each time that nobody answers."""

import socket
from typing import Any

from docker.transport.unixconn import UnixHTTPAdapter, UnixHTTPConnection, UnixHTTPConnectionPool


class _Connection(UnixHTTPConnection):
    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(self.timeout)
            sock.connect(self.unix_socket)
        except BaseException:
            sock.close()
            raise
        self.sock = sock


class _Pool(UnixHTTPConnectionPool):
    def __init__(self, adapter: UnixHTTPAdapter, url: str) -> None:
        super().__init__(url, adapter.socket_path, adapter.timeout, adapter.max_pool_size)
        self._seconds = adapter.timeout

    def _new_conn(self) -> Any:  # the types of the SDK know it as something else
        return _Connection(self.base_url, self.socket_path, self._seconds)


class UnixAdapter(UnixHTTPAdapter):
    def get_connection(self, url: bytes | str, proxies: Any = None) -> UnixHTTPConnectionPool:
        del proxies
        with self.pools.lock:
            if url not in self.pools:
                self.pools[url] = _Pool(self, str(url))
            pool: UnixHTTPConnectionPool = self.pools[url]
        return pool
