"""A device that only echoes: paho with its own loop, what any round trip costs at least.

python benchmarks/echo.py PORT SIZE       # answers each message on bench/echo/cmd with SIZE bytes on bench/echo/reply
"""

import socket
import sys
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion


def main() -> None:
    """Echo until the connection ends."""
    port, size = int(sys.argv[1]), int(sys.argv[2])
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5, reconnect_on_failure=False)

    def hasten(_client: paho.Client, _data: object, sock: Any) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def arrived(_client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        # The command's id first, so that the asker knows its own; then as many bytes as the product's answer has.
        client.publish("bench/echo/reply", message.payload.ljust(size), 1)

    def connected(_client: paho.Client, _data: object, _flags: Any, _reason: Any, _properties: Any) -> None:
        client.subscribe("bench/echo/cmd", 1)

    client.on_socket_open = hasten
    client.on_message = arrived
    client.on_connect = connected
    client.connect("127.0.0.1", port)
    client.loop_forever()


if __name__ == "__main__":
    main()
